"""Start-up: wall time of a new process to the end of its first tiny step, less that of a later step.

python -m benchmarks.startup

A GRPO step of SmolLM2 (1 question x 4 short trajectories), with an empty and with a filled cache of compiled programs.
Another experiment: `python -m benchmarks.startup --config configs/tiny.py`, and flags of it.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import cpu

STEPS = 4
CONFIG = 'configs/quickstart.py'
SMALL = (  # what is changed of it
    *('--config.rollout.questions=1', '--config.rollout.group=4', '--config.rollout.slots=4'),
    *('--config.rollout.prompt_tokens=160', '--config.rollout.response_tokens=96', '--config.rollout.turn_tokens=32'),
    *('--config.rollout.observation_tokens=48', '--config.simulator.slots=4', '--config.simulator.max_tokens=48'),
    '--config.rl.row_length=256',
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=CONFIG)
    args, changes = parser.parse_known_args()
    command = ['--config', args.config, *(SMALL if args.config == CONFIG else ()), *changes]
    with tempfile.TemporaryDirectory() as directory:
        for cache in ('cold', 'warm'):
            emit(cache, *run(pathlib.Path(directory), cache, command))


def run(directory: pathlib.Path, name: str, experiment: list[str]) -> tuple[float, float]:
    """Seconds to the end of the first step of a new process, and of a median later step."""
    command = [sys.executable, '-m', 'launch.train', *experiment, f'--workdir={directory / name}']
    command += [f'--config.rl.steps={STEPS}', '--config.evaluation.questions=0']
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(directory / 'compiled')}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    ends = [time.perf_counter() - began for line in process.stderr if line.startswith('step ')]
    if process.wait() or len(ends) != STEPS:
        sys.exit(f'the {name} run failed')
    later = sorted(b - a for a, b in itertools.pairwise(ends))
    return ends[0], later[len(later) // 2]


def emit(cache: str, first: float, later: float):
    seconds = {'seconds': round(first - later, 2), 'step': round(later, 2)}
    print(json.dumps({'name': f'start-up, {cache} cache', **seconds, 'device': cpu(), 'cores': os.cpu_count()}))


if __name__ == '__main__':
    main()
