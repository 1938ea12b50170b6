"""Fixed-length generation with tunix's own sampler: prompts of random ids, then exactly `--new` tokens a row.

python -m benchmarks.peers.tunix_decode --weights .venv-peers/smollm2 --batch 16
"""

import itertools

import numpy as np
from tunix.generate import sampler as sampling

from benchmarks.peers import common, tunix_model


class RowTokenizer:
    """The sampler takes only text: the text 'i' stands for row i of a table of ids."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows.tolist()

    def encode(self, text: str, **_) -> list[int]:
        return self.rows[int(text)]

    def decode(self, ids, **_) -> str:
        return ''

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return 2

    def pad_id(self) -> int:
        return 0


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    args = parser.parse_args()
    model, cfg, _ = tunix_model.load(args.weights)
    rows = np.random.default_rng(0).integers(1, cfg.vocab_size - 1, (args.batch, args.prompt))
    cache = sampling.CacheConfig(args.prompt + args.new + 8, cfg.num_layers, cfg.num_kv_heads, cfg.head_dim)
    sampler = sampling.Sampler(model, RowTokenizer(rows), cache)
    seeds = itertools.count()

    def generate(new: int):
        done = sampler(
            [str(row) for row in range(args.batch)],
            max_generation_steps=new,
            max_prompt_length=args.prompt,
            temperature=1.0,
            top_p=1.0,  # without it, decoding is greedy
            seed=next(seeds),
            eos_tokens=[-1],
        )
        assert all(len(tokens) == new for tokens in done.tokens)

    def calls(new: int) -> list[float]:
        return [common.seconds(lambda: generate(new)) for _ in range(args.repeats + 1)][1:]  # the first one compiles

    common.emit_decode(args.batch, args.new, calls(args.new), calls(1), 'google-tunix', 'jax')


if __name__ == '__main__':
    main()
