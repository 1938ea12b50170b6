"""Fixed-length generation through the engine: a prompt of 256 tokens, then exactly 128 new ones, for several batches.

python -m benchmarks.decode

Limits: a decode step must read the weights and every row's cache, and multiply every row by the weights. On CPU one
core does both, at batch 64 one after the other; `share` is the measured rate over the rate of that limit.
"""

import time

import jax
import numpy as np

from benchmarks import common
from zerosearch_jax import sharding
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.models import transformer
from zerosearch_jax.text import stop


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 16, 64])
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    args = parser.parse_args()
    mesh = sharding.make_mesh()
    model = common.load_model(args.model, mesh)
    for batch in args.batches:
        runs = [generate(model, mesh, args, batch) for _ in range(args.repeats + 1)][1:]
        report(model.cfg, args, batch, *map(list, zip(*runs, strict=True)))


def generate(model, mesh, args, batch: int) -> tuple[float, float]:
    """Seconds of writing the prompts and of decoding."""
    engine = Engine(
        model.cfg,
        mesh,
        slots=batch,
        capacity=args.prompt + args.new,
        stop=stop.compile_table((), model.token_bytes),
        eos_ids=(),
        dtype=args.dtype,
    )
    engine.load(model.params)
    prompts = common.random_tokens(model.cfg, batch, args.prompt)
    for row in range(batch):
        engine.open(Request(row, tuple(prompts[row].tolist()), np.array([0, row], np.uint32), args.new))
    jax.block_until_ready(engine._params)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        engine._run_forks(engine._admit())
        engine._flush_writes()
    jax.block_until_ready(engine._cache)
    prefilled = time.perf_counter()
    while engine.active:
        engine.step()
    ended = time.perf_counter()
    assert engine.decoded_tokens == batch * args.new
    return prefilled - began, ended - prefilled


def report(cfg, args, batch: int, prefill: list[float], decode: list[float]):
    limits, context = common.limits(args.dtype), args.prompt + args.new / 2
    weights = transformer.num_parameters(cfg) * np.dtype(args.dtype).itemsize
    reading = (weights + batch * context * common.cache_bytes(cfg, args.dtype)) / limits['gbs']
    computing = batch * common.forward_flops(cfg, context) / limits['gflops']
    floor = 1e-9 * (reading + computing if batch >= 64 else max(reading, computing))  # seconds a step
    rate = [batch * args.new / seconds for seconds in decode]
    writing = common.forward_flops(cfg, args.prompt / 2, head=False) / limits['gflops']
    common.emit(
        f'decode, batch {batch}',
        model=args.model,
        tokens_per_second=common.spread(rate),
        with_prefill=common.spread([batch * args.new / (a + b) for a, b in zip(prefill, decode, strict=True)]),
        share=common.spread([r * floor / batch for r in rate]),
        limits=limits,
    )
    common.emit(
        f'prefill, batch {batch}',
        model=args.model,
        tokens_per_second=common.spread([batch * args.prompt / seconds for seconds in prefill]),
        share=common.spread([1e-9 * batch * args.prompt * writing / seconds for seconds in prefill]),
        limits=limits,
    )


if __name__ == '__main__':
    main()
