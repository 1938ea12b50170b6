"""Token log-probs against the whole logits, and the policy loss against a NumPy reference."""

import dataclasses

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from zerosearch_jax import sharding
from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.rl import losses
from zerosearch_jax.rl.losses import Compute, LossConfig
from zerosearch_jax.text.trajectory import Batch, Kind, Segment, flatten, pack

TINY = PRESETS['tiny']
MESH = sharding.make_mesh()
SHAPE = (2, 6)
WEIGHTS = np.array([[0, 0, 1, 1, 0, 1], [0, 1, 0.5, 0, 1, 0]], np.float32)  # observations between the actions


@pytest.fixture(scope='module')
def params():
    tree = sharding.init(transformer.layout(TINY), jax.random.key(1), MESH)
    return tree | {'embed': 20 * tree['embed']}  # far from uniform


def two_rows(length=16):
    rng = np.random.default_rng(0)
    segments = [
        [Segment(Kind.PROMPT, tuple(rng.integers(0, 384, 3))), Segment(Kind.ACTION, tuple(rng.integers(0, 384, n)))]
        for n in (4, 10)
    ]
    batch = pack([flatten(s) for s in segments], [0, 0], row_length=length, rows_per_micro=2)
    return jax.tree.map(lambda x: x[0], batch)


def token_logprobs(params, batch, temperature=1.0, compute=Compute(chunk=8)):  # noqa: B008
    with jax.set_mesh(MESH):
        return jax.tree.map(np.asarray, losses.token_logprobs(params, TINY, batch, temperature, compute))


# ---------------------------------------------------------------- log-probs


@pytest.mark.thorough
@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_token_logprobs_and_entropies_are_those_of_the_whole_logits(params, temperature, strict_ranks):
    batch = two_rows()
    with jax.set_mesh(MESH):
        hidden = transformer.hidden(params, TINY, batch.tokens, batch.positions, batch.segments, batch.prefixes)
        logits = np.asarray(transformer.logits(params, hidden), np.float64) / temperature
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -(np.exp(log_softmax) * log_softmax).sum(-1)
    expected, expected_entropy = np.zeros((2, *batch.tokens.shape))
    for r, t in np.ndindex(batch.tokens.shape):
        if t and batch.weights[r, t]:
            expected[r, t] = log_softmax[r, t - 1, batch.tokens[r, t]]
            expected_entropy[r, t] = entropy[r, t - 1]
    got, got_entropy = token_logprobs(params, batch, temperature)
    assert expected.std() > 1  # the model is far from uniform, so a wrong shift would show
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got_entropy, expected_entropy, rtol=1e-4, atol=1e-4)


def plain_logprobs(params, batch, temperature):
    """As token_logprobs, from the logits of every token at once, with the gradient that JAX derives."""
    hidden = transformer.hidden(params, TINY, batch.tokens, batch.positions, batch.segments, batch.prefixes)
    log_softmax = jax.nn.log_softmax(transformer.logits(params, hidden) / temperature)[:, :-1]
    chosen = jnp.take_along_axis(log_softmax, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_softmax) * log_softmax, axis=-1)
    active = batch.weights[:, 1:] > 0
    return tuple(jnp.pad(jnp.where(active, x, 0.0), ((0, 0), (1, 0))) for x in (chosen, entropy))


@pytest.mark.thorough
@pytest.mark.parametrize('chunk', [2, 5, 16, 64])  # 5 does not divide the row
@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_the_gradient_is_that_of_the_whole_logits_for_any_chunk(params, chunk, temperature):
    batch = two_rows()
    weights = np.random.default_rng(0).normal(size=(2, *batch.tokens.shape))

    def gradient(function, *args):
        def total(params):
            logprobs, entropies = function(params, *args)
            return jnp.sum(weights[0] * jnp.sin(logprobs) + weights[1] * jnp.cos(entropies))

        with jax.set_mesh(MESH):
            return jax.value_and_grad(total)(params)

    ours = gradient(losses.token_logprobs, TINY, batch, temperature, Compute(chunk=chunk))
    chex.assert_trees_all_close(ours, gradient(plain_logprobs, batch, temperature), rtol=1e-4, atol=1e-4)


def test_packed_rows_equal_separate_rows(params):
    apart = two_rows()
    parts = [apart.tokens[r][apart.segments[r] > 0] for r in range(2)]
    sequences = [flatten([Segment(Kind.ACTION, tuple(part))]) for part in parts]
    packed = jax.tree.map(lambda x: x[0], pack(sequences, [0, 0], row_length=24, rows_per_micro=1))
    everything = apart.replace(weights=(apart.segments > 0).astype(np.float32))
    together, alone = token_logprobs(params, packed), token_logprobs(params, everything)
    for r, part in enumerate(parts):
        place = np.flatnonzero([(packed.tokens[0, i : i + len(part)] == part).all() for i in range(25 - len(part))])[0]
        for packed_values, alone_values in zip(
            together, alone, strict=True
        ):  # a first token follows nothing of its own
            np.testing.assert_allclose(
                packed_values[0, place + 1 : place + len(part)], alone_values[r, 1 : len(part)], rtol=1e-4, atol=1e-4
            )


def test_tokens_without_weight_cost_no_logits_and_score_zero(params):
    """A chunk of logits is skipped only if it is not needed: NaN weights of the head would show in one that is not."""
    batch = two_rows()
    logprobs, entropies = token_logprobs(params, batch)
    assert (logprobs[batch.weights == 0] == 0).all()
    assert (entropies[batch.weights == 0] == 0).all()
    assert (logprobs[batch.weights > 0] < 0).all()
    poisoned = params | {'head': jax.device_put(np.full((64, 384), np.nan, np.float32), sharding.named(MESH))}
    nothing = batch.replace(weights=np.zeros_like(batch.weights))
    assert not np.isnan(token_logprobs(poisoned, nothing)[0]).any()
    assert np.isnan(token_logprobs(poisoned, batch)[0][batch.weights > 0]).all()


def test_logits_of_bfloat16_operands_leave_the_product_in_float32():
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((1, 4, 64), (64, 384)))
    with jax.set_mesh(MESH):
        got = transformer.project(hidden, head)
    exact = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)


def test_log_probs_do_not_depend_on_later_tokens(params):
    batch = two_rows()
    tokens = batch.tokens.copy()
    tokens[:, 6] = (tokens[:, 6] + 1) % 384
    before, after = token_logprobs(params, batch)[0], token_logprobs(params, batch.replace(tokens=tokens))[0]
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (before[:, 6] != after[:, 6]).all()


# ---------------------------------------------------------------- the policy loss


def make_batch(seed=0, weights=WEIGHTS, spread=0.5):
    rng = np.random.default_rng(seed)
    zeros = np.zeros(weights.shape, np.int32)
    old, ref = (rng.normal(-2, spread, weights.shape).astype(np.float32) for _ in range(2))
    advantages = rng.normal(size=weights.shape).astype(np.float32)
    return Batch(zeros, zeros, zeros, zeros, weights, advantages, old, ref)


def make_logprobs(seed=0, spread=0.5, shape=SHAPE):
    rng = np.random.default_rng(seed + 1000)
    return rng.normal(-2, spread, shape).astype(np.float32), rng.uniform(0, 5, shape).astype(np.float32)


def reference_loss(logprobs, entropies, batch, cfg):
    """Token by token, in float64."""
    total, sums = 0.0, dict.fromkeys(('policy', 'kl', 'entropy', 'clip_share', 'ratio', 'logprob'), 0.0)
    for at in np.ndindex(logprobs.shape):
        weight = float(batch.weights[at])
        if weight == 0:
            continue
        logprob, advantage = float(logprobs[at]), float(batch.advantages[at])
        ratio = np.exp(logprob - float(batch.old_logprobs[at]))
        within = min(max(ratio, 1 - cfg.clip), 1 + cfg.clip)
        policy = max(-advantage * ratio, -advantage * within)
        d = float(batch.ref_logprobs[at]) - logprob
        kl = np.exp(d) - d - 1 if cfg.kl else 0.0  # without a weight there is no reference to measure
        terms = (policy, kl, float(entropies[at]), float(ratio * advantage > within * advantage), ratio, logprob)
        for name, value in zip(sums, terms, strict=True):
            sums[name] += weight * value
        total += weight * (policy + cfg.kl * kl - cfg.entropy * float(entropies[at]))
    return total, sums


@hypothesis.given(
    st.integers(0, 10_000),
    st.floats(0.05, 0.5),
    st.sampled_from([0.0, 0.001, 0.5]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_policy_loss_equals_the_reference(seed, clip, kl, entropy, spread):
    batch, cfg = make_batch(seed, spread=spread), LossConfig(clip, kl=kl, entropy=entropy)
    logprobs, entropies = make_logprobs(seed, spread)
    loss, sums = losses.policy_loss(logprobs, entropies, batch, cfg)
    expected, expected_sums = reference_loss(logprobs, entropies, batch, cfg)
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for name, value in expected_sums.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-4, abs=1e-4), name
    gap = np.abs(logprobs - batch.old_logprobs)[batch.weights > 0].max()
    assert float(sums['logprob_gap_max']) == pytest.approx(gap, rel=1e-5)


def loss_gradient(logprobs, entropies, batch, cfg=LossConfig(0.2, kl=0.1, entropy=0.1)):  # noqa: B008
    """The loss, and its gradients with respect to log-probs and entropies."""

    def loss(logprobs, entropies):
        return losses.policy_loss(logprobs, entropies, batch, cfg)[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(logprobs), jnp.asarray(entropies))
    return float(value), *map(np.asarray, gradients)


@pytest.mark.parametrize(
    ('advantage', 'log_ratio', 'flows'),
    [(1.0, 0.5, False), (-1.0, -0.5, False), (1.0, -0.5, True), (-1.0, 0.5, True), (1.0, 0.1, True), (-1.0, 0.1, True)],
)
def test_clipping_stops_the_gradient_only_where_the_step_has_gone_far_enough(advantage, log_ratio, flows):
    one = np.ones((1, 1), np.float32)
    batch = make_batch(weights=one).replace(advantages=advantage * one, old_logprobs=-2 * one)
    _, gradient, _ = loss_gradient((log_ratio - 2) * one, one, batch, LossConfig(0.2, kl=0.0))
    assert gradient[0, 0] == pytest.approx(-advantage * np.exp(log_ratio) if flows else 0.0, rel=1e-5)


@pytest.mark.parametrize('log_ratio', [-1.0, 0.0, 1.0])
def test_a_clip_of_0_is_no_clipping_and_not_no_gradient(log_ratio):
    one = np.ones((1, 1), np.float32)
    batch = make_batch(weights=one).replace(advantages=one, old_logprobs=-2 * one)
    _, gradient, _ = loss_gradient((log_ratio - 2) * one, one, batch, LossConfig(0.0, kl=0.0))
    assert gradient[0, 0] == pytest.approx(-np.exp(log_ratio), rel=1e-5)


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient():
    batch = make_batch()
    _, gradient, _ = loss_gradient(batch.old_logprobs, batch.old_logprobs, batch, LossConfig(0.2, kl=0.0))
    np.testing.assert_allclose(gradient, -batch.advantages * WEIGHTS, rtol=1e-6)


def logits_gradient(weights, seed=3):
    """Gradient of the loss with respect to the logits [R, T, V] of each token's distribution."""
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=(*SHAPE, 7)).astype(np.float32), rng.integers(0, 7, SHAPE)
    batch = make_batch(seed, weights)

    def loss(logits):
        log_softmax = jax.nn.log_softmax(logits)
        logprobs = jnp.take_along_axis(log_softmax, targets[..., None], -1)[..., 0]
        entropies = -jnp.sum(jnp.exp(log_softmax) * log_softmax, -1)
        return losses.policy_loss(logprobs, entropies, batch, LossConfig(5.0, kl=0.1, entropy=0.1))[0]

    return np.asarray(jax.grad(loss)(logits))


def test_logits_of_prompts_and_observations_get_exactly_no_gradient():
    gradient = logits_gradient(WEIGHTS)
    assert (gradient[WEIGHTS == 0] == 0).all()
    assert (np.abs(gradient[WEIGHTS > 0]).max(-1) > 1e-3).all()


@pytest.mark.parametrize(
    'wrong', [np.ones_like(WEIGHTS), (WEIGHTS == 0).astype(np.float32)], ids=['absent', 'inverted']
)
def test_a_missing_or_inverted_mask_would_be_seen(wrong):
    """The test above fails under these masks, and the loss differs: it can fail."""
    assert (np.abs(logits_gradient(wrong)[WEIGHTS == 0]).max(-1) > 1e-3).all()
    logprobs, entropies = make_logprobs()
    right, mutated = (
        losses.policy_loss(logprobs, entropies, make_batch(weights=w), LossConfig()) for w in (WEIGHTS, wrong)
    )
    assert abs(float(right[0] - mutated[0])) > 0.05


@pytest.mark.parametrize('stale', [1e30, -1e30, np.inf, -np.inf, np.nan])
def test_stale_values_at_masked_positions_change_nothing(stale):
    batch, cfg = make_batch(), LossConfig(0.2, kl=0.1, entropy=0.1)
    logprobs, entropies = make_logprobs()
    masked = WEIGHTS == 0
    fields = ('advantages', 'old_logprobs', 'ref_logprobs')
    dirty = batch.replace(**{name: np.where(masked, np.float32(stale), getattr(batch, name)) for name in fields})
    clean_sums = losses.policy_loss(logprobs, entropies, batch, cfg)[1]
    for name, value in losses.policy_loss(logprobs, entropies, dirty, cfg)[1].items():
        assert float(value) == float(clean_sums[name]), name
    for got, expected in zip(
        loss_gradient(logprobs, entropies, dirty, cfg), loss_gradient(logprobs, entropies, batch, cfg), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@hypothesis.given(st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=8), st.integers(0, 100))
def test_k3_is_never_negative_and_zero_at_the_reference(values, seed):
    logprobs = np.array([values], np.float32)
    batch = make_batch(weights=np.ones_like(logprobs))
    other = np.random.default_rng(seed).uniform(-20, 0, logprobs.shape).astype(np.float32)
    assert (
        float(losses.policy_loss(logprobs, logprobs, batch.replace(ref_logprobs=logprobs), LossConfig())[1]['kl']) == 0
    )
    for ref in (other, logprobs + np.float32(1e-3), logprobs - np.float32(1e-3)):
        assert (
            float(losses.policy_loss(logprobs, logprobs, batch.replace(ref_logprobs=ref), LossConfig())[1]['kl'])
            > -1e-6
        )


def expected_kl_gradient(theta, reference, **cfg):
    """Gradient of the expected loss over all actions of a softmax policy, advantages 0; weights are probabilities."""
    weights = np.asarray(jax.nn.softmax(theta))[None]
    old = np.asarray(jax.nn.log_softmax(theta))[None]
    batch = make_batch(weights=weights).replace(
        advantages=np.zeros_like(weights),
        old_logprobs=old,
        ref_logprobs=np.asarray(jax.nn.log_softmax(reference))[None],
    )

    def loss(theta):
        logprobs = jax.nn.log_softmax(theta)[None]
        return losses.policy_loss(logprobs, jnp.zeros_like(logprobs), batch, LossConfig(**cfg))[0]

    return np.asarray(jax.grad(loss)(theta))


@hypothesis.given(st.integers(0, 1000))
def test_the_k3_gradient_points_to_the_reference(seed):
    theta, reference = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5)), jnp.float32)
    gradient = expected_kl_gradient(theta, reference, kl=1.0, kl_estimator='k3')
    np.testing.assert_allclose(gradient, jax.nn.softmax(theta) - jax.nn.softmax(reference), atol=1e-5)
    assert divergence(theta - 0.01 * gradient, reference) < divergence(theta, reference)


def test_d2_a_negative_coefficient_points_away_from_it():
    theta, reference = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 1.0, 0.0])
    toward, away = (expected_kl_gradient(theta, reference, kl=kl, kl_estimator='k3') for kl in (1.0, -1.0))
    np.testing.assert_allclose(away, -toward, rtol=1e-6)
    assert divergence(theta - 0.01 * away, reference) > divergence(theta, reference)


def divergence(theta, reference):
    """KL(policy, reference)."""
    return jnp.sum(jax.nn.softmax(theta) * (jax.nn.log_softmax(theta) - jax.nn.log_softmax(reference)))


@hypothesis.given(st.integers(0, 1000))
def test_the_k2_gradient_is_that_of_the_divergence(seed):
    theta, reference = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5)), jnp.float32)
    gradient = expected_kl_gradient(theta, reference, kl=1.0, kl_estimator='k2')
    np.testing.assert_allclose(gradient, jax.grad(divergence)(theta, reference), atol=1e-5)


@hypothesis.given(st.integers(0, 1000), st.sampled_from(['token', 'sequence']))
def test_no_advantage_no_gradient(seed, ratio):
    batch = make_batch().replace(advantages=np.zeros(SHAPE, np.float32))
    rng = np.random.default_rng(seed)
    logprobs, entropies = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(2))
    for gradient in loss_gradient(logprobs, entropies, batch, LossConfig(kl=0.0, entropy=0.0, ratio=ratio)):
        assert not np.asarray(gradient).any()


@pytest.mark.parametrize('ratio', ['token', 'sequence'])
def test_a_token_that_nobody_sampled_has_ratio_one(ratio):
    batch, (logprobs, entropies) = make_batch(), make_logprobs()
    active = np.argwhere(np.asarray(batch.weights) > 0)
    row, column = active[0]
    old = np.array(batch.old_logprobs) - 0.5  # whatever the others' ratio is
    old[row, column] = np.nan
    cfg = LossConfig(kl=0.0, entropy=0.0, ratio=ratio, clip=0.1)
    _, gradient, _ = loss_gradient(logprobs, entropies, batch.replace(old_logprobs=old), cfg)
    expected = -batch.weights[row, column] * batch.advantages[row, column]
    np.testing.assert_allclose(gradient[row, column], expected, rtol=1e-5)
    assert expected != 0


def test_gspos_mean_is_over_sampled_tokens_alone():
    ones = np.ones((1, 4), np.float32)
    old = np.array([[-2.1, np.nan, -2.3, np.nan]], np.float32)  # two observations are trained on
    batch = make_batch(weights=ones).replace(old_logprobs=old, segments=np.ones((1, 4), np.int32))
    _, sums = losses.policy_loss(-2 * ones, ones, batch, LossConfig(kl=0.0, ratio='sequence'))
    assert float(sums['ratio']) == pytest.approx(2 * np.exp(0.2) + 2, rel=1e-5)


def test_without_kl_the_reference_has_no_influence():
    batch = make_batch()
    logprobs, entropies = make_logprobs()
    cfg = dataclasses.replace(LossConfig(), kl=0.0)
    got = loss_gradient(logprobs, entropies, batch.replace(ref_logprobs=np.full(SHAPE, np.nan, np.float32)), cfg)
    for value, expected in zip(got, loss_gradient(logprobs, entropies, batch, cfg), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_nll_loss_is_the_weighted_sum():
    logprobs, _ = make_logprobs()
    loss, sums = losses.nll_loss(logprobs, make_batch())
    assert float(loss) == pytest.approx(-(WEIGHTS * logprobs).sum(dtype=np.float64), rel=1e-5)
    assert float(sums['nll']) == float(loss)


def test_arrays_of_another_shape_are_refused():
    logprobs, entropies = make_logprobs()
    with pytest.raises(AssertionError):
        losses.policy_loss(logprobs[:1], entropies, make_batch(), LossConfig())
