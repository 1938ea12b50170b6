"""The calls of an engine's programs with abstract arrays, to compile the programs before a run or to plan it."""

import concurrent.futures
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from zerosearch_jax import sharding
from zerosearch_jax.generate import programs
from zerosearch_jax.generate.capacity import FORK_ROWS, Shapes
from zerosearch_jax.models import cache as kv

THREADS = {'cpu': 1}  # compilations at once; 4 on other platforms. On CPU one already uses all cores


class Call(NamedTuple):
    """One program with its arguments."""

    name: str
    function: Callable  # jitted
    arguments: tuple
    options: Mapping


def calls(
    params: dict,
    cache: kv.KVCache,
    table: jax.ShapeDtypeStruct,
    shapes: Shapes,
    slots: int,
    mesh: jax.sharding.Mesh,
    model: Mapping,
    sampling: Mapping,
) -> Iterator[Call]:
    """Every call that slots can make.

    Args:
      params: in the serving layout.
      cache: of all slots.
      table: of the stop automaton.
      shapes: for which programs are compiled.
      slots: number of slots.
      mesh: of the weights.
      model: static arguments of all programs.
      sampling: further static arguments of `decode`.
    """
    parts = sharding.shard_count('batch', mesh)

    def numbers(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    for rows, span in shapes.decode or [(slots, cache.capacity)]:
        state = jax.tree.map(lambda x: numbers(*x.shape, dtype=x.dtype), programs.idle_rows(rows))
        arguments = params, cache, state, numbers(rows) if shapes.decode else None, table
        yield Call(f'decode {rows} rows to {span}', programs.decode, arguments, {**model, **sampling, 'span': span})
    for rows, span in shapes.extend:
        one, tokens = numbers(parts, rows), numbers(parts, rows, shapes.width)
        arguments = params, cache, one, tokens, one, one, one
        yield Call(f'extend {rows} rows to {span}', programs.extend, arguments, {**model, 'span': span})
    one = numbers(parts, FORK_ROWS)
    yield Call('fork', programs.fork, (cache, one, one), {})


def compile_in_threads(all_calls: Iterator[Call], mesh: jax.sharding.Mesh) -> concurrent.futures.Future:
    """Compiles the calls in the background; the result is ready when all are compiled, or raises the error.

    The first call is compiled alone: on GPUs it finds the fastest kernels, which the others reuse.
    """

    def compiled(call: Call):
        with jax.set_mesh(mesh):
            call.function.lower(*call.arguments, **call.options).compile()

    def run():
        first, *rest = all_calls
        compiled(first)
        with concurrent.futures.ThreadPoolExecutor(THREADS.get(mesh.devices.flat[0].platform, 4)) as pool:
            list(pool.map(compiled, rest))

    alone = concurrent.futures.ThreadPoolExecutor(1)
    future = alone.submit(run)
    alone.shutdown(wait=False)
    return future
