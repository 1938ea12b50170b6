"""Writes SmolLM2-135M-Instruct as a Hugging Face directory, for the peers to load.

python -m benchmarks.peers.export --out .venv-peers/smollm2
"""

import argparse
import pathlib

from benchmarks.common import MODEL
from zerosearch_jax import pretrained, sharding
from zerosearch_jax.weights import huggingface


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default=MODEL)
    parser.add_argument('--out', type=pathlib.Path, required=True)
    args = parser.parse_args()
    model = pretrained.load_model(args.model, sharding.make_mesh())
    args.out.mkdir(parents=True, exist_ok=True)
    model.tokenizer.save(args.out)
    huggingface.save(model.params, model.cfg, args.out)


if __name__ == '__main__':
    main()
