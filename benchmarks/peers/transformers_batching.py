"""Fixed-length generation with the continuous batching of transformers, beside what the device can do by torch.

python -m benchmarks.peers.transformers_batching --weights DIRECTORY --batch 64
"""

import itertools

import torch
from transformers import GenerationConfig

from benchmarks.peers import common, torch_model


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    args = parser.parse_args()
    model, measured = torch_model.load(args.weights).eval(), limits()
    ends = {'eos_token_id': -1, 'pad_token_id': 0}  # nothing ends a row
    cfg = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ends)
    seeds = itertools.count()  # prompts that were seen before would not be read again

    def call(new: int) -> float:
        rows = torch_model.random_rows(model, args.batch, args.prompt, next(seeds))

        def generate():
            done = model.generate_batch(rows, cfg, max_new_tokens=new, persistent_manager=True)
            assert [len(row.generated_tokens) for row in done.values()] == [new] * args.batch

        return common.seconds(generate)

    call(args.new)  # sizes the cache, makes its graphs
    prefill = [call(1) for _ in range(args.repeats)]
    whole = [call(args.new) for _ in range(args.repeats)]
    common.emit_decode(args.batch, args.new, whole, prefill, 'torch', 'transformers', limits=measured)
    model.destroy_cached_continuous_batching_manager()


def limits() -> dict[str, float]:
    """Matrix products and reading of memory, as benchmarks.common.limits has them by JAX."""
    on_gpu = torch_model.DEVICE == 'cuda'
    n, numbers = (8192, 2**30) if on_gpu else (2048, 2**27)
    place = {'device': torch_model.DEVICE}
    x, array = torch.randn(n, n, dtype=torch_model.DTYPE, **place), torch.ones(numbers, **place)

    def best(function) -> float:
        return min(common.seconds(lambda: function().flatten()[0].item()) for _ in range(6))  # waits for it

    return {'gflops': 2e-9 * n**3 / best(lambda: x @ x), 'gbs': 4e-9 * numbers / best(array.sum)}


if __name__ == '__main__':
    main()
