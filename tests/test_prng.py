"""Random keys are functions of identity: of what is sampled, never of when or where."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerosearch_jax import prng


def test_same_identity_same_key():
    a, b = prng.row_key('policy', 0, 3, 'q7', 2), prng.row_key('policy', 0, 3, 'q7', 2)
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.uint32 and a.shape == (2,)


def test_keys_are_pinned():
    """A stored run resumes only while these stay what they are."""
    assert prng.row_key('policy', 0, 'q', 1).tolist() == [527454632, 3879527432]
    assert prng.uniform('curriculum', 0, 1) == 0.5512737739524365


def test_every_part_of_the_identity_counts():
    identities = [
        ('policy', 1, 2, 3),
        ('simulator', 1, 2, 3),
        ('evaluation', 1, 2, 3),
        ('policy', 2, 1, 3),  # order
        ('policy', 1, 2, 4),
        ('policy', 0, 2, 3),
        ('policy', 1, 2),  # length
        ('policy', 1, 2, 3, 0),
        ('policy', 1, 2, '3'),  # type
        ('policy', '1', 2, 3),
        ('policy', 1, 23),  # digits that run together
        ('policy', 12, 3),
        ('policy', '1, 2', 3),
        ('policy', 'ab', 'c'),
        ('policy', 'a', 'bc'),
        ('policy', "a', 'bc"),
    ]
    keys = [tuple(prng.row_key(*identity).tolist()) for identity in identities]
    assert len(set(keys)) == len(identities)
    assert len({prng.uniform(*identity) for identity in identities}) == len(identities)


def test_keys_do_not_collide_over_a_run():
    keys = {
        prng.row_key('policy', 0, s, q, n).tobytes() for s, q, n in itertools.product(range(20), range(20), range(8))
    }
    assert len(keys) == 20 * 20 * 8


def test_both_words_of_the_key_vary():
    words = np.array([prng.row_key('policy', i) for i in range(100)])
    assert len(set(words[:, 0].tolist())) == len(set(words[:, 1].tolist())) == 100


def test_unknown_stream():
    for function in (prng.row_key, prng.uniform):
        with pytest.raises(ValueError, match=r"'polcy'.*policy, simulator"):
            function('polcy', 0)


def test_uniform_range_and_moments():
    draws = np.array([prng.uniform('data', i) for i in range(20_000)])
    assert 0 <= draws.min() < 1e-3 and 1 - 1e-3 < draws.max() < 1
    assert abs(draws.mean() - 1 / 2) < 0.01 and abs(draws.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


def batch_of_keys(n):
    return np.stack([prng.row_key('policy', i) for i in range(n)]), np.arange(n, dtype=np.int32) * 37


def test_position_uniforms_equal_the_row_by_row_computation(strict_ranks):
    keys, positions = batch_of_keys(6)
    drawn = np.asarray(jax.jit(prng.position_uniforms)(keys, positions))
    for key, position, value in zip(keys, positions, drawn, strict=True):
        wrapped = jax.random.wrap_key_data(jnp.asarray(key), impl='threefry2x32')
        assert value == jax.random.uniform(jax.random.fold_in(wrapped, int(position)))
    assert drawn.dtype == np.float32


def test_position_uniforms_ignore_neighbours_and_slots():
    keys, positions = batch_of_keys(8)
    whole = np.asarray(prng.position_uniforms(keys, positions))
    order = np.array([5, 2, 7])
    np.testing.assert_array_equal(prng.position_uniforms(keys[order], positions[order]), whole[order])


def test_position_uniforms_differ_by_key_and_by_position():
    keys, _ = batch_of_keys(50)
    table = np.stack([prng.position_uniforms(keys, np.full(50, p, np.int32)) for p in range(40)])
    assert len(np.unique(table)) > 0.999 * table.size  # 2**23 values: rarely two are equal
    assert table.min() >= 0 and table.max() < 1 and abs(table.mean() - 0.5) < 0.02
