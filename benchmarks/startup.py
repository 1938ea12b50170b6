"""Start-up: from a new process to the end of its first step, less a later step; with what the run took besides.

python -m benchmarks.startup

A GRPO step of SmolLM2 (1 question x 4 short trajectories), with an empty and with a filled cache of compiled programs.
Another experiment: `python -m benchmarks.startup --config configs/tiny.py`, and flags of it. `first` is the end of the
first step, `compile_seconds` those before it; a later `step` had `searches` and `sampled` tokens a trajectory.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import ROOT, device

CONFIG = 'configs/quickstart.py'
SMALL = (  # what is changed of it
    *('--config.rollout.questions=1', '--config.rollout.group=4', '--config.rollout.slots=4'),
    *('--config.rollout.prompt_tokens=160', '--config.rollout.response_tokens=96', '--config.rollout.turn_tokens=32'),
    *('--config.rollout.observation_tokens=48', '--config.simulator.slots=4', '--config.simulator.max_tokens=48'),
    '--config.rl.row_length=256',
)
COMPILED = re.compile(r'Finished XLA compilation of .* in ([\d.e-]+) sec')
STEP_DONE = re.compile(r'step \d+/')  # and no line on the way, 'step 1 rollouts 3/32'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='of the tree, or an absolute path')
    parser.add_argument('--tree', type=pathlib.Path, default=ROOT, help='files of another commit')
    parser.add_argument('--steps', type=int, default=4)
    parser.add_argument('--caches', nargs='+', default=['cold', 'warm'], choices=('cold', 'warm'))
    parser.add_argument('--trajectories', type=pathlib.Path, help='receives those of the last run')
    args, changes = parser.parse_known_args()
    experiment = ['--config', str(args.tree / (args.config or CONFIG)), *(() if args.config else SMALL), *changes]
    with tempfile.TemporaryDirectory() as directory:
        for cache in args.caches:
            emit(cache, **run(args.tree, pathlib.Path(directory), cache, experiment, args.steps))
            if args.trajectories:
                shutil.copy(pathlib.Path(directory) / cache / 'trajectories.jsonl', args.trajectories)


def run(tree: pathlib.Path, directory: pathlib.Path, name: str, experiment: list[str], steps: int) -> dict:
    """What a new process took; its cache of compiled programs is that of the directory."""
    workdir = directory / name
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(directory / 'compiled'), 'JAX_LOG_COMPILES': '1'}
    command = [sys.executable, '-m', 'launch.train', *experiment, f'--workdir={workdir}', f'--config.rl.steps={steps}']
    command += ['--config.evaluation.questions=0', '--config.run.trajectories=1000']
    began, ends, compiled, said = time.perf_counter(), [], [], []
    environment['PYTHONPATH'] = str(tree)
    process = subprocess.Popen(command, cwd=tree, env=environment, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        said.append(line)
        if STEP_DONE.match(line):
            ends.append(time.perf_counter() - began)
        elif (found := COMPILED.search(line)) and not ends:
            compiled.append(float(found[1]))
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or len(ends) != steps:
        sys.exit(f'the {name} run failed: {"".join(said[-20:])}')
    later = statistics.median(b - a for a, b in itertools.pairwise(ends))
    trained = [row for row in rows(workdir / 'metrics.jsonl') if 'speed/update_seconds' in row and row['step'] > 1]
    sampled = [row['action_tokens'] for row in rows(workdir / 'trajectories.jsonl') if row['step'] > 1]
    parts = 'rollout_seconds', 'update_seconds'
    return {
        'seconds': ends[0] - later,
        'first': ends[0],
        'step': later,
        **{part: statistics.median(row[f'speed/{part}'] for row in trained) for part in parts},
        'compiled': len(compiled),
        'compile_seconds': sum(compiled),
        'peak_gib': used.ru_maxrss / 2**20,
        'searches': statistics.mean(row['rollout/searches'] for row in trained),
        'sampled': statistics.mean(sampled),
    }


def rows(path: pathlib.Path) -> list[dict]:
    return list(map(json.loads, path.read_text().splitlines()))


def emit(cache: str, **taken: float):
    figures = {name: round(value, 2) for name, value in taken.items()}
    where = {'device': device(), 'cores': os.cpu_count(), 'jax': importlib.metadata.version('jax')}
    print(json.dumps({'name': f'start-up, {cache} cache', **figures, **where}), flush=True)


if __name__ == '__main__':
    main()
