"""Advantages against closed forms; a trajectory whose search failed never counts."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from zerosearch_jax.rl.advantages import (
    dr_grpo,
    grpo,
    reinforce,
    reinforce_baseline,
    whiten,
    zero_variance,
    zero_variance_share,
)
from zerosearch_jax.rl.algorithms import ALGORITHMS

ADVANTAGES = {name: algorithm.advantage for name, algorithm in ALGORITHMS.items() if algorithm.advantage}
REWARDS = np.array([0.0, 1.0, 0.5, 0.25, 1.0, 1.0])
GROUPS = np.array([0, 0, 0, 1, 1, 1])
VALID = np.ones(6, bool)
CASES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), st.integers(0, 3), st.booleans()), min_size=1
)


def columns(case):
    rewards, groups, valid = zip(*case, strict=True)
    return np.array(rewards), np.array(groups), np.array(valid)


def test_reinforce_is_the_reward():
    np.testing.assert_array_equal(reinforce(REWARDS, GROUPS, VALID), REWARDS.astype(np.float32))


def test_reinforce_baseline_subtracts_the_mean_of_the_batch_not_of_the_group():
    np.testing.assert_allclose(reinforce_baseline(REWARDS, GROUPS, VALID), REWARDS - 3.75 / 6, rtol=1e-6)


def test_grpo_is_the_standard_score_in_the_group_with_unbiased_std():
    # group 0: mean 0.5, variance (0.25 + 0.25) / 2; group 1: mean 0.75, variance (0.25 + 2 / 16) / 2
    expected = [-1, 1, 0, -0.5 / np.sqrt(0.1875), 0.25 / np.sqrt(0.1875), 0.25 / np.sqrt(0.1875)]
    expected[0], expected[1] = -0.5 / 0.5, 0.5 / 0.5
    np.testing.assert_allclose(grpo(REWARDS, GROUPS, VALID), expected, rtol=1e-5, atol=1e-6)


def test_dr_grpo_is_the_reward_minus_the_mean_of_the_group():
    expected = [-0.5, 0.5, 0, -0.5, 0.25, 0.25]
    np.testing.assert_allclose(dr_grpo(REWARDS, GROUPS, VALID), expected, atol=1e-6)


def test_two_rewards_a_millionth_apart_are_equal_and_more_are_not():
    groups, valid = np.zeros(2, int), np.ones(2, bool)
    for gap, equal in ((0.5e-6, True), (2e-6, False)):
        rewards = np.array([0.0, gap])
        assert all((not f(rewards, groups, valid).any()) == equal for n, f in ADVANTAGES.items() if n != 'reinforce')
        assert zero_variance(rewards, groups, valid).tolist() == [equal] * 2
        assert (not np.any(whiten([rewards]))) == equal


@pytest.mark.parametrize('name', ADVANTAGES)
def test_failed_trajectories_get_zero_and_do_not_count(name):
    valid = np.array([True, True, False, True, False, True])
    rewards = np.where(valid, REWARDS, np.nan)  # nobody may even look at them
    got = ADVANTAGES[name](rewards, GROUPS, valid)
    assert (got[~valid] == 0).all()
    np.testing.assert_array_equal(got[valid], ADVANTAGES[name](REWARDS[valid], GROUPS[valid], VALID[valid]))


@pytest.mark.parametrize('name', ADVANTAGES)
def test_all_failed_gives_zeros(name):
    got = ADVANTAGES[name](REWARDS, GROUPS, ~VALID)
    assert got.tolist() == [0.0] * 6


@pytest.mark.parametrize('reward', [0.0, 1.0, 0.1, 1 / 3])
def test_a_group_of_equal_rewards_is_exactly_zero(reward):
    assert grpo(np.full(5, reward), np.zeros(5, int), np.ones(5, bool)).tolist() == [0.0] * 5


def test_a_group_of_one_is_exactly_zero_also_where_failures_made_it_one():
    assert grpo(np.array([1.0]), np.array([7]), np.array([True])).tolist() == [0.0]
    assert grpo(np.array([1.0, 0.0]), np.array([7, 7]), np.array([True, False])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize('name', ADVANTAGES)
@hypothesis.given(case=CASES, seed=st.integers(0, 100))
def test_advantages_do_not_depend_on_the_order(name, case, seed):
    rewards, groups, valid = columns(case)
    order = np.random.default_rng(seed).permutation(len(rewards))
    shuffled = ADVANTAGES[name](rewards[order], groups[order], valid[order])
    np.testing.assert_allclose(shuffled, ADVANTAGES[name](rewards, groups, valid)[order], rtol=1e-4, atol=1e-5)


@hypothesis.given(CASES)
def test_grpo_has_mean_zero_and_unbiased_std_one_in_every_group_that_varies(case):
    rewards, groups, valid = columns(case)
    got = grpo(rewards, groups, valid)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    for group in np.unique(groups[valid]):
        own, mine = rewards[(groups == group) & valid], got[(groups == group) & valid]
        assert abs(mine.mean()) < 1e-4
        if np.ptp(own) > 0.01:
            assert mine.std(ddof=1) == pytest.approx(1, abs=1e-3)
        elif np.ptp(own) == 0:
            assert not mine.any()


def test_zero_variance_share_counts_groups_and_ignores_failures():
    rewards = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    groups = np.array([0, 0, 1, 1, 2, 2])
    assert zero_variance_share(rewards, groups, VALID) == pytest.approx(1 / 3)
    valid = np.array([True, True, True, False, True, True])  # group 1 is left with one reward
    assert zero_variance_share(rewards, groups, valid) == pytest.approx(2 / 3)
    assert zero_variance_share(rewards, groups, ~VALID) == 0.0
