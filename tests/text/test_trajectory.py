"""Segments become sequences and packed rows without a token being lost, moved or masked by its value."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from zerosearch_jax.text.tokenizer import byte_tokenizer
from zerosearch_jax.text.trajectory import (
    Kind,
    Segment,
    TokenSequence,
    assign_rows,
    flatten,
    pack,
    padding_share,
    turns_of,
)

LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=20)


def random_sequences(lengths, seed=0):
    """Sequences whose tokens, weights and log-probs are all random; every token id differs from the others."""
    rng, first = np.random.default_rng(seed), 1
    sequences = []
    for length in lengths:
        tokens = np.arange(first, first + length, dtype=np.int32)
        weights = rng.choice([0.0, 0.5, 1.0], length).astype(np.float32)
        sequences.append(TokenSequence(tokens, weights, rng.normal(size=length).astype(np.float32)))
        first += length
    return sequences


def unpack(batch):
    """[{field: values}] of every sequence in a batch, found by its segment ids alone."""
    fields = {name: np.asarray(getattr(batch, name)).reshape(-1, batch.tokens.shape[-1]) for name in vars(batch)}
    found = []
    for r, segments in enumerate(fields['segments']):
        for number in range(1, segments.max(initial=0) + 1):
            found.append({name: values[r][segments == number] for name, values in fields.items()})
    return found


def test_flatten_gives_weight_to_actions_alone_in_order():
    sequence = flatten(
        [
            Segment(Kind.PROMPT, (5, 6)),
            Segment(Kind.ACTION, (7,), (-0.5,)),
            Segment(Kind.OBSERVATION, (8, 9)),
            Segment(Kind.ACTION, (10, 11), (-1.0, -2.0)),
        ]
    )
    assert sequence.tokens.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert sequence.weights.tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert sequence.logprobs.tolist() == [0, 0, -0.5, 0, 0, -1.0, -2.0]
    assert (sequence.tokens.dtype, sequence.weights.dtype, sequence.logprobs.dtype) == (np.int32, *[np.float32] * 2)


def test_masks_come_from_the_kind_even_where_pad_eos_and_action_ids_are_equal():
    tokenizer = byte_tokenizer()
    same = tokenizer.eos_ids[0]
    kinds = (Kind.PROMPT, Kind.ACTION, Kind.OBSERVATION, Kind.ACTION)
    for pad in (same, tokenizer.pad_id, 0):
        sequence = flatten([Segment(kind, (pad, pad)) for kind in kinds])
        assert sequence.weights.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
        batch = pack([sequence], [2.0], row_length=12, rows_per_micro=1)
        assert batch.segments[0, 0].tolist() == [1] * 8 + [0] * 4
        assert batch.advantages[0, 0].tolist() == [0, 0, 2, 2, 0, 0, 2, 2, 0, 0, 0, 0]


@hypothesis.given(LENGTHS, st.integers(24, 64), st.integers(1, 3), st.integers(0, 3))
def test_pack_keeps_every_token_once_with_all_its_fields(lengths, row_length, rows_per_micro, spare):
    sequences = random_sequences(lengths)
    advantages = np.random.default_rng(1).normal(size=len(lengths)).astype(np.float32)
    needed = pack(sequences, advantages, row_length=row_length, rows_per_micro=rows_per_micro).tokens.shape[0]
    batch = pack(
        sequences, advantages, row_length=row_length, rows_per_micro=rows_per_micro, micro_batches=needed + spare
    )
    assert batch.tokens.shape == (needed + spare, rows_per_micro, row_length)
    found = {part['tokens'][0]: part for part in unpack(batch)}
    assert len(found) == len(sequences) == len(unpack(batch))
    for sequence, advantage in zip(sequences, advantages, strict=True):
        part = found[sequence.tokens[0]]
        np.testing.assert_array_equal(part['tokens'], sequence.tokens)
        np.testing.assert_array_equal(part['positions'], np.arange(len(sequence.tokens)))
        np.testing.assert_array_equal(part['weights'], sequence.weights)
        np.testing.assert_array_equal(part['old_logprobs'], sequence.logprobs)
        np.testing.assert_array_equal(part['advantages'], np.where(sequence.weights > 0, advantage, 0))
        assert not part['ref_logprobs'].any()


@hypothesis.given(LENGTHS)
def test_padding_is_zero_in_every_field(lengths):
    batch = pack(random_sequences(lengths), [1.0] * len(lengths), row_length=30, rows_per_micro=2)
    padding = batch.segments == 0
    assert padding.sum() == batch.tokens.size - sum(lengths)
    assert not any(np.asarray(value)[padding].any() for value in vars(batch).values())


@hypothesis.given(LENGTHS)
def test_sequences_of_a_row_are_contiguous(lengths):
    batch = pack(random_sequences(lengths), [0.0] * len(lengths), row_length=40, rows_per_micro=1)
    for row in batch.segments.reshape(-1, 40):
        used = row[row > 0]
        assert (row[: len(used)] > 0).all()  # padding only at the end
        assert sorted(used) == used.tolist()
        assert set(used) == set(range(1, len(set(used)) + 1))


def rows_of(lengths, row_length):
    return [[i for group in row for i in group] for row in assign_rows(random_sequences(lengths), row_length)]


@hypothesis.given(st.lists(st.integers(0, 50), max_size=40), st.integers(50, 90))
def test_every_sequence_gets_one_row_and_no_row_is_exceeded(lengths, row_length):
    rows = rows_of(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums, default=0) <= row_length
    # any-fit: a row was opened only because nothing else had room, so no two rows could be one
    assert all(a + b > row_length for i, a in enumerate(sums) for b in sums[:i] if a and b)
    assert rows == rows_of(lengths, row_length)


def test_the_last_token_of_a_row_is_used():
    assert len(rows_of([5, 3, 2, 7, 3], 10)) == 2


def grouped_sequences(groups, seed=0):
    """Sequences [prompt of the group, response of its own]; groups: [(prompt length, response lengths)]."""
    rng, sequences = np.random.default_rng(seed), []
    for number, (prompt, responses) in enumerate(groups):
        head = Segment(Kind.PROMPT, tuple(range(1000 * number, 1000 * number + prompt)))
        for length in responses:
            action = tuple(int(i) for i in rng.integers(100_000, 900_000, length))
            sequences.append(flatten([head, Segment(Kind.ACTION, action, tuple(rng.normal(size=length)))]))
    return sequences


GROUPS = st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=6)), min_size=1)


@hypothesis.given(GROUPS, st.integers(24, 80))
def test_what_a_token_of_a_packed_row_sees_is_its_own_trajectory(groups, row_length):
    """Follows every sequence through segments, prefixes and order alone, as the attention mask does."""
    sequences = grouped_sequences(groups)
    batch = pack(sequences, np.arange(len(sequences)) + 1.0, row_length=row_length, rows_per_micro=1)
    expected = sorted((tuple(s.tokens), i + 1.0) for i, s in enumerate(sequences))
    found = []
    for row in range(len(batch.tokens)):
        tokens, segments, prefixes = (np.asarray(x)[row, 0] for x in (batch.tokens, batch.segments, batch.prefixes))
        for number in range(1, segments.max() + 1):
            last = np.flatnonzero(segments == number)[-1]
            if not batch.weights[row, 0, last]:
                continue  # a shared prefix
            sees = ((segments == number) | (segments == prefixes[last])) & (np.arange(row_length) <= last)
            found.append((tuple(tokens[sees]), float(batch.advantages[row, 0, last])))
            np.testing.assert_array_equal(batch.positions[row, 0][sees], np.arange(sees.sum()))
    assert sorted(found) == expected
    assert batch.weights.sum() == sum(s.weights.sum() for s in sequences)


def test_a_group_that_fits_a_row_holds_its_prompt_once():
    sequences = grouped_sequences([(257, [128] * 8)])
    batch = pack(sequences, np.ones(8), row_length=1288, rows_per_micro=1)
    assert batch.tokens.shape == (1, 1, 1288)
    assert padding_share(batch) == 0  # 256 + 8 x (1 + 128)
    assert not batch.weights[0, 0, :257].any()


def test_a_group_that_does_not_fit_holds_its_prompt_once_a_row():
    batch = pack(grouped_sequences([(9, [4] * 5)]), np.ones(5), row_length=18, rows_per_micro=1)
    assert (batch.segments > 0).sum(-1).ravel().tolist() == [18, 18, 13]


def test_padding_is_below_five_percent_on_realistic_lengths():
    rng = np.random.default_rng(0)  # prompts of 150 tokens, then one to four actions with observations between
    turns = rng.integers(1, 5, 320)
    lengths = 150 + sum(rng.integers(40, 100, 320) * (turns > i) + 170 * (turns > i + 1) for i in range(4))
    for row_length in (2048, 4096):
        batch = pack(random_sequences(lengths), np.zeros(320), row_length=row_length, rows_per_micro=1)
        assert padding_share(batch) < 0.05


def test_padding_share_counts_only_rows_that_are_used():
    batch = pack(random_sequences([6, 3]), [0.0, 0.0], row_length=10, rows_per_micro=1, micro_batches=5)
    assert padding_share(batch) == pytest.approx(0.1)
    assert padding_share(pack([], [], row_length=10, rows_per_micro=2, micro_batches=3)) == 0.0


def test_pack_of_nothing_is_one_empty_micro_batch():
    batch = pack([], [], row_length=8, rows_per_micro=2)
    assert batch.tokens.shape == (1, 2, 8)
    assert not batch.segments.any()


def test_a_sequence_longer_than_a_row_is_an_error_that_names_it():
    with pytest.raises(ValueError, match='sequence 1 has 11 tokens, but a row holds 10'):
        pack(random_sequences([10, 11]), [0.0, 0.0], row_length=10, rows_per_micro=1)


def test_more_rows_than_the_micro_batches_hold_is_an_error():
    with pytest.raises(ValueError, match='3 rows do not fit 1 micro-batches of 2'):
        pack(random_sequences([10, 10, 10]), [0.0] * 3, row_length=10, rows_per_micro=2, micro_batches=1)


def test_a_turn_is_what_is_sampled_between_two_observations():
    act, see = (lambda n: Segment(Kind.ACTION, (1,) * n, (0.0,) * n)), Segment(Kind.OBSERVATION, (2, 2))
    segments = [Segment(Kind.PROMPT, (3, 3)), act(2), see, act(1), see, act(3), act(1)]  # its end of sequence last
    assert turns_of(segments).tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert len(turns_of(segments[:1])) == 0
