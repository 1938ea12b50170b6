"""The benchmarks on one GPU of 80 GB, in about ten minutes: configurations of 1.5B and 3B, bfloat16, contexts to 4k.

  python -m benchmarks.gpu --out benchmarks/results/gpu.jsonl
  python -m benchmarks.table benchmarks/results/*.jsonl

Weights are random: no model is downloaded.
"""

import argparse
import pathlib

from benchmarks.all import run

MODELS = {'qwen2.5-1.5b': (1, 16, 64, 256), 'qwen2.5-3b': (64,)}  # the batches that each decodes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    parser.add_argument('--models', nargs='+', default=MODELS, help='presets; other ones need --batches')
    parser.add_argument('--batches', nargs='+', help='of decoding; without it those of this file')
    parser.add_argument('--length', default='4096', help='tokens of a row of the update')
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        flags = ('--model', model, '--dtype', 'bfloat16', '--repeats', '2')
        run(args.out, 'decode', '--batches', *map(str, args.batches or MODELS[model]), *flags)
        run(args.out, 'update', '--length', args.length, '--row', args.length, '--remat', 'full', *flags)


if __name__ == '__main__':
    main()
