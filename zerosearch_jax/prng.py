"""The only place where random keys are derived: randomness is a function of identity, never of schedule.

A sampled token depends on (seed, step, question, sample, turn, stream) through its row key and on its position in
the sequence, so that slot numbers, batch sizes, mesh shapes and arrival order cannot change it.
"""

import hashlib

import jax
import numpy as np

STREAMS = ('policy', 'simulator', 'curriculum', 'evaluation', 'data')


def _digest(stream: str, *identity: int | str) -> bytes:
    if stream not in STREAMS:
        raise ValueError(f'unknown random stream {stream!r}; known: {", ".join(STREAMS)}')
    if any(type(part) not in (int, str) for part in identity):
        raise TypeError(f'identities are made of int and str, got {identity!r}')  # np.int64(1) has another repr
    # repr keeps 1 and '1', and ('ab', 'c') and ('a', 'bc'), apart
    return hashlib.sha256(repr((stream, *identity)).encode()).digest()


def row_key(stream: str, *identity: int | str) -> np.ndarray:
    """Raw threefry key data, uint32 [2], of one generation, e.g. row_key('policy', seed, step, question_id, sample)."""
    return np.frombuffer(_digest(stream, *identity)[:8], np.uint32)


def uniform(stream: str, *identity: int | str) -> float:
    """One host-side number in [0, 1), with 53 random bits."""
    return (int.from_bytes(_digest(stream, *identity)[:8], 'little') >> 11) / 2**53


def position_uniforms(keys_Bx2: jax.Array, positions_B: jax.Array) -> jax.Array:
    """One uniform number in [0, 1) for each row, float32 [B], from its key and the position of the token to sample."""

    def one(key_data, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key_data, impl='threefry2x32'), position))

    return jax.vmap(one)(keys_Bx2, positions_B)
