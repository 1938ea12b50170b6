"""The memory that the planner predicts, beside that of real runs, on CPU.

python -m benchmarks.plan_memory

Each run is a step of reinforcement learning with SmolLM2 in its own process: once to compile the programs, and once to
measure. The measured memory is the peak of the process minus what it still holds after the run has freed its arrays.
The predicted memory (`foretold_gib`) is the plan by the CPU's compiler.
"""

import argparse
import ctypes
import gc
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax

from benchmarks.machine import cpu
from configs import quickstart, tiny

SHARED = {
    'rollout': {'questions': 2, 'slots': 8},
    'simulator': {'slots': 8},
    'rl': {'steps': 1},
    'evaluation': {'questions': 0},
    'run': {'tensorboard': False},
}
EXPERIMENTS = {'quickstart': quickstart, 'tiny': tiny}
CONFIGS = {  # preset of the experiment, and what is changed
    'an adapter is trained': ('', {}),
    'all weights are trained': ('', {'policy': {'adapter': '', 'lora_rank': 0}}),
    'no search, two rows of 1,024 at once': (
        'r1',
        {'rollout': {'response_tokens': 768, 'turn_tokens': 768}, 'rl': {'row_length': 1024, 'rows_per_micro': 2}},
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument('--experiment', choices=EXPERIMENTS, default='quickstart', help='of configs/')
    parser.add_argument('--run', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(took(config(args.experiment, *args.only))))
        return
    for name in args.only:
        for _ in ('compiles', 'measures'):
            command = [sys.executable, '-m', 'benchmarks.plan_memory', '--experiment', args.experiment, '--only', name]
            printed = subprocess.run([*command, '--run'], check=True, stdout=subprocess.PIPE, text=True).stdout
        real, (planned, program) = json.loads(printed.splitlines()[-1]), predicted(config(args.experiment, name))
        sizes = {'foretold_gib': planned / 2**30, 'took_gib': real / 2**30, 'ratio': planned / real}
        rounded = {key: round(value, 3) for key, value in sizes.items()}
        print(json.dumps({'name': name, **rounded, 'peak': program, 'device': cpu(), 'cores': os.cpu_count()}))


def config(experiment: str, name: str):
    preset, changed = CONFIGS[name]
    made = EXPERIMENTS[experiment].get_config(preset)
    made.update(SHARED)
    made.update(changed)
    return made


def took(made) -> int:
    """Bytes that one step of training took of this process."""
    from zerosearch_jax import settings
    from zerosearch_jax.train import config as train_config
    from zerosearch_jax.train import rl
    from zerosearch_jax.weights import download

    jax.config.update('jax_compilation_cache_dir', str(download.cache_dir() / 'compiled'))
    with tempfile.TemporaryDirectory() as directory:
        rl.train(train_config.parse(made), pathlib.Path(directory), settings.to_json(made))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = pathlib.Path('/proc/self/status').read_text()
    peak, still = (int(re.search(rf'{key}:\s+(\d+) kB', status)[1]) for key in ('VmHWM', 'VmRSS'))
    return (peak - still) * 1024


def predicted(made) -> tuple[int, str]:
    """Bytes of the plan, and the program that needs the most."""
    from zerosearch_jax.plan import hardware, planner
    from zerosearch_jax.train import config as train_config

    cfg = train_config.parse(made)
    plan = planner.plan(cfg, hardware.parse('a100-80gb:1'), jax.devices()[:1], 'XLA:CPU')
    return plan.peak, max(plan.needs, key=plan.peak_of).name


if __name__ == '__main__':
    main()
