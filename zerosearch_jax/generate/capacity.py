"""How large a cache is made: slots that fit in memory, and the few shapes that programs are compiled for."""

import jax

from zerosearch_jax import sharding
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import ModelConfig

# slots on each part of the mesh that one call of `extend` writes: a few sizes bound the number of compiled programs
EXTEND_ROWS = (1, 2, 4, 8)
EXTEND_WIDTH = 128  # tokens a slot in one call
SPAN_STEP = 128  # decode reads the cache up to this many positions, or twice as many, four times: see `decode_span`
# where no more than slots / 4, or / 2, decode, only so many rows are computed; not half of them on accelerators, whose
# steps take nearly as long and whose programs take long to compile
SHARES = {'cpu': (4, 2), 'accelerator': (4,)}


def rounded_capacity(capacity: int) -> int:
    """Tokens of a slot that is to hold so many."""
    return -(-capacity // SPAN_STEP) * SPAN_STEP


def decode_span(length: int, capacity: int) -> int:
    """Cache positions that decode reads for rows of up to `length`: doubled steps, so that few programs are made."""
    steps = -(-length // SPAN_STEP)
    return min(SPAN_STEP << (steps - 1).bit_length(), capacity)


def slots_that_fit(cache_bytes: int, cfg: ModelConfig, mesh: jax.sharding.Mesh, capacity: int, dtype) -> int:
    """Slots that fit so many bytes of each device, with room for the copy that decoding makes of a part of them.

    Raises:
      ValueError: not even one does.
    """
    one = kv.slot_bytes(cfg, mesh, 2 * rounded_capacity(capacity) - SPAN_STEP, dtype)
    slots = cache_bytes // one * sharding.shard_count('batch', mesh)
    if not slots:
        raise ValueError(
            f'no slot of {capacity} tokens fits {cache_bytes / 2**30:.3g} GiB: it needs {one / 2**30:.3g} GiB'
        )
    return slots


def extend_rows(parts: int) -> tuple[int, ...]:
    """The numbers of rows a part that `extend` is compiled for, where the slots lie on so many parts of the mesh."""
    return tuple(rows for rows in EXTEND_ROWS if rows == 1 or rows * parts <= EXTEND_ROWS[-1])
