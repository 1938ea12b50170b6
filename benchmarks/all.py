"""Runs the benchmarks one after the other, each in a process of its own, and collects their JSON lines.

  python -m benchmarks.all --out benchmarks/results/cpu.jsonl
  python -m benchmarks.table benchmarks/results/*.jsonl

Nothing else should run on the machine meanwhile: every line carries the load that it was measured under. Other
flags go to every program: `--only decode --model tiny`.
"""

import argparse
import json
import pathlib
import sys
import time

from benchmarks.machine import figures

PROGRAMS = ('decode', 'update', 'search_step', 'startup', 'compile_time')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    parser.add_argument('--only', nargs='+', default=PROGRAMS, choices=PROGRAMS)
    args, flags = parser.parse_known_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for program in args.only:
        print(f'{time.strftime("%H:%M:%S")} benchmarks.{program} {" ".join(flags)}', file=sys.stderr)
        for line in figures([sys.executable, '-m', f'benchmarks.{program}', *flags]):
            with args.out.open('a') as file:
                file.write(json.dumps(line) + '\n')


if __name__ == '__main__':
    main()
