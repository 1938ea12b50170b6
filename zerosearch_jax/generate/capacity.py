"""How large a cache is made: slots that fit in memory, and the few shapes that programs are compiled for."""

from typing import NamedTuple

import jax

from zerosearch_jax import sharding
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import ModelConfig

STEP = 128  # a slot's capacity is a multiple of it
EXTEND_ROWS = 8  # slots that one call of `extend` writes at most, on accelerators
SHORT_SPAN = 1024  # positions that it reads there where no slot has more
LEAST_ROWS = 8
CACHE_SHARE = 1 / 3  # of a device's memory; weights, optimizer and what an update needs take the rest
FORK_ROWS = 8  # slots of each part of the mesh that one call of `fork` copies


class Shapes(NamedTuple):
    """The shapes that `extend` and `decode` are compiled for: each a program, of which there are few."""

    width: int  # tokens of a row of `extend`
    extend: tuple[tuple[int, int], ...]  # rows of each part of the mesh, and positions that are read; the largest last
    decode: tuple[tuple[int, int], ...]  # the same of `decode`; (): all slots in place, each up to its length


def shapes(mesh: jax.sharding.Mesh, rows: int, capacity: int) -> Shapes:
    """The shapes for slots of which about `rows` decode at once.

    An accelerator computes some rows in the time of one, and its programs take long to compile. On CPU a row has its
    price, and so has every position that is read: for half of the rows, and for two thirds of a slot, there is a
    program more.
    """
    parts = sharding.shard_count('batch', mesh)
    if mesh.devices.flat[0].platform == 'cpu' and parts == 1:
        few, most = -(-rows // 2), (rows, capacity)
        decode = {(few, capacity), (rows, rounded_capacity(2 * capacity // 3)), most}
        return Shapes(64, ((4, capacity),), tuple(sorted(decode)))
    spans = sorted({min(SHORT_SPAN, capacity), capacity})
    return Shapes(128, tuple((max(EXTEND_ROWS // parts, 1), span) for span in spans), ())


def slot_count(mesh: jax.sharding.Mesh, wanted: int) -> int:
    """Slots that are made where so many are wanted: on accelerators fewer than 8 rows would not be matrix products."""
    parts = sharding.shard_count('batch', mesh)
    return wanted if mesh.devices.flat[0].platform == 'cpu' else max(wanted, -(-LEAST_ROWS // parts) * parts)


def rounded_capacity(capacity: int) -> int:
    """Tokens of a slot that is to hold so many."""
    return -(-capacity // STEP) * STEP


def cache_gib(mesh: jax.sharding.Mesh) -> float:
    """GiB of each device that the caches of a run may take where nobody says it; 0 on CPU: no limit."""
    stats = mesh.devices.flat[0].memory_stats() or {}
    return CACHE_SHARE * stats.get('bytes_limit', 0) / 2**30


def slots_that_fit(cache_bytes: int, cfg: ModelConfig, mesh: jax.sharding.Mesh, capacity: int, dtype) -> int:
    """Slots that fit so many bytes of each device, with room for the copy that decoding makes of a part of them.

    Raises:
      ValueError: not even one does.
    """
    one = kv.slot_bytes(cfg, mesh, 2 * rounded_capacity(capacity) - STEP, dtype)
    slots = cache_bytes // one * sharding.shard_count('batch', mesh)
    if not slots:
        raise ValueError(
            f'no slot of {capacity} tokens fits {cache_bytes / 2**30:.3g} GiB: it needs {one / 2**30:.3g} GiB'
        )
    return slots
