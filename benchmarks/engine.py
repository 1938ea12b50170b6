"""Decode and prefill speed of the real SmolLM2-135M: the engine's two programs on a full set of slots.

python -m benchmarks.engine
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import emit
from zerosearch_jax import roles, sharding
from zerosearch_jax.generate import step
from zerosearch_jax.models import cache as kv
from zerosearch_jax.text import stop

SLOTS, CAPACITY, STEPS, REPEATS = 16, 768, 16, 3


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 40_000, shape).astype(np.int32)


def seconds(function) -> float:
    """The fastest of a few calls, the first one (compilation) left out."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def main():
    mesh = sharding.make_mesh()
    jax.set_mesh(mesh)
    model = roles.load_model('smollm2-135m-instruct', mesh)
    params = step.serving_layout(model.params, dtype=jnp.float32)
    cache = kv.create(model.cfg, mesh, SLOTS, CAPACITY)
    table = stop.compile_table(('</search>', '</answer>'), model.token_bytes)
    rows, width = 8, 128

    def extend():
        nonlocal cache
        slots, starts, counts = np.arange(rows, dtype=np.int32), np.full(rows, 100), np.full(rows, width)
        cache = step.extend(
            params, cache, slots, random_tokens(rows, width), starts, counts, cfg=model.cfg, dtype='float32'
        )
        jax.block_until_ready(cache)

    def decode(span: int):
        nonlocal cache
        state = step.idle_rows(SLOTS).replace(
            length=np.full(SLOTS, 150, np.int32), pending=random_tokens(SLOTS), budget=np.full(SLOTS, 100, np.int32)
        )
        cache, *rest = step.decode(
            params,
            cache,
            state,
            jnp.asarray(table.table),
            np.float32(1),
            cfg=model.cfg,
            dtype='float32',
            steps=STEPS,
            span=span,
            eos_ids=(),
            first_accept=table.first_accept,
        )
        jax.block_until_ready(rest)

    emit('prefill', rows=rows, width=width, tokens_per_second=rows * width / seconds(extend))
    for span in (256, 768):
        took = seconds(lambda span=span: decode(span))
        emit('decode', slots=SLOTS, span=span, ms_per_step=1e3 * took / STEPS, tokens_per_second=SLOTS * STEPS / took)


if __name__ == '__main__':
    main()
