"""The same steps by two commits, alternately in one sitting: times, compilation, memory; one line a comparison.

  python -m benchmarks.old_new --old bead730 --out benchmarks/results/old_new.jsonl

Every run is a process of its own that begins with an empty compilation cache: `launch.train` on the `--config` of its
commit (or on one file, by its absolute path), without evaluations. Steps after the first are timed. Other flags go to
both: `--config.rl.kl=0`. A ratio above 1 says that the new commit is better. Nothing else should run meanwhile.
"""

import argparse
import collections
import json
import pathlib
import sys
import tempfile

from benchmarks.peers.run import Comparison, Figure, compare
from benchmarks.same_results import worktree
from benchmarks.startup import CONFIG, rows

FIGURES = {
    'a step': ('step', 's'),
    'a step, rollout': ('rollout_seconds', 's'),
    'a step, update': ('update_seconds', 's'),
    'compilation until the first step has ended': ('compile_seconds', 's'),
    'from the start until the first step has ended': ('first', 's'),
    'peak memory': ('peak_gib', 'GiB'),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--old', required=True, help='a commit')
    parser.add_argument('--new', default='HEAD', help='a commit')
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--steps', type=int, default=3, help='of a run, the first included')
    args, changes = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch, worktree(args.old) as old, worktree(args.new) as new:
        wrote = [pathlib.Path(scratch) / name for name in ('old', 'new')]
        command = [sys.executable, '-m', 'benchmarks.startup', '--caches', 'cold', '--steps', str(args.steps)]
        command += ['--config', args.config, *changes]
        first, second = (
            [[*command, '--tree', str(tree), '--trajectories', str(file)]]
            for tree, file in zip((old, new), wrote, strict=True)
        )
        title = pathlib.Path(args.config).stem
        figures = [Figure(f'{title}, {name}', 'start-up', *about) for name, about in FIGURES.items()]
        for line in compare(Comparison({'ours': second, args.old: first}, figures, args.rounds)):
            with args.out.open('a') as file:
                file.write(json.dumps(line | {'new': args.new, 'different': differences(*wrote)}) + '\n')


def differences(*files: pathlib.Path) -> dict[str, str]:
    """For each step, how many of its trajectories differ, token by token as far as the written rows show."""
    old, new = ({(row['step'], row['id'], row['sample']): told(row) for row in rows(file)} for file in files)
    both = old.keys() | new.keys()
    apart = collections.Counter(key[0] for key in both if old.get(key) != new.get(key))
    return {
        f'step {step}': f'{apart[step]} of {n}' for step, n in sorted(collections.Counter(k[0] for k in both).items())
    }


def told(row: dict) -> list:
    return [[segment.get(name) for name in ('kind', 'tokens', 'text', 'characters')] for segment in row['segments']]


if __name__ == '__main__':
    main()
