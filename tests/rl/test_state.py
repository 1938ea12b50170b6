"""Learning-rate schedules, weight decay and the shardings of the state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zerosearch_jax import sharding
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.rl import state

TINY = PRESETS['tiny']
BIASED = dataclasses.replace(TINY, qkv_bias=True, tie_embeddings=False)


def rates(steps, total=100, **fields):
    schedule = state.schedule(state.OptimizerConfig(learning_rate=0.5, **fields), total)
    return [float(schedule(step)) for step in steps]


def test_constant_schedule_is_constant():
    assert rates([0, 1, 50, 1000]) == [0.5] * 4


def test_warmup_starts_above_zero_rises_in_equal_steps_and_then_stays():
    np.testing.assert_allclose(rates(range(7), warmup_steps=5), [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5], rtol=1e-6)


def test_a_warmup_of_one_step_is_the_full_rate_at_once():
    assert rates([0, 1, 2], warmup_steps=1) == [0.5] * 3


def test_cosine_falls_from_the_full_rate_to_zero_at_the_last_step():
    got = rates(range(101), schedule='cosine')
    assert got[0] == pytest.approx(0.5)
    assert got[50] == pytest.approx(0.25, rel=1e-5)
    assert got[100] == pytest.approx(0, abs=1e-7)
    assert got == sorted(got, reverse=True)


def test_cosine_after_a_warmup_ends_at_zero_too():
    got = rates(range(101), warmup_steps=20, schedule='cosine')
    assert got[0] == pytest.approx(0.5 / 20)
    assert max(got) == got[20] == pytest.approx(0.5)
    assert got[60] == pytest.approx(0.25, rel=1e-5)
    assert got[100] == pytest.approx(0, abs=1e-7)


def ones(layout):
    return jax.tree.map(lambda p: jnp.ones(p.shape), layout, is_leaf=sharding.is_param)


def decayed_names(layout):
    """Names of the weights that an update with zero gradients changes: those under weight decay."""
    params = ones(layout)
    cfg = state.OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    tx = state.optimizer(cfg, 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, step=0)
    moved = {}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        values = np.unique(np.asarray(update))
        assert len(values) == 1
        assert values[0] == pytest.approx(-0.05) or values[0] == 0
        moved[path[-1].key] = values[0] != 0
    return {name for name, changed in moved.items() if changed}


def test_weight_decay_acts_on_matrices_not_on_norms_and_biases():
    kernels = {'q', 'k', 'v', 'o', 'gate', 'up', 'down'}
    layout = transformer.layout(BIASED)
    assert {'q_bias', 'q_norm', 'attn_norm'} <= layout['layers'].keys()
    assert decayed_names(layout) == kernels | {'embed', 'head'}


def test_weight_decay_acts_on_adapters():
    layout = lora.layout(TINY, 2)
    assert decayed_names(layout) == layout['layers'].keys()


def test_gradients_are_clipped_by_their_global_norm():
    params = {'layers': {}, 'a': jnp.zeros(4), 'b': jnp.zeros((2, 2))}
    clip = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    cfg = state.OptimizerConfig(learning_rate=1.0, clip_norm=1.0, weight_decay=0.0)
    grads = {'layers': {}, 'a': jnp.full(4, 3.0), 'b': jnp.full((2, 2), 4.0)}  # norm 10
    tx = state.optimizer(cfg, 10)
    moments = optax.tree.get(tx.update(grads, tx.init(params), params, step=0)[1], 'mu')
    expected, _ = clip.update(grads, clip.init(params), params)
    np.testing.assert_allclose(moments['a'] / 0.1, -expected['a'], rtol=1e-5)  # b1 0.9: mu is a tenth
    np.testing.assert_allclose(moments['b'] / 0.1, np.full((2, 2), 0.4), rtol=1e-5)


def test_a_clip_norm_of_0_is_no_clipping_and_not_no_training():
    params = {'layers': {}, 'a': jnp.zeros(4)}
    grads = {'layers': {}, 'a': jnp.full(4, 3.0)}
    free, clipped = (state.optimizer(state.OptimizerConfig(learning_rate=1.0, clip_norm=n), 10) for n in (0.0, 1e9))
    got, kept = free.update(grads, free.init(params), params, step=0)
    expected, other = clipped.update(grads, clipped.init(params), params, step=0)
    assert jnp.abs(got['a']).min() > 0.9
    np.testing.assert_array_equal(got['a'], expected['a'])
    assert jax.tree.structure(kept) == jax.tree.structure(other)  # a checkpoint of the one is one of the other


def test_an_update_is_adamw_at_the_rate_of_the_step_it_is_told():
    params = {'layers': {}, 'a': jnp.arange(6.0).reshape(2, 3)}
    grads = {'layers': {}, 'a': jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}
    cfg = state.OptimizerConfig(learning_rate=0.1, warmup_steps=4, weight_decay=0.3, clip_norm=1e9)
    mine, kept = state.optimizer(cfg, 10), None
    for step, rate in [(0, 0.025), (0, 0.025), (2, 0.075), (9, 0.1)]:  # two updates in step 0
        theirs = optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay)
        kept = kept or (mine.init(params), theirs.init(params))
        got, first = mine.update(grads, kept[0], params, step=step)
        expected, second = theirs.update(grads, kept[1], params)
        kept = first, second
        np.testing.assert_allclose(got['a'], expected['a'], rtol=1e-5)


def test_moments_are_sharded_as_their_weights_and_a_fresh_state_is_born_there():
    mesh = sharding.make_mesh((1, 4, 2))
    layout = transformer.layout(TINY)
    tx = state.optimizer(state.OptimizerConfig(), 10)
    places = state.state_shardings(layout, tx, mesh)
    created = state.create(sharding.init(layout, jax.random.key(0), mesh), tx, places)
    assert int(created.step) == 0
    for moments in ('mu', 'nu'):
        tree = optax.tree.get(created.opt_state, moments)
        same = jax.tree.map(lambda m, w: m.sharding == w.sharding and not m.any(), tree, created.params)
        assert all(jax.tree.leaves(same))
    assert created.params['layers']['gate'].sharding.spec == sharding.spec(None, 'embed', 'mlp')
