"""The size of the cache: slots that fit in memory, and the few shapes for which programs are compiled."""

from typing import NamedTuple

import jax

from zerosearch_jax import sharding
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import ModelConfig

STEP = 128  # tokens; the capacity of a slot is a multiple of it
EXTEND_ROWS = 8  # the most slots of one call of `extend` on accelerators
SHORT_SPAN = 1024  # cache positions that this call reads if no slot is longer
LEAST_ROWS = 8
MOST_ROWS = 16  # the most slots of a `decode` call on CPU; 32 took 1.8 times as long, and usually fewer are active
CACHE_SHARE = 1 / 3  # share of a device's memory; weights, optimizer and the update take the rest
FORK_ROWS = 8  # slots of each part of the mesh that one call of `fork` copies


class Shapes(NamedTuple):
    """The shapes for which `extend` and `decode` are compiled: each is a program, and there are few."""

    width: int  # tokens of a row of `extend`
    extend: tuple[tuple[int, int], ...]  # rows of each part of the mesh, and positions that are read; the largest last
    decode: tuple[tuple[int, int], ...]  # the same for `decode`; (): all slots in place, each up to its length


def shapes(mesh: jax.sharding.Mesh, rows: int, capacity: int) -> Shapes:
    """The shapes for slots of which about `rows` decode at once.

    An accelerator computes several rows in the time of one, and its programs take long to compile. On CPU every row and
    every position that is read takes time: a program with few rows reads whole slots, one with twice as many rows a
    part of them, and one with again twice as many the half of a slot that most rows never exceed.
    """
    parts = sharding.shard_count('batch', mesh)
    if mesh.devices.flat[0].platform == 'cpu' and parts == 1:
        rows = min(rows, MOST_ROWS)
        parts_of = (1, 2), (2, 3), (4, 4)  # of the rows, and quarters of the capacity
        decode = {(-(-rows // n), rounded_capacity(capacity * quarters // 4)) for n, quarters in parts_of}
        return Shapes(64, ((4, capacity),), tuple(sorted(decode)))
    spans = sorted({min(SHORT_SPAN, capacity), capacity})
    return Shapes(128, tuple((max(EXTEND_ROWS // parts, 1), span) for span in spans), ())


def slot_count(mesh: jax.sharding.Mesh, wanted: int) -> int:
    """The number of slots to make if `wanted` are needed: on accelerators at least 8, whose products are fast."""
    parts = sharding.shard_count('batch', mesh)
    return wanted if mesh.devices.flat[0].platform == 'cpu' else max(wanted, -(-LEAST_ROWS // parts) * parts)


def rounded_capacity(capacity: int) -> int:
    """The capacity of a slot that has to hold `capacity` tokens."""
    return -(-capacity // STEP) * STEP


def cache_gib(mesh: jax.sharding.Mesh) -> float:
    """The default GiB of each device for the caches of a run; 0 on CPU: no limit."""
    stats = sharding.from_first_process(mesh.local_devices[0].memory_stats() or {})
    return CACHE_SHARE * stats.get('bytes_limit', 0) / 2**30


def slots_that_fit(cache_bytes: int, cfg: ModelConfig, mesh: jax.sharding.Mesh, capacity: int, dtype) -> int:
    """Slots that fit into `cache_bytes` of each device, with room for the copy that decode makes of a part of them.

    Raises:
      ValueError: not even one fits.
    """
    one = kv.slot_bytes(cfg, mesh, 2 * rounded_capacity(capacity) - STEP, dtype)
    slots = cache_bytes // one * sharding.shard_count('batch', mesh)
    if not slots:
        raise ValueError(
            f'no slot of {capacity} tokens fits {cache_bytes / 2**30:.3g} GiB: it needs {one / 2**30:.3g} GiB'
        )
    return slots
