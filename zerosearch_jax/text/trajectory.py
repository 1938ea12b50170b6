"""Trajectories of typed segments, and their packing into the batch that the learner sees.

Tokens are append-only: what the policy sampled is what the loss sees, id for id. Masks come from the type of a
segment, never from the value of an id, so a padding id that equals an end-of-sequence id does no harm.

    question 7, sample 2   [ PROMPT ........ | ACTION .... | OBSERVATION ........ | ACTION ... ]
    weight                   0 0 0 0 0 0 0 0   1 1 1 1 1 1   0 0 0 0 0 0 0 0 0 0   1 1 1 1 1

In a row, the samples of a question share one copy of their prompt. It ends before the prompt's last token, which every
sample keeps: its first action token is predicted from there.

    row         [ p p p p p | p a a a o o a a | p a a a a | padding ]
    segments      1 1 1 1 1   2 2 2 2 2 2 2 2   3 3 3 3 3   0 0 0
    prefixes      1 1 1 1 1   1 1 1 1 1 1 1 1   1 1 1 1 1   0 0 0     a token attends to its segment and its prefix
    positions     0 1 2 3 4   5 6 7 8 ...       5 6 7 8 9   0 0 0
"""

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
    logprobs: tuple[float, ...] = ()  # the engine's; for actions only


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """One trajectory or demonstration, ready to be packed: three aligned arrays of its length."""

    tokens: np.ndarray
    weights: np.ndarray
    logprobs: np.ndarray
    prefix: int = 0  # how many leading tokens equal sequences may share: the prompt without its last token


def flatten(segments: Sequence[Segment], observations: float = 0.0) -> TokenSequence:
    """Concatenates segments; the weight is 1 on actions, `observations` on observations, and 0 elsewhere.

    Observations were not sampled: if they have weight, their log-probs are NaN.
    """
    tokens, weights, logprobs = [], [], []
    for segment in segments:
        weight = {Kind.ACTION: 1.0, Kind.OBSERVATION: float(observations)}.get(segment.kind, 0.0)
        unsampled = float('nan') if weight and segment.kind is Kind.OBSERVATION else 0.0
        tokens += segment.tokens
        weights += [weight] * len(segment.tokens)
        logprobs += segment.logprobs or (unsampled,) * len(segment.tokens)
    prefix = len(segments[0].tokens) - 1 if segments[0].kind is Kind.PROMPT else 0
    return TokenSequence(
        np.array(tokens, np.int32), np.array(weights, np.float32), np.array(logprobs, np.float32), prefix
    )


def turns_of(segments: Sequence[Segment]) -> np.ndarray:
    """The turn of every sampled token, int [tokens]: the number of observations before it."""
    numbers = np.cumsum([segment.kind is Kind.OBSERVATION for segment in segments])
    return np.repeat(numbers, [len(s.tokens) if s.kind is Kind.ACTION else 0 for s in segments])


@flax.struct.dataclass
class Batch:
    """Packed rows. Every field is [N, T] (N rows of T tokens) or, in micro-batches, [M, R, T].

    Fields at index t belong to token t as the *target* that token t - 1 predicts.
    """

    tokens: jax.Array  # int32
    positions: jax.Array  # int32, position in its own sequence
    segments: jax.Array  # int32, number of the sequence or shared prefix in the row, from 1; 0 is padding
    prefixes: jax.Array  # int32, the other segment that it attends to; its own if nothing is shared
    weights: jax.Array  # float32, weight of the token in the loss; 0 on prompts, observations and padding
    advantages: jax.Array  # float32
    old_logprobs: jax.Array  # float32, under the policy that sampled
    ref_logprobs: jax.Array  # float32, under the frozen reference


@dataclasses.dataclass
class _Row:
    """Sequences of one row, grouped by the prefix that they share, and the number of free tokens."""

    room: int
    groups: dict[bytes, list[int]] = dataclasses.field(default_factory=dict)


def assign_rows(sequences: Sequence[TokenSequence], row_length: int) -> list[list[list[int]]]:
    """First-fit bin packing of groups with a common prefix, longest first: rows of groups of indices. Deterministic.

    A sequence goes to a row that already has its prefix, or else to the first row with room for both.

    Raises:
      ValueError: a sequence is longer than a row.
    """
    lengths = [len(s.tokens) for s in sequences]
    keys = [s.tokens[: s.prefix].tobytes() if s.prefix else b'alone %d' % i for i, s in enumerate(sequences)]
    longest = {}
    for key, length in zip(keys, lengths, strict=True):
        longest[key] = max(longest.get(key, 0), length)
    rows: list[_Row] = []
    for index in sorted(range(len(sequences)), key=lambda i: (-longest[keys[i]], keys[i], -lengths[i], i)):
        key, length, prefix = keys[index], lengths[index], sequences[index].prefix
        if length > row_length:
            raise ValueError(f'sequence {index} has {length} tokens, but a row holds {row_length}')
        row = next((r for r in rows if key in r.groups and r.room >= length - prefix), None)
        row = row or next((r for r in rows if r.room >= length), None)
        if row is None:
            row = _Row(row_length)
            rows.append(row)
        row.room -= length - prefix if key in row.groups else length
        row.groups.setdefault(key, []).append(index)
    return [list(row.groups.values()) for row in rows]


def pack(
    sequences: Sequence[TokenSequence],
    advantages: Sequence[float | np.ndarray],
    *,
    row_length: int,
    rows_per_micro: int,
    micro_batches: int = 0,
) -> Batch:
    """Packs sequences into micro-batches of rows; a sequence's advantage is copied to its weighted tokens.

    Args:
      sequences: at most `row_length` tokens each.
      advantages: for each sequence one number, or an array of its length.
      row_length: tokens in a row.
      rows_per_micro: rows in a micro-batch.
      micro_batches: pad with empty micro-batches to this number, so that one shape is compiled whatever the lengths
        are; the update skips empty ones. 0: as many as needed.

    Raises:
      ValueError: a sequence is longer than a row, or there are more rows than `micro_batches` hold.

    Returns:
      Batch of NumPy arrays [M, R, T].
    """
    rows = assign_rows(sequences, row_length)
    needed = max(-(-len(rows) // rows_per_micro), 1)
    if micro_batches and needed > micro_batches:
        raise ValueError(f'{len(rows)} rows do not fit {micro_batches} micro-batches of {rows_per_micro}')
    shape = ((micro_batches or needed) * rows_per_micro, row_length)
    batch = Batch(**{f.name: np.zeros(shape, _dtype(f.name)) for f in dataclasses.fields(Batch)})
    for r, groups in enumerate(rows):
        _fill(jax.tree.map(lambda x, r=r: x[r], batch), groups, sequences, advantages)
    return jax.tree.map(lambda x: x.reshape(-1, rows_per_micro, row_length), batch)


def _dtype(field: str):
    return np.int32 if field in ('tokens', 'positions', 'segments', 'prefixes') else np.float32


def _fill(
    row: Batch, groups: list[list[int]], sequences: Sequence[TokenSequence], advantages: Sequence[float | np.ndarray]
):
    """Writes groups of sequences, each behind the prefix that its members share, into the arrays [T] of one row."""
    end = number = 0
    for members in groups:
        prefix = sequences[members[0]].prefix if len(members) > 1 else 0
        parts = [(i, prefix, len(sequences[i].tokens)) for i in members]
        if prefix:
            parts.insert(0, (members[0], 0, prefix))
        first = number + 1
        for number, (index, begin, stop) in enumerate(parts, start=first):
            sequence, part, here = sequences[index], slice(begin, stop), slice(end, end + stop - begin)
            row.tokens[here] = sequence.tokens[part]
            row.positions[here] = np.arange(begin, stop)
            row.segments[here] = number
            row.prefixes[here] = first if prefix else number
            row.weights[here] = sequence.weights[part]
            advantage = np.broadcast_to(advantages[index], len(sequence.tokens))[part]
            row.advantages[here] = np.where(sequence.weights[part] > 0, advantage, 0.0)
            row.old_logprobs[here] = sequence.logprobs[part]
            end = here.stop


def padding_share(batch: Batch) -> float:
    """Share of padding among the tokens of rows that are not empty."""
    used = (batch.segments > 0).reshape(-1, batch.segments.shape[-1])
    used = used[used.any(-1)]
    return float(1 - used.mean()) if used.size else 0.0
