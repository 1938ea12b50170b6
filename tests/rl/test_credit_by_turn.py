"""Credit by turn against the exact policy gradient of a small tree of turns, over all groups that can be sampled."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from zerosearch_jax.rl import advantages

# what a turn can do: {history: {action: (reward, whether the episode goes on)}}
TREE = {
    '': {'guess': (0.2, False), 'search': (0.3, True), 'blunder': (-0.1, True)},
    'search': {'guess': (0.1, False), 'search': (0.3, True)},
    'blunder': {'guess': (0.4, False), 'search': (0.3, True)},
    'search search': {'good': (1.0, False), 'bad': (0.0, False)},
    'blunder search': {'good': (0.7, False), 'bad': (0.0, False)},
}
PLACES = [(history, action) for history, actions in TREE.items() for action in actions]  # one logit each
LOGITS = dict(zip(PLACES, np.random.default_rng(0).normal(0, 0.7, len(PLACES)), strict=True))


def probability(history, action):
    return np.exp(LOGITS[history, action]) / sum(np.exp(LOGITS[history, other]) for other in TREE[history])


def slope(history, action):
    """The gradient of the action's log-probability with respect to all logits."""
    return np.array([((history, action) == p) - (history == p[0]) * probability(*p) for p in PLACES])


def episodes(history='', before=()):
    """Every episode: its turns (history, action), their rewards, and how likely it is."""
    for action, (reward, goes_on) in TREE[history].items():
        turns = (*before, (history, action, reward))
        if goes_on:
            yield from episodes(f'{history} {action}'.strip(), turns)
        else:
            likely = np.prod([probability(h, a) for h, a, _ in turns])
            yield [(h, a) for h, a, _ in turns], np.array([r for *_, r in turns]), likely


ALL = [*episodes()]
EXACT = sum(likely * rewards.sum() * sum(slope(*turn) for turn in turns) for turns, rewards, likely in ALL)


def expected(estimate, size):
    """Mean and total variance of the gradient of a group, over all groups of so many episodes."""
    mean, square = 0.0, 0.0
    for group in itertools.product(ALL, repeat=size):
        likely = np.prod([episode[2] for episode in group])
        credits = estimate([rewards for _, rewards, _ in group])
        gradient = sum(
            advantage * slope(*turn)
            for (turns, *_), own in zip(group, credits, strict=True)
            for turn, advantage in zip(turns, own, strict=True)
        )
        mean, square = mean + likely * gradient / size, square + likely * (gradient @ gradient) / size**2
    return mean, square - mean @ mean


def by_turn(rewards):
    return advantages.by_turn(rewards, np.zeros(len(rewards), int))


def by_trajectory(rewards):
    totals = np.array([own.sum() for own in rewards])
    found = advantages.leave_one_out(totals, np.zeros(len(rewards), int), np.ones(len(rewards), bool))
    return [np.full(len(own), one) for own, one in zip(rewards, found, strict=True)]


def by_turn_number(rewards):
    """The trap: of the own turns that are left, each reward less the mean of the others' at that turn's number."""
    found = []
    for i, own in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i]
        means = [np.mean([r[k] for r in others if len(r) > k] or [0.0]) for k in range(len(own))]
        found.append(advantages.returns_to_go(own - means))
    return found


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('estimate', [by_turn, by_trajectory])
def test_credit_gives_the_policy_gradient(estimate, size):
    np.testing.assert_allclose(expected(estimate, size)[0], EXACT, atol=1e-6)


def test_credit_by_turn_varies_less_where_turns_are_rewarded():
    assert expected(by_turn, 3)[1] < 0.9 * expected(by_trajectory, 3)[1]


def test_means_by_the_number_of_the_turn_punish_another_turn():
    error = dict(zip(PLACES, expected(by_turn_number, 3)[0] - EXACT, strict=True))
    for history in ('', 'search', 'blunder'):  # to guess ends the episode: no mean of a later turn is taken off
        assert error[history, 'guess'] > 0.01 and error[history, 'search'] < -0.01
    assert error['', 'guess'] > 0.08


REWARDS = st.lists(
    st.tuples(st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=1, max_size=4), st.integers(0, 2)), min_size=1
)


@hypothesis.given(REWARDS)
def test_a_turn_has_its_return_to_go_less_the_mean_of_the_others_whole_returns(made):
    rewards, groups = [np.array(own) for own, _ in made], np.array([group for _, group in made])
    for i, found in enumerate(advantages.by_turn(rewards, groups)):
        others = [own.sum() for j, own in enumerate(rewards) if groups[j] == groups[i] and j != i]
        to_go = [rewards[i][turn:].sum() for turn in range(len(rewards[i]))]
        np.testing.assert_allclose(found, to_go - np.mean(others) if others else np.zeros(len(found)), atol=1e-5)


@hypothesis.given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4), st.integers(0, 2)), min_size=1))
def test_rewards_of_the_last_turn_alone_make_it_leave_one_out(made):
    rewards = [np.array([0.0] * (turns - 1) + [reward]) for reward, turns, _ in made]
    groups = np.array([group for *_, group in made])
    expected_ = advantages.leave_one_out(np.array([r[-1] for r in rewards]), groups, np.ones(len(made), bool))
    for found, one in zip(advantages.by_turn(rewards, groups), expected_, strict=True):
        np.testing.assert_array_equal(found, one)
