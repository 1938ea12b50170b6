"""Trajectories of typed segments, and their packing into the batch that the learner sees.

Tokens are append-only: what the policy sampled is what the loss sees, id for id. Masks come from the type of a
segment, never from the value of an id, so a padding id that equals an end-of-sequence id does no harm.

    question 7, sample 2   [ PROMPT ........ | ACTION .... | OBSERVATION ........ | ACTION ... ]
    weight                   0 0 0 0 0 0 0 0   1 1 1 1 1 1   0 0 0 0 0 0 0 0 0 0   1 1 1 1 1
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import flax.struct
import jax
import numpy as np


class Kind(enum.IntEnum):
    """Who wrote a segment."""

    PROMPT = 0
    ACTION = 1  # sampled by the policy: the only tokens that carry loss
    OBSERVATION = 2  # search results and notices


@dataclasses.dataclass(frozen=True)
class Segment:
    kind: Kind
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()  # the engine's, of actions only


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """Packable view of one trajectory or demonstration: three aligned arrays of its length."""

    tokens: np.ndarray
    weights: np.ndarray
    logprobs: np.ndarray


def flatten(segments: Sequence[Segment]) -> TokenSequence:
    """Concatenates segments; the weight is 1 on actions and 0 elsewhere."""
    tokens, weights, logprobs = [], [], []
    for segment in segments:
        action = segment.kind is Kind.ACTION
        tokens += segment.tokens
        weights += [float(action)] * len(segment.tokens)
        logprobs += segment.logprobs or (0.0,) * len(segment.tokens)
    return TokenSequence(np.array(tokens, np.int32), np.array(weights, np.float32), np.array(logprobs, np.float32))


@flax.struct.dataclass
class Batch:
    """Packed rows. Every field is [N, T] (N rows, T tokens a row) or, in micro-batches, [M, R, T].

    Fields at index t belong to token t as the *target* that token t - 1 predicts.
    """

    tokens: jax.Array  # int32
    positions: jax.Array  # int32, position in its own sequence
    segments: jax.Array  # int32, which sequence of the row, from 1; 0 is padding
    weights: jax.Array  # float32, weight of the token in the loss; 0 on prompts, observations and padding
    advantages: jax.Array  # float32
    old_logprobs: jax.Array  # float32, under the policy that sampled
    ref_logprobs: jax.Array  # float32, under the frozen reference


def first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """First-fit-decreasing bin packing: rows of indices whose lengths sum to at most `row_length`. Deterministic."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > row_length:
            raise ValueError(f'sequence {index} has {length} tokens, but a row holds {row_length}')
        row = next((r for r, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(row_length)
            row = -1
        rows[row].append(index)
        room[row] -= length
    return rows


def pack(
    sequences: Sequence[TokenSequence],
    advantages: Sequence[float],
    *,
    row_length: int,
    rows_per_micro: int,
    micro_batches: int = 0,
) -> Batch:
    """Packs sequences into micro-batches of rows; a sequence's advantage is spread over its action tokens.

    Args:
      sequences: at most `row_length` tokens each.
      advantages: one a sequence.
      row_length: tokens a row.
      rows_per_micro: rows a micro-batch.
      micro_batches: pad with empty micro-batches to this number, so that one shape is compiled whatever the lengths;
        the update skips empty ones. 0: as many as needed.

    Raises:
      ValueError: a sequence is longer than a row, or there are more rows than `micro_batches` hold.

    Returns:
      Batch of NumPy arrays [M, R, T].
    """
    rows = first_fit([len(s.tokens) for s in sequences], row_length)
    needed = max(-(-len(rows) // rows_per_micro), 1)
    if micro_batches and needed > micro_batches:
        raise ValueError(f'{len(rows)} rows do not fit {micro_batches} micro-batches of {rows_per_micro}')
    shape = ((micro_batches or needed) * rows_per_micro, row_length)
    ints = {name: np.zeros(shape, np.int32) for name in ('tokens', 'positions', 'segments')}
    floats = {name: np.zeros(shape, np.float32) for name in ('weights', 'advantages', 'old_logprobs', 'ref_logprobs')}
    for r, members in enumerate(rows):
        start = 0
        for number, index in enumerate(members, start=1):
            sequence, end = sequences[index], start + len(sequences[index].tokens)
            ints['tokens'][r, start:end] = sequence.tokens
            ints['positions'][r, start:end] = np.arange(end - start)
            ints['segments'][r, start:end] = number
            floats['weights'][r, start:end] = sequence.weights
            floats['advantages'][r, start:end] = advantages[index] * (sequence.weights > 0)
            floats['old_logprobs'][r, start:end] = sequence.logprobs
            start = end
    batch = Batch(**ints, **floats)
    return jax.tree.map(lambda x: x.reshape(-1, rows_per_micro, row_length), batch)


def padding_share(batch: Batch) -> float:
    """Share of padding among the tokens of the rows that hold anything."""
    used = (batch.segments > 0).reshape(-1, batch.segments.shape[-1])
    used = used[used.any(-1)]
    return float(1 - used.mean()) if used.size else 0.0
