"""Every algorithm against the formula of its paper, token by token in float64, and what must hold for all of them."""

import dataclasses
from types import SimpleNamespace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, tiny_params
from hypothesis import strategies as st

from configs import common
from zerosearch_jax import pretrained, sharding
from zerosearch_jax.models import lora
from zerosearch_jax.policy import PolicyConfig, make_trainable
from zerosearch_jax.rl import advantages as adv
from zerosearch_jax.rl import algorithms, critic, losses
from zerosearch_jax.rl.config import CriticConfig, RLConfig
from zerosearch_jax.rl.losses import LossConfig
from zerosearch_jax.text.trajectory import Kind, Segment, TokenSequence, flatten, pack
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import credit
from zerosearch_jax.train.learner import Learner

MESH = sharding.make_mesh()
GROUP = 3


def ragged(seed, questions=3, kl_reference=True):
    """Packed random sequences of unequal lengths in groups, and the same numbers sequence by sequence."""
    rng = np.random.default_rng(seed)
    sequences, parts = [], []
    for _ in range(questions * GROUP):
        segments = [Segment(Kind.PROMPT, tuple(rng.integers(0, 384, rng.integers(2, 6)).tolist()))]
        for _ in range(rng.integers(1, 3)):
            for kind in (Kind.ACTION, Kind.OBSERVATION):
                size = int(rng.integers(1, 7))
                logprobs = tuple(rng.normal(-2, 0.4, size)) if kind is Kind.ACTION else ()
                segments.append(Segment(kind, tuple(rng.integers(0, 384, size).tolist()), logprobs))
        sequences.append(flatten(segments))
    for sequence in sequences:
        active = sequence.weights > 0
        old = sequence.logprobs[active].astype(np.float64)
        now, ref = old + rng.normal(0, 0.3, len(old)), old + rng.normal(0, 0.3, len(old))
        parts.append({'old': old, 'now': now, 'ref': ref, 'entropy': rng.uniform(0, 3, len(old))})
    rewards = rng.choice([0.0, 0.3, 1.0], len(sequences)) + rng.normal(0, 0.01, len(sequences))
    return sequences, parts, rewards, np.repeat(np.arange(questions), GROUP)


def packed_loss(sequences, parts, token_advantages, cfg, aggregate, micro=64):
    """Loss and its gradient with respect to the log-probs of every sequence, as the learner computes them."""
    weighed = algorithms.weigh_tokens(sequences, aggregate, micro)
    token_map = algorithms.TokenMap(weighed)
    batch = pack(weighed, token_map.numbers, row_length=48, rows_per_micro=4)
    token_map.locate(batch)
    scatter = lambda name: token_map.scatter([p[name] for p in parts])  # noqa: E731
    batch = batch.replace(advantages=token_map.scatter(token_advantages), ref_logprobs=scatter('ref'))
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch)
    shape = flat.weights.shape
    now, entropies = scatter('now').reshape(shape), scatter('entropy').reshape(shape)

    def loss(logprobs):
        total = jnp.sum(flat.weights) if not cfg.denominator else cfg.denominator
        return losses.policy_loss(logprobs, entropies, flat, cfg)[0] / total

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(now))
    return float(value), token_map.gather(np.asarray(gradient).reshape(batch.weights.shape))


def assert_matches(reference, sequences, parts, token_advantages, cfg, aggregate, **options):
    """Value and gradient (central differences in float64) of a reference that takes the log-probs of all sequences."""
    value, gradient = packed_loss(sequences, parts, token_advantages, cfg, aggregate, **options)
    now = [p['now'] for p in parts]
    assert value == pytest.approx(reference(now), rel=1e-5, abs=1e-5)
    step = 1e-6
    for i, t in [(0, 0), (1, -1), (len(now) - 1, 0), (len(now) // 2, -1)]:
        moved = [[x.copy() for x in now] for _ in range(2)]
        moved[0][i][t] += step
        moved[1][i][t] -= step
        expected = (reference(moved[0]) - reference(moved[1])) / (2 * step)
        assert gradient[i][t] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def whole(advantages, parts):
    return [np.full(len(p['old']), a) for a, p in zip(advantages, parts, strict=True)]


def surrogate(ratio, advantage, low, high):
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def group_scores(rewards, groups, divide=True):
    """Standard scores in the group, from the definition."""
    out = np.zeros(len(rewards))
    for i, r in enumerate(rewards):
        own = [x for x, g in zip(rewards, groups, strict=True) if g == groups[i]]
        mean = sum(own) / len(own)
        deviation = (sum((x - mean) ** 2 for x in own) / (len(own) - 1)) ** 0.5
        out[i] = (r - mean) / ((deviation + 1e-6) if divide else 1.0)
    return out


SEEDS = st.integers(0, 1000)
FEW = hypothesis.settings(max_examples=12, deadline=None)


@FEW
@hypothesis.given(SEEDS)
def test_grpo_is_equation_3_of_its_paper(seed):
    sequences, parts, rewards, groups = ragged(seed)
    advantages = group_scores(rewards, groups)

    def reference(now):  # mean over sequences of the mean over their tokens
        total = 0.0
        for a, p, logprobs in zip(advantages, parts, now, strict=True):
            d = p['ref'] - logprobs
            total += np.mean(surrogate(np.exp(logprobs - p['old']), a, 0.2, 0.2) - 0.04 * (np.exp(d) - d - 1))
        return -total / len(now)

    mine = adv.grpo(rewards, groups, np.ones(len(rewards), bool))
    np.testing.assert_allclose(mine, advantages, rtol=1e-5, atol=1e-5)
    assert_matches(reference, sequences, parts, whole(mine, parts), LossConfig(kl=0.04), 'sequence')


@FEW
@hypothesis.given(SEEDS)
def test_dr_grpo_divides_by_neither_length_nor_deviation(seed):
    sequences, parts, rewards, groups = ragged(seed)
    advantages, budget = group_scores(rewards, groups, divide=False), 40

    def reference(now):
        terms = (
            surrogate(np.exp(logprobs - p['old']), a, 0.2, 0.2).sum() / budget
            for a, p, logprobs in zip(advantages, parts, now, strict=True)
        )
        return -sum(terms) / len(now)

    mine = adv.dr_grpo(rewards, groups, np.ones(len(rewards), bool))
    cfg = LossConfig(kl=0.0, denominator=len(parts) * budget)
    assert_matches(reference, sequences, parts, whole(mine, parts), cfg, 'budget')


@FEW
@hypothesis.given(SEEDS)
def test_dapo_is_a_mean_over_all_tokens_with_two_clips(seed):
    sequences, parts, rewards, groups = ragged(seed)
    advantages = group_scores(rewards, groups)

    def reference(now):
        tokens = [
            surrogate(np.exp(logprobs - p['old']), a, 0.2, 0.28)
            for a, p, logprobs in zip(advantages, parts, now, strict=True)
        ]
        return -np.concatenate(tokens).mean()

    mine = adv.grpo(rewards, groups, np.ones(len(rewards), bool))
    cfg = LossConfig(clip=0.2, clip_high=0.28, kl=0.0)
    assert_matches(reference, sequences, parts, whole(mine, parts), cfg, 'token')


@FEW
@hypothesis.given(SEEDS)
def test_gspo_clips_the_geometric_mean_of_a_sequence(seed):
    sequences, parts, rewards, groups = ragged(seed)
    advantages = group_scores(rewards, groups)

    def reference(now):
        terms = [
            surrogate(np.exp(np.mean(logprobs - p['old'])), a, 0.1, 0.1)
            for a, p, logprobs in zip(advantages, parts, now, strict=True)
        ]
        return -np.mean(terms)

    mine = adv.grpo(rewards, groups, np.ones(len(rewards), bool))
    cfg = LossConfig(clip=0.1, kl=0.0, ratio='sequence')
    assert_matches(reference, sequences, parts, whole(mine, parts), cfg, 'sequence')


@FEW
@hypothesis.given(SEEDS)
def test_importance_is_truncated_and_carries_no_gradient(seed):
    sequences, parts, rewards, groups = ragged(seed)
    advantages = group_scores(rewards, groups)
    importance = [np.minimum(np.exp(p['now'] - p['old']), 1.1) for p in parts]

    def reference(now):  # the old policy is the one of `now`, held fixed
        terms = [
            w * surrogate(np.exp(logprobs - p['now']), a, 0.2, 0.2)
            for w, a, p, logprobs in zip(importance, advantages, parts, now, strict=True)
        ]
        return -np.concatenate(terms).mean()

    mine = adv.grpo(rewards, groups, np.ones(len(rewards), bool))
    assert any((w == 1.1).any() for w in importance)
    assert_matches(reference, sequences, parts, whole(mine, parts), LossConfig(kl=0.0, importance_cap=1.1), 'token')


@FEW
@hypothesis.given(SEEDS)
def test_the_published_normalizer_is_the_mean_of_micro_batch_means(seed):
    sequences, parts, rewards, groups = ragged(seed, questions=3)  # 9 sequences: micro-batches of 4, 4 and 1

    def reference(now):
        tokens = [
            surrogate(np.exp(logprobs - p['old']), r, 0.2, 0.2)
            for r, p, logprobs in zip(rewards, parts, now, strict=True)
        ]
        return -np.mean([np.concatenate(tokens[i : i + 4]).mean() for i in (0, 4, 8)])

    mine = adv.reinforce(rewards, groups, np.ones(len(rewards), bool))
    assert_matches(reference, sequences, parts, whole(mine, parts), LossConfig(kl=0.0, denominator=3), 'micro', micro=4)


@FEW
@hypothesis.given(SEEDS)
def test_k2_is_half_the_square_and_added(seed):
    sequences, parts, *_ = ragged(seed)

    def reference(now):
        squares = [(p['ref'] - logprobs) ** 2 / 2 for p, logprobs in zip(parts, now, strict=True)]
        return 0.3 * np.concatenate(squares).mean()

    nothing = whole(np.zeros(len(parts)), parts)
    assert_matches(reference, sequences, parts, nothing, LossConfig(kl=0.3, kl_estimator='k2'), 'token')


# ---------------------------------------------------------------- advantages


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    rewards, groups = np.array([1.0, 0.0, 0.5, 2.0, 1.0]), np.array([0, 0, 0, 1, 1])
    expected = [1 - 0.25, 0 - 0.75, 0.5 - 0.5, 2 - 1, 1 - 2]
    np.testing.assert_allclose(adv.leave_one_out(rewards, groups, np.ones(5, bool)), expected, atol=1e-6)


def test_reinforce_plus_plus_is_a_standard_score_over_the_batch():
    rewards = np.array([1.0, 0.0, 0.5, 2.0])
    got = adv.reinforce_plus_plus(rewards, np.array([0, 0, 1, 1]), np.ones(4, bool))
    np.testing.assert_allclose(got, (rewards - 0.875) / rewards.std(ddof=1), rtol=1e-5)


@pytest.mark.parametrize('name', [name for name, found in algorithms.ALGORITHMS.items() if found.advantage])
def test_a_single_sample_of_a_question_teaches_nothing_where_samples_are_compared(name):
    found = algorithms.ALGORITHMS[name]
    got = found.advantage(np.array([1.0, 0.0, 0.5]), np.arange(3), np.ones(3, bool))
    assert np.any(got) == (found.min_group == 1)


REWARDS = st.lists(st.floats(0, 1), min_size=GROUP, max_size=4 * GROUP).map(
    lambda x: np.array(x[: len(x) // GROUP * GROUP])
)


@pytest.mark.parametrize('name', ['grpo', 'dr_grpo', 'rloo', 'gspo', 'reinforce_baseline', 'reinforce_plus_plus'])
@hypothesis.given(REWARDS, st.floats(-2, 2))
def test_a_shift_of_all_rewards_changes_nothing(name, rewards, shift):
    groups, valid = np.arange(len(rewards)) // GROUP, np.ones(len(rewards), bool)
    function = algorithms.ALGORITHMS[name].advantage
    spread = min(np.ptp(rewards[groups == g]) for g in np.unique(groups))
    hypothesis.assume(spread > 1e-3)
    moved = function(rewards + shift, groups, valid)
    np.testing.assert_allclose(moved, function(rewards, groups, valid), rtol=1e-3, atol=1e-4)


def gae_by_definition(rewards, values, discount, trace):
    """Sums of discounted temporal differences, term by term."""
    following = [*values[1:], 0.0]
    deltas = [r + discount * f - v for r, f, v in zip(rewards, following, values, strict=True)]
    return [
        sum((discount * trace) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@hypothesis.given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1)
)
def test_gae_is_its_definition(pairs, discount, trace):
    rewards, values = map(np.array, zip(*pairs, strict=True))
    advantages, returns = adv.gae(rewards, values, discount=discount, trace=trace)
    expected = gae_by_definition(rewards, values, discount, trace)
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(returns, advantages + values, rtol=1e-5, atol=1e-5)


def test_whitening_is_over_all_tokens():
    white = adv.whiten([np.array([1.0, 3.0]), np.array([5.0])])
    np.testing.assert_allclose(np.concatenate(white), [-1, 0, 1], atol=1e-5)


@hypothesis.given(st.integers(0, 50))
def test_the_value_loss_is_the_larger_of_two_squares(seed):
    rng = np.random.default_rng(seed)
    values, returns, old = rng.normal(size=(3, 2, 5))
    weights = (rng.random((2, 5)) < 0.6).astype(float)
    total = 0.0
    for at in np.ndindex(values.shape):
        near = min(max(values[at], old[at] - 0.3), old[at] + 0.3)
        total += weights[at] * max((values[at] - returns[at]) ** 2, (near - returns[at]) ** 2) / 2
    got = critic.value_loss(*map(jnp.asarray, (values, returns, old, weights)), 0.3)
    assert float(got) == pytest.approx(total, rel=1e-5, abs=1e-6)
    plain = critic.value_loss(*map(jnp.asarray, (values, returns, old, weights)), 0.0)
    assert float(plain) == pytest.approx((weights * (values - returns) ** 2).sum() / 2, rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------- the learner


def episodes(seed=0, observations=True, count=6):
    rng = np.random.default_rng(seed)

    def tokens(n):
        return tuple(rng.integers(0, 384, n).tolist())

    found = []
    for i in range(count):
        first, last = int(rng.integers(3, 8)), int(rng.integers(3, 8))
        prompt = Segment(Kind.PROMPT, tuple(range(10 + i // GROUP, 16 + i // GROUP)))
        middle = [Segment(Kind.OBSERVATION, tokens(5))] if observations else []
        acts = [Segment(Kind.ACTION, tokens(n), tuple(rng.normal(-5.9, 0.1, n))) for n in (first, last)]
        found.append([prompt, acts[0], *middle, acts[1]])
    return found, rng.random(count), np.arange(count) // GROUP


def learner(critic_cfg=CriticConfig(), lora_rank=0, split=None, dtype='float32', **rl):  # noqa: B008
    fields = {'algorithm': 'grpo', 'steps': 4, 'row_length': 64, 'chunk': 32, 'kl': 0.0} | rl
    model = pretrained.Model(TINY, None, tiny_params(MESH))
    copy = dataclasses.replace(model, params=jax.tree.map(lambda x: x.copy(), model.params))
    split = split or make_trainable(copy, PolicyConfig(lora_rank=lora_rank), MESH, 0)
    config = common.base()
    config.rollout.update(questions=2, group=GROUP, prompt_tokens=12, response_tokens=20)
    config.rl.update(fields)
    config.policy.dtype = dtype
    config.critic.update(dataclasses.asdict(critic_cfg))
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.0, clip_norm=1e9)
    return Learner(train_config.parse(config), model, split, MESH)


def seen_by(made, name='_update'):
    """The batches that an update was given, as its arguments after state and frozen weights."""
    seen, update = [], getattr(made, name)

    def spy(current, frozen, *batch):
        seen.append(jax.tree.map(np.asarray, batch))
        return update(current, frozen, *batch)

    setattr(made, name, spy)
    return seen


def tokens_of(batch, mask):
    return sorted(batch.tokens[mask].tolist())


def actions(found):
    return sorted(t for e in found for s in e if s.kind is Kind.ACTION for t in s.tokens)


@pytest.mark.thorough
def test_failed_trajectories_and_groups_of_equal_reward_are_not_packed():
    found, rewards, groups = episodes()
    valid = np.array([True, False, True, True, True, True])
    made = learner()
    seen = seen_by(made)
    means = made.learn(1, found, rewards, groups, valid).advantages
    made.learn(1, found, rewards, groups, np.ones(6, bool))
    (batch,), (all_of_them,) = seen
    assert tokens_of(batch, batch.weights > 0) == actions([e for e, v in zip(found, valid, strict=True) if v])
    assert batch.tokens.shape == all_of_them.tokens.shape  # one shape, whatever failed
    assert means[1] == 0
    rewards[3:] = 0.5
    dropping = learner(drop_zero_variance=True)
    seen = seen_by(dropping)
    means = dropping.learn(1, found, rewards, groups, np.ones(6, bool)).advantages
    assert tokens_of(seen[0][0], seen[0][0].weights > 0) == actions(found[:3])
    assert (means[3:] == 0).all() and (means[:3] != 0).all()


@pytest.mark.parametrize(
    ('share', 'chosen'), [(1.0, [0, 1, 2, 4, 5]), (0.5, [1, 2, 4]), (0.51, [0, 1, 2, 4]), (0.01, [2])]
)
def test_the_deepest_share_has_the_most_searches_and_of_equal_ones_the_first(share, chosen):
    valid = np.arange(6) != 3
    assert np.flatnonzero(credit.deepest(share, [1, 2, 3, 9, 2, 1], valid)).tolist() == chosen


CHOSEN = np.isin(np.arange(6), (0, 1, 4))
SEARCHES = 2 * CHOSEN


@pytest.mark.parametrize('fields', [{'kl': 0.1}, {'old_logprobs': 'trainer', 'importance_cap': 2.0}], ids=str)
def test_updates_on_chosen_trajectories_compare_with_all_samples_of_a_question(fields):
    found, rewards, groups = episodes()
    step = (1, found, rewards, groups, np.ones(6, bool))
    full, half = learner(**fields), learner(deepest=0.5, **fields)
    everything, seen = full.learn(*step), seen_by(half)
    learned = half.learn(*step, SEARCHES)
    batch = seen[0][0]
    assert tokens_of(batch, batch.weights > 0) == actions([found[i] for i in np.flatnonzero(CHOSEN)])
    assert batch.tokens.shape[0] < full._pack([], full._minibatch)[0].tokens.shape[0]
    np.testing.assert_array_equal(learned.advantages, np.where(CHOSEN, everything.advantages, 0.0))
    for chosen, one, other in zip(CHOSEN, learned.gaps, everything.gaps, strict=True):
        assert (one is not None) == chosen
        assert one is None or np.allclose(one, other, atol=1e-5)


def test_a_critic_learns_from_chosen_trajectories_too_and_nothing_from_none():
    found, rewards, groups = episodes()
    made = learner(algorithm='ppo', deepest=0.5)
    seen = seen_by(made, '_critic_update')
    made.learn(1, found, rewards, groups, np.ones(6, bool), SEARCHES)
    batch = seen[0][0]
    assert tokens_of(batch, batch.weights > 0) == actions([found[i] for i in np.flatnonzero(CHOSEN)])
    assert made.learn(2, found, rewards, groups, np.zeros(6, bool), SEARCHES).metrics == {}


def test_the_deepest_are_chosen_among_those_of_groups_with_different_rewards():
    found, rewards, groups = episodes()
    rewards[:3] = 0.0
    made = learner(deepest=0.5, drop_zero_variance=True)
    seen = seen_by(made)
    made.learn(1, found, rewards, groups, np.ones(6, bool), [3, 3, 3, 1, 1, 1])
    batch = seen[0][0]
    assert tokens_of(batch, batch.weights > 0) == actions(found[3:])


@pytest.mark.thorough
@pytest.mark.parametrize('fields', [{'algorithm': 'rloo', 'kl_estimator': 'k1'}, {'algorithm': 'ppo'}])
def test_all_failed_changes_nothing_not_even_moments(fields):
    found, rewards, groups = episodes()
    made = learner(kl=0.1, **fields)
    made.learn(1, found, rewards, groups, np.ones(6, bool))
    before = jax.tree.map(np.asarray, made.state)
    assert made.learn(2, found, rewards, groups, np.zeros(6, bool)).metrics == {}
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, made.state))


@pytest.mark.thorough
@pytest.mark.parametrize('how', ['masked', 'policy', 'likelihood'])
def test_observations_are_trained_on_only_where_asked(how):
    found, rewards, groups = episodes()
    made = learner(observations=how, likelihood_weight=0.25, aggregate='token')
    seen = seen_by(made)
    means = made.learn(1, found, rewards, groups, np.ones(6, bool)).advantages
    assert (np.sign(means) == np.sign(rewards - np.repeat(rewards.reshape(2, 3).mean(1), 3))).all()
    batch = seen[0][0]
    unsampled = np.isnan(batch.old_logprobs) & (batch.weights > 0)
    observed = sorted(t for e in found for s in e if s.kind is Kind.OBSERVATION for t in s.tokens)
    assert tokens_of(batch, unsampled) == ([] if how == 'masked' else observed)
    if how == 'likelihood':
        assert (batch.weights[unsampled] == 0.25).all()
        assert (batch.advantages[unsampled] == 1).all()
    if how == 'policy':
        assert len(set(batch.advantages[unsampled].tolist())) > 2


@pytest.mark.thorough
def test_gaps_are_between_the_trainer_before_its_first_update_and_the_engine():
    found, rewards, groups = episodes(observations=True)
    scoring = learner(kl=0.5)  # its reference is the policy before any update
    with jax.set_mesh(MESH):
        before = scoring._reference_logprobs([flatten(e) for e in found])
    for fields, counted in (({}, 6), ({'minibatch': 4}, 2), ({'observations': 'policy', 'epochs': 2}, 6)):
        gaps = learner(**fields).learn(1, found, rewards, groups, np.arange(6) != 2).gaps
        assert gaps[2] is None and [g is not None for g in gaps].count(True) == min(counted, 5)
        for i in [i for i, gap in enumerate(gaps) if gap is not None]:
            engine = np.concatenate([s.logprobs for s in found[i] if s.kind is Kind.ACTION])
            np.testing.assert_allclose(gaps[i], before[i] - engine, atol=1e-4)


@pytest.mark.thorough
def test_k1_is_taken_off_the_reward():
    found, rewards, groups = episodes(observations=False)
    made = learner(kl=0.5, kl_estimator='k1', algorithm='reinforce')
    with jax.set_mesh(MESH):
        reference = made._reference_logprobs([flatten(e) for e in found])
    measured, means, _ = made.learn(1, found, rewards, groups, np.ones(6, bool))
    sampled = np.concatenate([s.logprobs for e in found for s in e if s.kind is Kind.ACTION])
    assert measured['kl'] == pytest.approx(np.mean(sampled - np.concatenate(reference)), rel=1e-4)
    for i, episode in enumerate(found):
        old = np.concatenate([s.logprobs for s in episode if s.kind is Kind.ACTION])
        assert means[i] == pytest.approx(rewards[i] - 0.5 * (old - reference[i]).sum(), rel=1e-4, abs=1e-4)


@pytest.mark.thorough
def test_minibatches_and_epochs_are_updates_of_one_step():
    found, rewards, groups = episodes()
    made = learner(minibatch=4, epochs=2)
    seen = seen_by(made)
    made.learn(5, found, rewards, groups, np.ones(6, bool))
    assert int(made.state['policy'].step) == 5  # the learning rate follows the steps of the run
    sizes = [len(tokens_of(b, b.weights > 0)) for (b,) in seen]
    assert sizes == [len(actions(found[:3])), len(actions(found[3:]))] * 2
    assert len({b.tokens.shape for (b,) in seen}) == 1


@pytest.mark.parametrize(('minibatch', 'failed', 'sizes'), [(5, 0, [3, 3]), (2, 0, [2, 2, 2]), (5, 1, [2, 3])], ids=str)
def test_minibatches_are_even_the_last_is_not_one_trajectory(minibatch, failed, sizes):
    parts = given_to_updates(learner(minibatch=minibatch), np.arange(6) >= failed)
    assert [len(sequences) for sequences, *_ in parts] == sizes


def given_to_updates(made, valid=np.ones(6, bool)):  # noqa: B008
    """What every update of a step would take: weighed sequences, advantages, log-probs of the reference."""
    seen = []
    made._learn_policy = lambda step, *given: seen.append(given) or ({'loss': 0.0}, [])
    made.learn(1, *episodes(), valid)
    return seen


def only_update(made, *step):
    """The batch of the one update of a step, its metrics, and the change of the weights."""
    seen, before = seen_by(made), jax.tree.map(np.asarray, made.state['policy'].params)
    measured = made.learn(*step).metrics
    change = jax.tree.map(lambda new, old: np.asarray(new) - old, made.state['policy'].params, before)
    return seen[0][0], measured, change


@pytest.mark.thorough
def test_observations_of_likelihood_weight_zero_leave_the_policys_gradient_whole():
    step = (1, *episodes(), np.ones(6, bool))
    masked = only_update(learner(kl=0.1, entropy=0.1, aggregate='token'), *step)
    silent = dict(observations='likelihood', likelihood_weight=0.0)
    zero = only_update(learner(kl=0.1, entropy=0.1, aggregate='token', **silent), *step)
    assert zero[1] == masked[1]
    jax.tree.map(np.testing.assert_array_equal, zero[2], masked[2])


@pytest.mark.thorough
@pytest.mark.parametrize('aggregate', ['token', 'sequence', 'micro'])
def test_observations_of_little_likelihood_weight_hardly_touch_the_policys_gradient(aggregate):
    shares = []
    for fields in ({}, {'observations': 'likelihood', 'likelihood_weight': 1e-6}):
        part, *_ = given_to_updates(learner(aggregate=aggregate, **fields))[0]
        total = sum(s.weights.sum() for s in part)
        shares.append([s.weights[s.weights > 1e-4] / total for s in part])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *shares)


@pytest.mark.thorough
def test_reinforce_plus_plus_with_k1_has_returns_to_go_of_each_token_normalized_over_all_tokens():
    found, rewards, groups = episodes()
    made = learner(kl=0.5, kl_estimator='k1', algorithm='reinforce_plus_plus')
    with jax.set_mesh(MESH):
        reference = made._reference_logprobs([flatten(e) for e in found])
    returns = []
    for episode, reward, ref in zip(found, rewards, reference, strict=True):
        kl = np.concatenate([s.logprobs for s in episode if s.kind is Kind.ACTION]) - ref
        returns.append([reward - 0.5 * sum(kl[t:]) for t in range(len(kl))])
    flat = np.concatenate(returns)
    expected = (flat - flat.mean()) / flat.std(ddof=1)
    batch, *_ = only_update(made, 1, found, rewards, groups, np.ones(6, bool))
    got = batch.advantages[batch.weights > 0]
    np.testing.assert_allclose(sorted(got), sorted(expected), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match='advantage for a trajectory'):
        RLConfig(algorithm='reinforce_plus_plus', kl_estimator='k1', observations='policy')


@pytest.mark.thorough
def test_old_logprobs_of_the_trainer_make_the_first_ratio_one_and_keep_the_engines_gap():
    step = (1, *episodes(), np.ones(6, bool))
    fields = dict(algorithm='gspo', clip=3e-4, clip_high=4e-4, dtype='bfloat16')
    engine, trainer = (learner(old_logprobs=name, **fields) for name in ('engine', 'trainer'))
    first, second = seen_by(trainer), seen_by(engine)
    learned = trainer.learn(*step)
    plain = engine.learn(*step)
    assert plain.metrics['clip_share'] > 0.25  # at its paper's clip, and without a gradient there
    assert learned.metrics['clip_share'] == 0 and learned.metrics['ratio'] == pytest.approx(1, abs=1e-6)
    with jax.set_mesh(MESH):
        own = learner(kl=0.1, dtype='bfloat16')._reference_logprobs([flatten(e) for e in step[1]])
    (batch,), (by_engine,) = first[0], second[0]
    active = batch.weights > 0
    np.testing.assert_allclose(sorted(batch.old_logprobs[active]), sorted(np.concatenate(own)), atol=1e-5)
    np.testing.assert_array_equal(batch.advantages, by_engine.advantages)
    for i in range(6):
        np.testing.assert_allclose(learned.gaps[i], plain.gaps[i], atol=1e-5)
    engines = [np.concatenate([s.logprobs for s in e if s.kind is Kind.ACTION]) for e in step[1]]
    largest = max(np.abs(o - e).max() for o, e in zip(own, engines, strict=True))
    assert learned.metrics['logprob_gap_max'] == pytest.approx(largest, rel=1e-4)


@pytest.mark.thorough
def test_old_logprobs_of_the_trainer_weigh_tokens_by_the_truncated_importance_of_the_engine():
    """One update as the loss does it from the engine's log-probs; and more updates may follow."""
    step = (1, *episodes(), np.ones(6, bool))
    fields = dict(importance_cap=1.02, observations='policy')
    norms = [only_update(learner(old_logprobs=name, **fields), *step)[1] for name in ('engine', 'trainer')]
    for name in ('grad_norm', 'loss', 'policy', 'logprob_gap_max'):
        assert norms[1][name] == pytest.approx(norms[0][name], rel=1e-4, abs=1e-6)
    plain, weighed = (
        np.concatenate(given_to_updates(learner(old_logprobs='trainer', importance_cap=cap))[0][1]) for cap in (0, 1.02)
    )
    assert (weighed / plain).max() == pytest.approx(1.02) and (weighed / plain).min() < 0.99


@pytest.mark.thorough
def test_importance_stays_that_of_the_sampling_over_several_updates():
    """min(old / engine, cap) min(rho A, clip(rho) A), rho = now / old, where old is the trainer's before them all."""
    found, rewards, groups = episodes()
    made = learner(importance_cap=1.05, aggregate='token', clip=0.02, epochs=2, minibatch=3)
    seen, update = [], made._update

    def spy(current, *given):
        params = jax.tree.map(jnp.array, current.params)
        after, measured = update(current, *given)
        seen.append((params, float(measured['policy']), float(measured['clip_share'])))
        return after, measured

    made._update = spy
    made.learn(1, found, rewards, groups, np.ones(6, bool))
    flat = [flatten(e) for e in found]
    engine = [s.logprobs[s.weights > 0].astype(np.float64) for s in flat]
    with jax.set_mesh(MESH):
        scored = [made._score(params, flat) for params, *_ in seen]
    advantages = adv.grpo(rewards, groups, np.ones(6, bool))
    for i, (part, now) in enumerate(zip([range(3), range(3, 6)] * 2, scored, strict=True)):
        importance = np.concatenate([np.minimum(np.exp(scored[0][j] - engine[j]), 1.05) for j in part])
        ratio = np.concatenate([np.exp(now[j].astype(np.float64) - scored[0][j]) for j in part])
        a = np.concatenate([np.full(len(engine[j]), advantages[j]) for j in part])
        within = np.clip(ratio, 0.98, 1.02) * a
        assert seen[i][1] == pytest.approx(-(importance * np.minimum(ratio * a, within)).mean(), rel=1e-3, abs=1e-5)
        assert seen[i][2] == pytest.approx((ratio * a > within).mean(), abs=0.02)
    assert importance.max() == pytest.approx(1.05) and importance.min() < 0.98
    assert seen[0][2] == 0 and np.abs(ratio - 1).max() > 0.02


@pytest.mark.parametrize(
    'fields, passes',
    [({}, 0), ({'importance_cap': 2.0}, 0), ({'importance_cap': 2.0, 'minibatch': 4}, 1), ({'epochs': 2}, 0)],
    ids=str,
)
def test_the_trainers_logprobs_are_computed_where_several_updates_need_them(fields, passes):
    made, scored = learner(**fields), []
    made._score = lambda *given: scored.append(given) or [s.logprobs[s.weights > 0] for s in given[1]]
    given_to_updates(made)
    assert len(scored) == passes and made.rl.rescores == bool(passes)


def test_tokens_are_weighed_as_their_aggregate_says():
    sequences, *_ = ragged(0)  # nine
    silent = dataclasses.replace(sequences[0], weights=np.zeros_like(sequences[0].weights))
    for aggregate in ('token', 'budget'):
        for before, after in zip(sequences, algorithms.weigh_tokens(sequences, aggregate, 4), strict=True):
            np.testing.assert_array_equal(after.weights, before.weights)
    sums = [s.weights.sum() for s in algorithms.weigh_tokens([*sequences, silent], 'sequence', 4)]
    np.testing.assert_allclose(sums, [1.0] * 9 + [0.0], rtol=1e-6)
    sums = [s.weights.sum() for s in algorithms.weigh_tokens(sequences, 'micro', 4)]
    np.testing.assert_allclose([sum(sums[:4]), sum(sums[4:8]), sums[8]], 1, rtol=1e-6)


def test_a_token_map_takes_numbers_from_a_packed_batch_and_puts_them_back():
    sequences, parts, *_ = ragged(0)
    token_map = algorithms.TokenMap(sequences)
    batch = pack(sequences, token_map.numbers, row_length=48, rows_per_micro=4)
    token_map.locate(batch)
    for sequence, tokens in zip(sequences, token_map.gather(batch.tokens), strict=True):
        np.testing.assert_array_equal(tokens, sequence.tokens[sequence.weights > 0])
    placed = token_map.scatter([part['old'] for part in parts])
    np.testing.assert_array_equal(placed, np.where(batch.weights > 0, batch.old_logprobs, 0))


def test_token_maps_count_in_integers_beyond_those_of_float32():
    size = 2**24 + 3
    tokens = [np.ones(n, np.float32) for n in (size, 2)]
    token_map = algorithms.TokenMap([TokenSequence(ones, ones, ones) for ones in tokens])
    numbers = [np.broadcast_to(x, len(ones)) for x, ones in zip(token_map.numbers, tokens, strict=True)]
    token_map.locate(
        SimpleNamespace(
            weights=np.ones(size + 2, np.float32),
            advantages=np.concatenate(numbers).astype(np.float32),  # as a batch keeps them
            positions=np.r_[np.arange(size), 0, 1].astype(np.int32),
        )
    )
    assert token_map._index[-4:].tolist() == [size - 2, size - 1, size, size + 1]


@pytest.mark.thorough
@pytest.mark.parametrize('trunk', ['own', 'shared'])
@pytest.mark.parametrize('lora_rank', [0, 2])
def test_ppo_uses_gae_on_actions_alone_and_the_critic_learns(trunk, lora_rank):
    found, rewards, groups = episodes()
    cfg = CriticConfig(trunk=trunk, lora_rank=lora_rank, learning_rate=0.02, trace=0.9, discount=0.95, clip=0.0)
    made = learner(cfg, lora_rank=lora_rank, algorithm='ppo')
    seen, values_seen = seen_by(made), seen_by(made, '_critic_update')
    losses_seen = [made.learn(1, found, rewards, groups, np.ones(6, bool)).metrics['value_loss'] for _ in range(6)]
    assert losses_seen[-1] < 0.9 * losses_seen[0]
    batch = seen[0][0]
    expected = adv.whiten(
        [
            adv.gae(np.r_[np.zeros(n - 1), r], np.zeros(n), discount=0.95, trace=0.9)[0]
            for n, r in zip((len(actions([e])) for e in found), rewards, strict=True)
        ]
    )  # the head starts at zero, so the first values are
    got = sorted(batch.advantages[batch.weights > 0].tolist())
    np.testing.assert_allclose(got, sorted(np.concatenate(expected).tolist()), rtol=1e-4, atol=1e-5)
    critic_batch, returns, old = values_seen[0]
    assert tokens_of(critic_batch, critic_batch.weights > 0) == actions(found)
    assert (old == 0).all() and (returns[critic_batch.weights == 0] == 0).all()


def test_the_k1_penalty_of_ppo_is_taken_off_sampled_tokens_alone_also_over_observations():
    found, rewards, groups = episodes()
    cfg = CriticConfig(over_observations=True)
    made = learner(cfg, algorithm='ppo', kl=0.5, kl_estimator='k1')
    made._critic_update = lambda current, frozen, batch, *given: seen.append((batch, *given)) or (current, {})
    made._learn_policy, seen = lambda *_: ({'loss': 0.0}, []), []
    with jax.set_mesh(MESH):
        reference = made._reference_logprobs([flatten(e) for e in found])
    made.learn(1, found, rewards, groups, np.ones(6, bool))
    expected = []
    for episode, reward, ref in zip(found, rewards, reference, strict=True):
        penalties, left = [], iter(ref)
        for segment in episode[1:]:
            acted = segment.kind is Kind.ACTION
            penalties += [0.5 * (p - next(left)) for p in segment.logprobs] if acted else [0.0] * len(segment.tokens)
        expected += [reward - sum(penalties[t:]) for t in range(len(penalties))]  # values are 0 at first
    ((batch, returns, _),) = seen
    np.testing.assert_allclose(sorted(returns[batch.weights > 0]), sorted(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.thorough
def test_the_critics_value_at_a_token_is_of_the_state_before_it():
    batch = jax.tree.map(
        lambda x: x[0], pack([flatten(e) for e in episodes()[0]], np.zeros(6), row_length=64, rows_per_micro=4)
    )
    params = tiny_params(MESH) | {
        'value': jnp.asarray(np.random.default_rng(0).normal(size=TINY.hidden_size), jnp.float32)
    }
    with jax.set_mesh(MESH):
        hidden = losses.hidden_states(params, TINY, batch, losses.Compute())
        got = critic.token_values(params, TINY, batch, losses.Compute())
    np.testing.assert_allclose(got[:, 1:], (hidden @ params['value'])[:, :-1], rtol=1e-3, atol=1e-4)
    assert not np.asarray(got[:, 0]).any()


@pytest.mark.parametrize(
    ('fields', 'denominator'),
    [
        ({'algorithm': 'dr_grpo'}, 6 * 20),
        ({'algorithm': 'dr_grpo', 'minibatch': 3}, 3 * 20),
        ({'algorithm': 'dr_grpo', 'minibatch': 4}, 3 * 20),  # two even updates
        ({'algorithm': 'dr_grpo', 'deepest': 0.5}, 3 * 20),
        ({'aggregate': 'micro'}, 1),  # one micro-batch of 64, though not full
        ({'aggregate': 'token', 'minibatch': 3}, 0),
    ],
    ids=str,
)
def test_the_denominators_of_budget_and_micro_are_of_a_minibatch(fields, denominator, monkeypatch):
    seen = []
    monkeypatch.setattr('zerosearch_jax.train.learner.make_update', lambda *given: seen.append(given[3]))
    learner(**fields)
    assert [loss.denominator for loss in seen] == [denominator]


@pytest.mark.thorough
def test_observations_do_not_change_ppo_unless_asked_to():
    with_documents, rewards, groups = episodes(observations=True)
    critic_cfg = CriticConfig(trace=0.9, discount=0.9)
    first = learner(critic_cfg, algorithm='ppo').learn(1, with_documents, rewards, groups, np.ones(6, bool)).advantages
    without = [[s for s in e if s.kind is not Kind.OBSERVATION] for e in with_documents]
    second = learner(critic_cfg, algorithm='ppo').learn(1, without, rewards, groups, np.ones(6, bool)).advantages
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    published = dataclasses.replace(critic_cfg, over_observations=True)
    third = learner(published, algorithm='ppo').learn(1, with_documents, rewards, groups, np.ones(6, bool)).advantages
    assert np.abs(third - first).max() > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize('lora_rank', [0, 2])
def test_the_critic_begins_as_a_copy_of_the_policy_with_its_adapter(lora_rank):
    model = pretrained.Model(TINY, None, tiny_params(MESH))
    split = make_trainable(model, PolicyConfig(lora_rank=2), MESH, 0)
    split.params['layers']['q_lora_b'] += 0.1
    policy = jax.tree.map(np.asarray, lora.merge(lora.combine(split.frozen, split.params)))
    made = learner(CriticConfig(lora_rank=lora_rank), split=split, algorithm='ppo')
    trunk = lora.merge(lora.combine(made._trunk(), made.state['critic'].params))
    for name, kernel in policy['layers'].items():
        np.testing.assert_allclose(trunk['layers'][name], kernel, rtol=1e-6, err_msg=name)


@pytest.mark.thorough
def test_the_critic_can_learn_alone_first():
    found, rewards, groups = episodes()
    made = learner(CriticConfig(alone_steps=2), algorithm='ppo')
    steps = []
    for number in (1, 2, 3):
        made.learn(number, found, rewards, groups, np.ones(6, bool))
        steps.append(int(made.state['policy'].step))
    assert steps == [0, 0, 3]


@pytest.mark.thorough
@pytest.mark.parametrize('name', algorithms.ALGORITHMS)
def test_equal_rewards_leave_relative_algorithms_where_they_are(name):
    if name in ('reinforce', 'ppo'):
        return
    found, _, groups = episodes()
    made = learner(algorithm=name)
    before = jax.tree.map(np.asarray, made.state['policy'].params)
    made.learn(1, found, np.full(6, 0.7), groups, np.ones(6, bool))
    after = jax.tree.map(np.asarray, made.state['policy'].params)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match='drop_zero_variance'):
        RLConfig(algorithm='ppo', drop_zero_variance=True)
    for share in (0.0, 1.1, float('nan')):
        with pytest.raises(ValueError, match='deepest'):
            RLConfig(deepest=share)
    with pytest.raises(ValueError, match='observations'):
        RLConfig(algorithm='ppo', observations='policy')
    with pytest.raises(ValueError, match='k1'):
        RLConfig(algorithm='grpo', kl=0.01, kl_estimator='k1')
    with pytest.raises(ValueError, match=r"algorithm = 'best' is none of 'reinforce', .*'ppo', and cannot be imported"):
        RLConfig(algorithm='best')
    with pytest.raises(ValueError, match=r"algorithm = 'math\.pi' is a float"):
        RLConfig(algorithm='math.pi')
    with pytest.raises(ValueError, match='epochs must be positive'):
        RLConfig(epochs=0)
    with pytest.raises(ValueError, match='clip_high needs clip'):
        RLConfig(clip=0.0, clip_high=0.28)


@pytest.mark.parametrize('parts', [{'aggregate': 'tokens'}, {'ratio': 'sequences'}])
def test_an_algorithm_of_unknown_parts_is_refused(parts, monkeypatch):
    monkeypatch.setitem(algorithms.ALGORITHMS, 'mine', algorithms.Algorithm(adv.grpo, **parts))
    with pytest.raises(ValueError, match=r"algorithm = 'mine': .*" + repr(*parts.values())):
        algorithms.find_algorithm('mine')


def test_a_share_of_trajectories_is_not_rounded_up_by_floats():
    assert RLConfig(deepest=0.07).updates(100) == (1, 7)
    assert credit.deepest(0.07, [0] * 100, np.ones(100, bool)).sum() == 7


# ---------------------------------------------------------------- memory


NEEDS = {'none': 100, 'dots': 50, 'full': 20}  # bytes that updates of a row take


def fitted(monkeypatch, free, **fields):
    """A learner whose device has so many free bytes, and the fits of what it compiles."""
    made, compiled = learner(remat='auto', **fields), []

    def need(program):
        compiled.append(made._fit)
        return NEEDS[made._fit.remat] * made._fit.rows

    monkeypatch.setattr('zerosearch_jax.train.learner.own_bytes', need)
    monkeypatch.setattr('zerosearch_jax.train.learner.free_bytes', lambda mesh: free)
    made._settled = False  # as where a device says what it has
    assert made.fit is None
    return made, compiled


@pytest.mark.thorough
def test_the_least_rematerialization_that_fits_is_compiled_once_said_and_run(monkeypatch, capsys):
    step = (1, *episodes(), np.ones(6, bool))
    made, compiled = fitted(monkeypatch, 60)
    learned = made.learn(*step)
    assert compiled == [('none', 1), ('dots', 1)] and made.fit == ('dots', 1) and made._compute.remat == 'dots'
    assert 'rl.remat=dots, rl.rows_per_micro=1' in capsys.readouterr().err
    made.learn(*step)
    assert len(compiled) == 2
    assert learned.metrics == learner(remat='dots').learn(*step).metrics
    most, compiled = fitted(monkeypatch, 1)
    with jax.set_mesh(MESH):
        most._settle()
    assert most.fit == ('full', 1) == compiled[-1]  # it may fit after all


@pytest.mark.thorough
def test_rows_of_a_micro_batch_fill_the_memory_and_change_nothing(monkeypatch):
    step = (1, *episodes(), np.ones(6, bool))
    made, compiled = fitted(monkeypatch, 330, rows_per_micro=0)
    measured = made.learn(*step).metrics
    assert compiled == [('none', 1), ('none', 3)]  # three rows hold all that a step may have
    expected = learner().learn(*step).metrics
    for name in ('loss', 'grad_norm', 'policy'):
        assert measured[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)


@pytest.mark.thorough
def test_a_resumed_run_keeps_its_fit_where_the_configuration_leaves_it_open():
    assert learner(rows_per_micro=0).fit == ('none', 1)  # a CPU does not say what it has
    for fields, fit in (
        (dict(remat='auto', rows_per_micro=0), ('full', 2)),
        (dict(remat='dots', rows_per_micro=0), ('dots', 2)),
        (dict(remat='auto', rows_per_micro=3), ('full', 3)),
    ):
        made = learner(**fields)
        made.resume(['full', 2])
        assert made.fit == fit and made._compute.remat == fit[0]
        made.resume(None)  # of a run of an earlier version
        assert made.fit == fit


def token_advantages(made, rewards, found, groups):
    """Of every trajectory those of its sampled tokens, as the only update of a step would take them."""
    seen = []
    made._learn_policy = lambda step, sequences, given, reference: seen.append(given) or ({'loss': 0.0}, [])
    made.learn(1, found, rewards, groups, np.ones(len(found), bool))
    return seen[0]


def turn_sizes(episode):
    return [len(s.tokens) for s in episode if s.kind is Kind.ACTION]


@pytest.mark.thorough
@pytest.mark.parametrize('algorithm', ['grpo', 'reinforce', 'gspo'])
def test_credit_by_turn_spreads_each_turns_own_advantage_over_its_tokens(algorithm):
    found, totals, groups = episodes()
    turns = [np.array([0.3 * (i % 2), total]) for i, total in enumerate(totals)]
    got = token_advantages(learner(algorithm=algorithm, credit='turn'), turns, found, groups)
    for one, episode, own in zip(got, found, adv.by_turn(turns, groups), strict=True):
        np.testing.assert_array_equal(one, np.repeat(own, turn_sizes(episode)))
    summed = token_advantages(learner(algorithm=algorithm), turns, found, groups)
    plain = token_advantages(learner(algorithm=algorithm), [t.sum() for t in turns], found, groups)
    assert [one.tolist() for one in summed] == [one.tolist() for one in plain]  # credit by trajectory takes the sum


def test_a_critic_sees_each_turns_reward_at_the_turns_end():
    found, totals, groups = episodes()
    turns = [np.array([0.3 * (i % 2), total]) for i, total in enumerate(totals)]
    made = learner(CriticConfig(trace=0.9, discount=0.95), algorithm='ppo', credit='turn')
    made._learn_values = lambda *given: {}
    expected = []
    for episode, own in zip(found, turns, strict=True):
        first, last = turn_sizes(episode)
        rewards = np.r_[np.zeros(first - 1), own[0], np.zeros(last - 1), own[1]]
        expected.append(adv.gae(rewards, np.zeros(first + last), discount=0.95, trace=0.9)[0])  # values are 0 at first
    for one, own in zip(token_advantages(made, turns, found, groups), adv.whiten(expected), strict=True):
        np.testing.assert_allclose(one, own, rtol=1e-4, atol=1e-5)


def test_k1_by_turn_is_taken_off_every_turn_and_one_number_is_of_the_last_turn():
    found, totals, groups = episodes()
    made = learner(algorithm='rloo', credit='turn', kl=0.5, kl_estimator='k1')
    with jax.set_mesh(MESH):
        reference = made._reference_logprobs([flatten(e) for e in found])
    sampled = [np.concatenate([s.logprobs for s in e if s.kind is Kind.ACTION]) for e in found]
    shaped = [r - 0.5 * (own - ref).sum() for r, own, ref in zip(totals, sampled, reference, strict=True)]
    expected = adv.leave_one_out(np.array(shaped), groups, np.ones(len(found), bool))
    for one, a in zip(token_advantages(made, totals, found, groups), expected, strict=True):
        np.testing.assert_allclose(one, np.full(len(one), a), atol=1e-5)


def test_returns_to_go_of_tokens_follow_turns_where_credit_does():
    found, totals, groups = episodes()
    made = learner(algorithm='reinforce_plus_plus', credit='turn', kl=1e-9, kl_estimator='k1')
    got = token_advantages(made, [np.array([1.0, total]) for total in totals], found, groups)
    to_go = [np.repeat([1 + total, total], turn_sizes(e)) for total, e in zip(totals, found, strict=True)]
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(adv.whiten(to_go)), rtol=1e-4, atol=1e-5)


def test_credit_by_turn_needs_others_to_compare_with_and_no_advantage_on_documents():
    assert (
        RLConfig(algorithm='reinforce', credit='turn').min_group == 2 and RLConfig(algorithm='reinforce').min_group == 1
    )
    assert RLConfig(algorithm='ppo', credit='turn').min_group == 1
    with pytest.raises(ValueError, match='advantage for a trajectory'):
        RLConfig(credit='turn', observations='policy')
