"""Whether a run of the working tree leaves the same files as a run of another commit, bit for bit.

  python -m benchmarks.same_results bead730
  python -m benchmarks.same_results bead730 --config configs/quickstart.py --config.evaluation.questions=4

For changes that move or rename code and must not change results. Both runs make two steps, one after the other, in the
same Python environment. Times, and what is computed from them, are left out of the comparison.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
from safetensors import safe_open

from benchmarks.machine import ROOT

TIMES = ('speed/', 'seconds', 'device_dollars')  # what holds any of these in its name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('commit')
    parser.add_argument('--config', default='configs/tiny.py')
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch, worktree(args.commit) as other:
        runs = [pathlib.Path(scratch) / name for name in ('before', 'now')]
        for tree, workdir in zip((other, ROOT), runs, strict=True):
            run(tree, workdir, args.config, overrides)
        found = [contents(workdir) for workdir in runs]
    names = sorted(found[0].keys() | found[1].keys())
    different = [name for name in names if not same(*(each.get(name) for each in found))]
    for name in names:
        print(f'{"DIFFERENT" if name in different else "the same"}  {name}')
    sys.exit(1 if different or not names else 0)


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[pathlib.Path]:
    """The files of a commit, as long as they are needed."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = pathlib.Path(scratch) / 'tree'
        subprocess.run(['git', 'worktree', 'add', '--detach', '-q', str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(['git', 'worktree', 'remove', '--force', str(tree)], cwd=ROOT, check=True)


def run(tree: pathlib.Path, workdir: pathlib.Path, config: str, overrides: list[str]):
    command = [sys.executable, '-m', 'launch.train', '--config', config, '--workdir', str(workdir)]
    environment = os.environ | {'PYTHONPATH': str(tree)}
    subprocess.run([*command, '--config.rl.steps=2', *overrides], cwd=tree, env=environment, check=True)


def contents(workdir: pathlib.Path) -> dict:
    """What a run left, by file: rows without times, and every array of the state and of the weights."""
    import orbax.checkpoint as ocp

    found = {path.name: timeless(json.loads(path.read_text())) for path in workdir.glob('*.json')}
    found['summary.json'].get('cost', {}).pop('text', None)  # tells the time too
    for path in workdir.rglob('*.jsonl'):
        found[str(path.relative_to(workdir))] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    for path in workdir.rglob('*.safetensors'):
        with safe_open(path, framework='np') as file:  # the order of its header differs from time to time
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found[str(path.relative_to(workdir))] = tensors | {'': file.metadata()}
    newest = max((workdir / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as checkpointer:
        found['checkpoint, state'] = checkpointer.restore(newest.absolute() / 'state')
    found['checkpoint, host'] = timeless(json.loads((newest / 'host' / 'metadata').read_text()))
    return found


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not any(word in key for word in TIMES)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def same(a, b) -> bool:
    """Equal, arrays bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, 'shape') and hasattr(b, 'shape'):
        return np.asarray(a).dtype == np.asarray(b).dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return type(a) is type(b) and a == b


if __name__ == '__main__':
    main()
