"""Fixed-length generation through the engine: a prompt of 256 tokens, then exactly 128 new ones, for several batches.

python -m benchmarks.decode
python -m benchmarks.decode --batches 64 --calls 16 64 1     # and what a call and a token take

Limits: a decode step must read the weights and every row's cache, and multiply every row by the weights. On CPU one
core does both, at batch 64 one after the other; `share` is the measured rate over the rate of that limit.
Prefill is what the first call takes longer than those that only decode.
"""

import statistics
import time

import jax
import numpy as np

from benchmarks import common
from zerosearch_jax import sharding
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.models import transformer
from zerosearch_jax.text import stop


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 16, 64])
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    parser.add_argument('--capacity', type=int, default=0, help='tokens of a slot; 0: prompt and new ones')
    parser.add_argument('--calls', type=int, nargs='+', default=[16], help='tokens a call; the first one is reported')
    args = parser.parse_args()
    args.calls = [min(steps, args.new // 2) for steps in args.calls]  # the first one also prefills the prompts
    mesh = sharding.make_mesh()
    model = common.load_model(args.model, mesh, args.dtype)
    for batch in args.batches:
        with common.guarded(name('decode', batch, args)):
            found = {}
            for steps in args.calls:
                found[steps] = [generate(model, mesh, args, batch, steps) for _ in range(args.repeats + 1)][1:]
                if len(found) == 1:
                    report(model.cfg, args, batch, *map(list, zip(*found[steps], strict=True)))
            if len(found) > 1:
                times = {steps: [s for _, calls in runs for s in calls] for steps, runs in found.items()}
                common.emit(f'{name("decode", batch, args)}, of calls', model=args.model, **fit(times))


def name(what: str, batch: int, args) -> str:
    return f'{what}, batch {batch}' + (f', capacity {args.capacity}' if args.capacity else '')


def generate(model, mesh, args, batch: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of the first call, which also prefills the prompts, and of every later one."""
    slots = Slots(
        model.cfg,
        mesh,
        [Role(batch)],
        capacity=args.capacity or args.prompt + args.new,
        stop=stop.compile_table((), model.token_bytes),
        eos_ids=(),
        decode_steps=steps,
        dtype=args.dtype,
    )
    engine = Engine(slots)
    engine.load(model.params)
    prompts, seconds = common.random_tokens(model.cfg, batch, args.prompt), []
    for row in range(batch):
        engine.open(Request(row, tuple(prompts[row].tolist()), np.array([0, row], np.uint32), args.new))
    jax.block_until_ready(jax.live_arrays())  # the engine's copy of the weights
    while engine.active:
        began = time.perf_counter()
        engine.step()  # returns what it sampled
        seconds.append(time.perf_counter() - began)
    assert engine.decoded_tokens == batch * args.new
    return seconds[0], seconds[1:]


def report(cfg, args, batch: int, first: list[float], later: list[list[float]]):
    steps, new = args.calls[0], args.new - args.calls[0]
    decode, prefill = (
        [sum(calls) for calls in later],
        [max(a - min(calls), 1e-6) for a, calls in zip(first, later, strict=True)],
    )
    limits, context = common.limits(args.dtype), args.prompt + (steps + args.new) / 2
    weights = transformer.num_parameters(cfg) * np.dtype(args.dtype).itemsize
    reading = (weights + batch * context * common.cache_bytes(cfg, args.dtype)) / limits['gbs']
    computing = batch * common.forward_flops(cfg, context) / limits['gflops']
    floor = 1e-9 * (reading + computing if batch >= 64 else max(reading, computing))  # seconds a step
    rate = [batch * new / seconds for seconds in decode]
    writing = common.forward_flops(cfg, args.prompt / 2, head=False) / limits['gflops']
    common.emit(
        name('decode', batch, args),
        model=args.model,
        tokens_per_second=common.spread(rate),
        with_prefill=common.spread([batch * args.new / (a + b) for a, b in zip(first, decode, strict=True)]),
        share=common.spread([r * floor / batch for r in rate]),
        of_bandwidth=common.spread([1e-9 * r * reading / batch for r in rate]),
        limits=limits,
    )
    common.emit(
        name('prefill', batch, args),
        model=args.model,
        tokens_per_second=common.spread([batch * args.prompt / seconds for seconds in prefill]),
        share=common.spread([1e-9 * batch * args.prompt * writing / seconds for seconds in prefill]),
        limits=limits,
    )


def fit(times: dict[int, list[float]]) -> dict[str, float]:
    """Milliseconds of a call and of a token in it, by least squares over {tokens a call: seconds of each call}."""
    tokens, seconds = (np.array(x) for x in zip(*((n, s) for n, own in times.items() for s in own), strict=True))
    # errors grow with a call, and a call of many tokens is timed few times
    weights = np.array([1 / (statistics.median(own) * len(own) ** 0.5) for own in times.values() for _ in own])
    terms = np.stack([np.ones(len(tokens)), tokens], 1)
    call, token = np.linalg.lstsq(terms * weights[:, None], seconds * weights, rcond=None)[0]
    return {'call_ms': max(1e3 * float(call), 0.0), 'token_ms': max(1e3 * float(token), 0.0)}


if __name__ == '__main__':
    main()
