"""Runs the benchmarks one after the other, each in a process of its own, and collects their JSON lines.

  python -m benchmarks.all --out benchmarks/results/cpu.jsonl
  python -m benchmarks.table benchmarks/results/cpu.jsonl

Nothing else should run on the machine meanwhile: every line carries the load that it was measured under.
"""

import argparse
import pathlib
import subprocess
import sys
import time

PROGRAMS = ('decode', 'update', 'search_step', 'startup')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    parser.add_argument('--only', nargs='+', default=PROGRAMS, choices=PROGRAMS)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for program in args.only:
        print(f'{time.strftime("%H:%M:%S")} benchmarks.{program}', file=sys.stderr)
        command = [sys.executable, '-m', f'benchmarks.{program}']
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        with args.out.open('a') as file:
            file.write(done.stdout)
        if done.returncode:
            sys.exit(f'benchmarks.{program} failed with {done.returncode}; the lines before are in {args.out}')


if __name__ == '__main__':
    main()
