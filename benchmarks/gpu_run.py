"""Real runs on one GPU beside what the planner foretells of them: memory, and seconds of a step.

  python -m benchmarks.gpu_run --out docs/runs/gpu/plan.jsonl

Two steps of reinforcement learning in a process of its own, models with random weights (nothing is downloaded; they
speak bytes and never search, so the simulator is in memory and waits). Memory: the most that was in use on the device,
beside the plan by the compiler of the same device. Time: the second step beside the planner's least.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax

from benchmarks import common

CONFIGS = {  # what differs from `config`
    '1.5B, an adapter is trained': {'policy': {'model': 'qwen2.5-1.5b', 'lora_rank': 32}},
    '1.5B, all weights are trained': {'policy': {'model': 'qwen2.5-1.5b'}},
    '3B, an adapter is trained': {'policy': {'model': 'qwen2.5-3b', 'lora_rank': 32}},
}
RESPONSE = 640


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, help='JSON lines; appended to')
    parser.add_argument('--only', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument('--hardware', default='h100-80gb:1', help='of the plan; the GPU at hand is taken for it')
    parser.add_argument('--model', help='a preset instead of the models of this file')
    parser.add_argument('--questions', type=int, default=16, help='of a step, with 8 samples each')
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.only:
        if args.part:
            PARTS[args.part](name, args)
            continue
        planned, real = (part(name, of, args) for of in PARTS)
        with args.out.open('a') if args.out else sys.stdout as file:
            file.write(json.dumps({'name': name, **planned, **real}) + '\n')


def part(name: str, of: str, args) -> dict:
    """Runs one part of a configuration in a process of its own."""
    command = [sys.executable, '-m', 'benchmarks.gpu_run', '--part', of, '--only', name, '--hardware', args.hardware]
    command += ['--questions', str(args.questions), *(('--model', args.model) if args.model else ())]
    environment = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **os.environ}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


def config(name: str, args, questions: str = ''):
    from configs import common as configs

    made = configs.published()
    made.mesh = (1, 1, 1)
    made.data.train = questions
    made.simulator.update(model='qwen2.5-1.5b', slots=32, prompt_tokens=512, max_tokens=256)
    made.rollout.update(questions=args.questions, group=8, slots=128, prompt_tokens=896, response_tokens=RESPONSE)
    made.rollout.update(max_turns=1, turn_tokens=RESPONSE, observation_tokens=64)
    made.rl.update(steps=2, row_length=2048, rows_per_micro=4)
    made.evaluation.questions = 0
    made.run.tensorboard = False
    made.update(CONFIGS[name])
    if args.model:
        made.policy.model = made.simulator.model = args.model
    return made


def take(name: str, args):
    """Runs the two steps, and says what they took."""
    from zerosearch_jax import pretrained
    from zerosearch_jax.train import config as train_config
    from zerosearch_jax.train import rl
    from zerosearch_jax.train.trainer import Trainer
    from zerosearch_jax.weights import download

    jax.config.update('jax_compilation_cache_dir', str(download.cache_dir() / 'compiled'))
    pretrained.load_model = common.load_model
    with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as file:
        for i in range(32):
            print(json.dumps({'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b']}), file=file, flush=True)
        trainer = Trainer(train_config.parse(config(name, args, file.name)), None)
    trainer.load_simulator()
    measured = [rl.train_step(trainer, step, rl.Past().noise(trainer.cfg, step))[0] for step in (1, 2)]
    kept = {key: measured[1][key] for key in ('cost/tokens', 'speed/rollout_seconds', 'speed/update_seconds')}
    first = sum(measured[0][key] for key in ('speed/rollout_seconds', 'speed/update_seconds'))
    where = {'took_gib': common.peak_gib(), 'device': jax.devices()[0].device_kind, 'jax': jax.__version__}
    print(json.dumps({**where, 'first_step_seconds': first, **kept}))


def foretell(name: str, args):
    """Says what the planner foretells, where every response is as long as it may be and nobody searches."""
    from zerosearch_jax.plan import hardware, planner
    from zerosearch_jax.train import config as train_config

    cfg, target = train_config.parse(config(name, args)), hardware.parse(args.hardware)
    made = planner.plan(
        cfg, target, jax.devices()[:1], 'XLA', planner.Workload(searches=0, sampled=RESPONSE, written=1)
    )
    least = {f'least_{part}_seconds': made.seconds(part) for part in ('policy', 'reference', 'update')}
    print(json.dumps({'foretold_gib': made.peak / 2**30, 'peak': max(made.needs, key=made.peak_of).name, **least}))


PARTS = {'foretell': foretell, 'take': take}

if __name__ == '__main__':
    main()
