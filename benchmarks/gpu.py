"""The benchmarks on one GPU of 80 GB, in about ten minutes: configurations of 1.5B and 3B, bfloat16, contexts to 4k.

  python -m benchmarks.gpu --out benchmarks/results/gpu.jsonl
  python -m benchmarks.table benchmarks/results/*.jsonl

Weights are random: no model is downloaded.
"""

import argparse
import pathlib

from benchmarks.all import run

BF16 = ('--dtype', 'bfloat16', '--repeats', '2')
RUNS = (
    ('decode', '--model', 'qwen2.5-1.5b', '--batches', '1', '16', '64', '256', *BF16),
    ('update', '--model', 'qwen2.5-1.5b', '--length', '4096', '--row', '4096', '--remat', 'full', *BF16),
    ('decode', '--model', 'qwen2.5-3b', '--batches', '64', *BF16),
    ('update', '--model', 'qwen2.5-3b', '--length', '4096', '--row', '4096', '--remat', 'full', *BF16),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for program, *flags in RUNS:
        run(args.out, program, *flags)


if __name__ == '__main__':
    main()
