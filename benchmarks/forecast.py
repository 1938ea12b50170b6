"""The planner's predictions for this device, beside what was measured on it.

python -m benchmarks.forecast --model qwen2.5-1.5b --measured benchmarks/results/gpu.jsonl

It predicts decoding, prefill and the update as `decode` and `update` measure them, and a step of `--config` as
`startup` does. `to_measured` is the planner's seconds divided by the measured ones.
"""

import argparse
import json
import pathlib
import runpy

import jax

from benchmarks import common
from configs.common import base
from zerosearch_jax.plan import hardware, planner
from zerosearch_jax.train import config as train_config

PROMPT, NEW = 256, 128
CHIPS = {'H200': 'h200', 'A100': 'a100-80gb'}  # by a part of the name that JAX gives; other devices: an H100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='qwen2.5-1.5b', choices=common.PRESETS)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--config', default='configs/quickstart_gpu.py')
    parser.add_argument('--length', type=int, default=4096, help='tokens of a row of the update')
    parser.add_argument('--measured', type=pathlib.Path, required=True, help='JSON lines of the other benchmarks')
    args = parser.parse_args()
    rows = map(json.loads, args.measured.read_text().splitlines())
    measured = {row['name']: row for row in rows if row.get('model', args.model) == args.model}
    programs(args, measured)
    step(args.config, measured)


def programs(args, measured: dict[str, dict]):
    """Of one program each: tokens a second."""
    cfg = base()
    cfg.policy.update(model=args.model, dtype='bfloat16')
    cfg.simulator.kind = 'none'
    cfg.rollout.update(
        questions=args.batch, group=1, slots=args.batch, prompt_tokens=PROMPT, response_tokens=NEW, max_turns=0
    )
    cfg.rollout.prompt = 'reason'
    cfg.rl.update(algorithm='reinforce', row_length=args.length, rows_per_micro=1, remat='none', kl=0.0)
    made = plan(cfg, planner.Workload(searches=0, sampled=NEW, written=1))
    names = [name for name in measured if name.startswith('update, full rows')]
    for part, line, tokens in (
        (': decode', f'decode, batch {args.batch}', NEW),
        (': prefill', f'prefill, batch {args.batch}', PROMPT),
        ('update', next(iter(names), 'update, full rows'), PROMPT + NEW),
    ):
        rate = args.batch * tokens / planner.expected_seconds(made, part)
        figures = {'tokens_per_second': common.spread([rate])}
        if 'tokens_per_second' in measured.get(line, {}):
            figures['to_measured'] = measured[line]['tokens_per_second']['median'] / rate
        common.emit(f'forecast: {line}', model=args.model, **figures)


def step(config: str, measured: dict[str, dict]):
    """Of a whole step, of as many searches and tokens as the measured one had."""
    cfg, found = runpy.run_path(config)['get_config'](), measured.get('start-up, warm cache', {})
    work = planner.Workload.of(train_config.parse(cfg), searches=found.get('searches'), sampled=found.get('sampled'))
    seconds = planner.expected_seconds(plan(cfg, work))
    figures = {'to_measured': seconds / found['step']} if found else {}
    common.emit(f'forecast: a step of {config}', seconds=seconds, **figures)


def plan(cfg, work: planner.Workload) -> planner.Plan:
    kind = jax.devices()[0].device_kind
    chip = next((chip for part, chip in CHIPS.items() if part in kind), 'h100-80gb')
    return planner.plan(train_config.parse(cfg), hardware.parse(f'{chip}:1'), jax.devices()[:1], f'XLA on {kind}', work)


if __name__ == '__main__':
    main()
