"""Runs the benchmarks one after the other, each in a process of its own, and collects their JSON lines.

  python -m benchmarks.all --out benchmarks/results/cpu.jsonl
  python -m benchmarks.table benchmarks/results/*.jsonl

Nothing else should run on the machine meanwhile: every line carries the load that it was measured under. Other
flags go to every program: `--only decode --model tiny`.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

# memory in pages of 2 MiB: without, a tenth of a large update is spent on page faults
HUGE_PAGES = 'glibc.malloc.hugetlb=1'
PROGRAMS = ('decode', 'update', 'search_step', 'startup', 'compile_time')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    parser.add_argument('--only', nargs='+', default=PROGRAMS, choices=PROGRAMS)
    args, flags = parser.parse_known_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for program in args.only:
        run(args.out, program, *flags)


def run(out: pathlib.Path, program: str, *flags: str):
    """Runs one program and appends its lines to `out`; exits with its name if it fails."""
    print(f'{time.strftime("%H:%M:%S")} benchmarks.{program} {" ".join(flags)}', file=sys.stderr)
    command = [sys.executable, '-m', f'benchmarks.{program}', *flags]
    environment = {'GLIBC_TUNABLES': HUGE_PAGES, **os.environ}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    with out.open('a') as file:
        file.write(done.stdout)
    if done.returncode:
        sys.exit(f'benchmarks.{program} failed with {done.returncode}; the lines before are in {out}')


if __name__ == '__main__':
    main()
