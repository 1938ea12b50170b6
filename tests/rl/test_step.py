"""The jitted update: neither packing, accumulation nor memory policy changes it, and masked tokens do no harm."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zerosearch_jax import sharding
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.rl import losses, state
from zerosearch_jax.rl.losses import Compute, LossConfig
from zerosearch_jax.rl.step import make_update, score
from zerosearch_jax.text.trajectory import Kind, Segment, flatten, pack

TINY = PRESETS['tiny']
MESH = sharding.make_mesh()
LENGTH = 32
LOSS = LossConfig(clip=0.2, clip_high=0.3, ratio='sequence', kl=0.1, kl_estimator='k2', entropy=0.05)
RATE = 0.1  # of plain SGD, so that the change of the weights is the gradient
SGD = optax.sgd(RATE)


@functools.cache
def initial(seed=1):
    tree = sharding.init(transformer.layout(TINY), jax.random.key(seed), MESH)
    return jax.tree.map(np.asarray, tree | {'embed': 20 * tree['embed']})


@functools.cache
def updater(sft=False, remat='none', rank=0):
    layout = lora.layout(TINY, rank) if rank else transformer.layout(TINY)
    shardings = state.state_shardings(layout, SGD, MESH)
    compute = Compute(remat=remat, chunk=16)
    return make_update(TINY, SGD, shardings, None if sft else LOSS, compute, 0.9), shardings


def run(batch, params=None, frozen=None, **options):
    """(gradients, metrics) of one update of the tiny model."""
    gradients, metrics = run_whole(batch, params, frozen, **options)
    return gradients, {name: float(value) for name, value in metrics.items() if name != 'logprobs'}


def run_whole(batch, params=None, frozen=None, **options):
    params = initial() if params is None else params
    update, shardings = updater(**options)
    with jax.set_mesh(MESH):
        fresh = state.create(jax.tree.map(jnp.array, params), SGD, shardings)
        after, metrics = update(fresh, frozen or {}, batch)
    assert int(after.step) == 1
    gradients = jax.tree.map(lambda old, new: (old - np.asarray(new)) / RATE, params, after.params)
    return gradients, metrics


@functools.cache
def sequences():
    """Eight trajectories of 9 to 32 tokens, with observations, whose share of actions differs a lot."""
    rng = np.random.default_rng(0)

    def ids(n):
        return tuple(int(i) for i in rng.integers(0, 384, n))

    out = []
    for actions in (2, 20, 4, 1, 9, 3, 6, 5):
        after = max(actions // 2, 1)
        segments = [Segment(Kind.PROMPT, ids(4))]
        segments.append(Segment(Kind.ACTION, ids(actions), tuple(rng.normal(-6, 0.3, actions))))
        segments.append(Segment(Kind.OBSERVATION, ids(3)))
        segments.append(Segment(Kind.ACTION, ids(after), tuple(rng.normal(-6, 0.3, after))))
        out.append(flatten(segments[: 2 if actions == 20 else 4]))
    return out


ADVANTAGES = np.random.default_rng(1).normal(size=8)


def packed(rows_per_micro, micro_batches=0, row_length=LENGTH, chosen=slice(None)):
    batch = pack(
        sequences()[chosen],
        ADVANTAGES[chosen],
        row_length=row_length,
        rows_per_micro=rows_per_micro,
        micro_batches=micro_batches,
    )
    # a reference that depends on the token alone, wherever it was packed
    return batch.replace(ref_logprobs=(-6 + np.sin(batch.tokens) / 5).astype(np.float32) * (batch.segments > 0))


def assert_same(got, expected, rtol=1e-5):
    """Gradients to `rtol` of the norm of each leaf, losses to 1e-6 absolute or 1e-5 relative."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got[0]), jax.tree.leaves(expected[0]), strict=True):
        assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b) + 1e-7, path
    for name, value in got[1].items():
        assert value == pytest.approx(expected[1][name], rel=1e-5, abs=1e-6), name


@functools.cache
def base():
    return run(packed(4))


def test_the_test_batch_is_one_micro_batch_with_a_gradient_everywhere():
    assert packed(4).tokens.shape == (1, 4, LENGTH)
    gradients, metrics = base()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    assert metrics['kl'] > 0.001
    assert 0 < metrics['clip_share'] < 1


def test_a_shared_prompt_gives_the_loss_and_gradient_of_prompts_apart():
    rng = np.random.default_rng(2)
    prompts = [Segment(Kind.PROMPT, tuple(int(i) for i in rng.integers(0, 384, n))) for n in (7, 11)]
    groups = []
    for number in range(8):
        ids = [tuple(int(i) for i in rng.integers(0, 384, 2 + number % 3)) for _ in range(3)]
        actions = [Segment(Kind.ACTION, part, tuple(rng.normal(-6, 0.3, len(part)))) for part in ids[:2]]
        segments = [prompts[number % 2], actions[0], Segment(Kind.OBSERVATION, ids[2]), actions[1]]
        groups.append(flatten(segments))

    def batch(row_length, sequences):
        made = pack(sequences, ADVANTAGES, row_length=row_length, rows_per_micro=1)
        return made.replace(ref_logprobs=(-6 + np.sin(made.tokens) / 5).astype(np.float32) * (made.segments > 0))

    apart = batch(LENGTH, [dataclasses.replace(s, prefix=0) for s in groups])
    shared = batch(4 * LENGTH, groups)
    used = [int((x.segments > 0).sum()) for x in (apart, shared)]
    assert used[0] - used[1] == 3 * 6 + 3 * 10  # each prompt but its last token, three times less
    assert_same(run(shared), run(apart))


@pytest.mark.parametrize('split', [dict(rows_per_micro=1), dict(rows_per_micro=2)], ids=str)
def test_accumulation_changes_nothing(split):
    batch = packed(**split)
    assert batch.tokens.shape[0] == 4 // split['rows_per_micro']
    assert_same(run(batch), base())


def test_another_packing_of_the_same_sequences_changes_nothing():
    batch = packed(1, row_length=2 * LENGTH)
    assert batch.segments.max() > packed(4).segments.max()
    assert_same(run(batch), base(), rtol=3e-5)


def test_empty_micro_batches_change_nothing():
    assert_same(run(packed(2, micro_batches=5)), base())


def test_a_fully_masked_row_with_any_values_changes_nothing():
    batch = packed(2, micro_batches=3)
    expected = run(batch)
    assert not batch.segments[2].any()
    rng = np.random.default_rng(0)
    spoilt = jax.tree.map(np.copy, batch)
    spoilt.tokens[2] = rng.integers(0, 384, (2, LENGTH))
    spoilt.positions[2] = np.arange(LENGTH)
    spoilt.segments[2] = 1
    for field in (spoilt.old_logprobs, spoilt.ref_logprobs, spoilt.advantages):
        field[2] = np.inf
    assert_same(run(spoilt), expected, rtol=0)
    # the same row beside one that has weight, so that it cannot be skipped with its micro-batch
    beside, spoilt_beside = (x.reshape(1, 6, LENGTH) for x in (batch.tokens, spoilt.tokens))
    assert (beside[0, :4] == spoilt_beside[0, :4]).all()
    assert_same(run(jax.tree.map(lambda x: x.reshape(1, 6, LENGTH), spoilt)), expected)


def test_a_batch_without_any_action_is_finite_and_teaches_nothing():
    batch = packed(2, micro_batches=3)
    for silent in (batch.replace(weights=np.zeros_like(batch.weights)), jax.tree.map(np.zeros_like, batch)):
        gradients, metrics = run(silent)
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics['loss'] == metrics['grad_norm'] == 0


def reference_logprobs(params, batch, temperature=0.9):
    """Row by row, and a micro-batch at a time, by the free function."""
    with jax.set_mesh(MESH):
        parts = [
            losses.token_logprobs(params, TINY, jax.tree.map(lambda x, m=m: x[m], batch), temperature, Compute(chunk=8))
            for m in range(batch.tokens.shape[0])
        ]
    return tuple(np.stack([np.asarray(part[i]) for part in parts]) for i in range(2))


def test_one_global_denominator_not_a_mean_of_means():
    batch = packed(1)
    by_micro = batch.weights.sum((1, 2))
    assert by_micro.max() > 1.5 * by_micro.min()
    logprobs, entropies = reference_logprobs(initial(), batch)
    sums = [
        float(losses.policy_loss(logprobs[m], entropies[m], jax.tree.map(lambda x, m=m: x[m], batch), LOSS)[0])
        for m in range(len(by_micro))
    ]
    _, metrics = run(batch)
    assert metrics['tokens'] == batch.weights.sum()
    assert metrics['loss'] == pytest.approx(sum(sums) / by_micro.sum(), rel=1e-4)
    assert abs(metrics['loss'] - np.mean(sums / by_micro)) > 0.01


def test_maxima_are_maxima_over_micro_batches():
    batch = packed(2)
    gap = np.abs(reference_logprobs(initial(), batch)[0] - batch.old_logprobs)[batch.weights > 0]
    assert run(batch)[1]['logprob_gap_max'] == pytest.approx(gap.max(), rel=1e-4)


@pytest.mark.parametrize('micro', [1, 2])
def test_logprobs_are_those_of_the_weighted_tokens_before_the_update(micro):
    batch = packed(micro)
    found = np.asarray(run_whole(batch)[1]['logprobs'])
    want = np.where(batch.weights > 0, reference_logprobs(initial(), batch)[0], 0.0)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert 'logprobs' not in run_whole(batch, sft=True)[1]


def test_grad_norm_is_the_norm_of_the_gradient():
    gradients, metrics = base()
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(gradients)))
    assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_memory_policies_change_nothing(remat):
    assert_same(run(packed(4), remat=remat), base())


def test_sft_is_the_mean_negative_log_likelihood_of_the_weighted_tokens():
    batch = packed(2)
    expected = -(reference_logprobs(initial(), batch)[0] * batch.weights).sum() / batch.weights.sum()
    gradients, metrics = run(batch, sft=True)
    assert metrics['loss'] == metrics['nll'] == pytest.approx(expected, rel=1e-5)
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, initial(), gradients)
    after = -(reference_logprobs(moved, batch)[0] * batch.weights).sum() / batch.weights.sum()
    assert after < expected - 0.005 * metrics['grad_norm'] ** 2  # descends, by about 0.01 |g|^2


def test_score_is_token_logprobs_and_skips_empty_micro_batches():
    batch = packed(2, micro_batches=3)
    with jax.set_mesh(MESH):
        got = np.asarray(score(initial(), {}, batch, 0.9, cfg=TINY, compute=Compute(chunk=16)))
    expected, _ = reference_logprobs(initial(), batch)
    np.testing.assert_allclose(got[:2], expected[:2], rtol=1e-4, atol=1e-4)
    assert not got[2].any()


def test_with_an_adapter_only_the_adapter_is_trained():
    frozen = jax.tree.map(jnp.array, initial())
    adapter = jax.tree.map(np.asarray, sharding.init(lora.layout(TINY, 2), jax.random.key(2), MESH))
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda x: (x + rng.normal(0, 0.1, x.shape)).astype(np.float32), adapter)
    gradients, metrics = run(packed(4), adapter, frozen, rank=2)
    assert gradients['layers'].keys() == lora.layout(TINY, 2)['layers'].keys()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (np.asarray(a) == b).all(), frozen, initial())))
    # the chain rule through W + A B, from the gradient of the merged weights
    merged = jax.tree.map(np.asarray, lora.merge(lora.combine(frozen, adapter)))
    whole, whole_metrics = run(packed(4), merged)
    assert metrics['loss'] == pytest.approx(whole_metrics['loss'], rel=1e-4)
    expected = np.einsum('lio,lro->lir', whole['layers']['gate'], adapter['layers']['gate_lora_b'])
    np.testing.assert_allclose(gradients['layers']['gate_lora_a'], expected, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize('rank', [0, 2])
def test_the_gradient_of_a_frozen_head_is_not_computed(rank):
    """A quarter of the products with the head: the compiled loop over chunks has it only if the head is trained."""
    update, _ = updater(rank=rank)
    layout = lora.layout(TINY, rank) if rank else transformer.layout(TINY)
    params = sharding.abstract(layout, MESH)
    current = state.TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(SGD.init, params))
    frozen = sharding.abstract(transformer.layout(TINY), MESH) if rank else {}
    with jax.set_mesh(MESH):
        compiled = update.lower(current, frozen, packed(4)).compile().as_text()
    assert ('prcd,prcv->pdv' in compiled) == (rank == 0)
