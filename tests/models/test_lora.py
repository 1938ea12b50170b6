"""Low-rank adapters: x W + (x A) B is what the forward pass, the merge and the gradient compute."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.policy import PolicyConfig, make_trainable
from zerosearch_jax.sharding import make_mesh
from zerosearch_jax.text.tokenizer import byte_tokenizer
from zerosearch_jax.weights.trees import save_tree

RANK = 4
QWEN2 = dataclasses.replace(helpers.TINY, family='qwen2', qkv_bias=True, qk_norm=False)


def adapter(mesh, cfg=helpers.TINY, targets=lora.TARGETS, scale=0.3):
    """An adapter whose B is not zero."""
    tree = sharding.init(lora.layout(cfg, RANK, targets), jax.random.key(1), mesh)
    for i, (name, w) in enumerate(tree['layers'].items()):
        if name.endswith('_lora_b'):
            tree['layers'][name] = scale * jax.random.normal(jax.random.key(i), w.shape)
    return tree


TOKENS = np.array([helpers.prompt(12), helpers.prompt(12, 1)], np.int32)


def logits(params, cfg=helpers.TINY):
    with jax.set_mesh(make_mesh()):
        return np.asarray(helpers.full_logits(params, TOKENS, cfg))


def test_a_new_adapter_changes_nothing():
    mesh = make_mesh()
    params = helpers.tiny_params(mesh)
    new = sharding.init(lora.layout(helpers.TINY, RANK), jax.random.key(1), mesh)
    np.testing.assert_array_equal(logits(lora.combine(params, new)), logits(params))
    assert all(np.asarray(w).any() for n, w in new['layers'].items() if n.endswith('_lora_a'))  # else it never learns


@pytest.mark.parametrize('cfg', [helpers.TINY, QWEN2], ids=['qwen3', 'qwen2'])
def test_combined_forward_equals_merged_forward(cfg):
    mesh = make_mesh()
    params = helpers.tiny_params(mesh, cfg=cfg)
    combined = lora.combine(params, adapter(mesh, cfg))
    merged = lora.merge(combined)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(logits(combined, cfg), logits(merged, cfg), atol=1e-4)


def test_every_adapted_kernel_counts():
    mesh = make_mesh()
    params = helpers.tiny_params(mesh)
    extra, plain = adapter(mesh)['layers'], logits(params)
    for target in lora.TARGETS:
        one = {n: w if n.startswith(f'{target}_') or n.endswith('_a') else 0 * w for n, w in extra.items()}
        assert np.abs(logits(lora.combine(params, {'layers': one})) - plain).max() > 1e-2, target


def test_merge_equals_numpy():
    mesh = make_mesh()
    params, extra = helpers.tiny_params(mesh), adapter(mesh, targets=('q', 'down'))
    merged = jax.device_get(lora.merge(lora.combine(params, extra)))
    expected, extra = jax.device_get(params), jax.device_get(extra)['layers']
    for name in ('q', 'down'):
        a, b = extra[f'{name}_lora_a'].astype(np.float64), extra[f'{name}_lora_b'].astype(np.float64)
        expected['layers'][name] = expected['layers'][name] + np.stack([x @ y for x, y in zip(a, b, strict=True)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged, expected)


def test_merge_keeps_the_type_of_the_kernel_and_adds_in_float32():
    w = jnp.full((1, 2, 2), 1.0, jnp.bfloat16)
    pair = {'q_lora_a': jnp.full((1, 2, 1), 2**-5, jnp.bfloat16), 'q_lora_b': jnp.full((1, 1, 2), 2**-2, jnp.bfloat16)}
    merged = lora.merge({'layers': {'q': w, **pair}})['layers']['q']
    assert merged.dtype == jnp.bfloat16 and (np.asarray(merged, np.float32) == 1 + 2**-7).all()


def test_gradients_are_of_the_adapter_only():
    mesh = make_mesh()
    params, extra = helpers.tiny_params(mesh), adapter(mesh)

    def loss(extra, base):
        return jnp.sum(jnp.square(helpers.full_logits(lora.combine(base, extra), TOKENS)))

    with jax.set_mesh(mesh):
        grads = jax.jit(jax.grad(loss))(extra, params)
    assert jax.tree.structure(grads) == jax.tree.structure(extra)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_combine_copies_nothing_and_changes_neither():
    base = {'embed': jnp.ones(2), 'layers': {'q': jnp.ones((1, 2, 2))}}
    extra = {'layers': {'q_lora_a': jnp.ones((1, 2, 1)), 'q_lora_b': jnp.ones((1, 1, 2))}}
    both = lora.combine(base, extra)
    assert both['embed'] is base['embed'] and both['layers']['q_lora_a'] is extra['layers']['q_lora_a']
    assert set(base['layers']) == {'q'} and set(extra['layers']) == {'q_lora_a', 'q_lora_b'}
    assert lora.combine({}, base) is base


@pytest.mark.parametrize(('rank', 'targets'), [(0, ('q',)), (-1, ('q',)), (4, ('q', 'embed')), (4, ('query',))])
def test_bad_layouts_name_the_targets(rank, targets):
    with pytest.raises(ValueError, match='rank >= 1 and targets among q, k, v, o'):
        lora.layout(helpers.TINY, rank, targets)


@pytest.mark.parametrize('name', list(PRESETS))
def test_layout_fits_its_kernels(name):
    cfg = PRESETS[name]
    kernels, pairs = transformer.layout(cfg)['layers'], lora.layout(cfg, RANK)['layers']
    targets = lora.TARGETS[:4] if cfg.num_experts else lora.TARGETS
    assert len(pairs) == 2 * len(targets)
    for target in targets:
        a, b, w = pairs[f'{target}_lora_a'], pairs[f'{target}_lora_b'], kernels[target]
        assert (*a.shape[:2], b.shape[2]) == w.shape and a.shape[2] == b.shape[1] == RANK
        assert (*a.axes[:2], b.axes[2]) == w.axes


def test_trainable_splits_and_merges(tmp_path):
    mesh = make_mesh()
    model = pretrained.Model(helpers.TINY, byte_tokenizer(), helpers.tiny_params(mesh))
    extra = adapter(mesh)
    save_tree(tmp_path / 'extra.safetensors', extra)
    expected = logits(lora.combine(model.params, extra))
    given = str(tmp_path / 'extra.safetensors')

    low = make_trainable(model, PolicyConfig(adapter=given, lora_rank=RANK), mesh, 0)
    assert low.frozen is model.params and set(low.params) == {'layers'}
    np.testing.assert_array_equal(logits(lora.combine(low.frozen, low.params)), expected)
    full = make_trainable(model, PolicyConfig(adapter=given), mesh, 0)
    assert full.frozen == {} and jax.tree.structure(full.params) == jax.tree.structure(model.params)
    np.testing.assert_allclose(logits(full.params), expected, atol=1e-4)
    new = make_trainable(model, PolicyConfig(lora_rank=RANK), mesh, 0)
    np.testing.assert_array_equal(logits(lora.combine(new.frozen, new.params)), logits(model.params))
    plain = make_trainable(model, PolicyConfig(), mesh, 0)
    assert plain.params is model.params
    with pytest.raises(ValueError, match='lora_rank = 8'):
        make_trainable(model, PolicyConfig(adapter=given, lora_rank=8), mesh, 0)


def test_adapter_of_another_model_is_refused(tmp_path):
    mesh = make_mesh()
    save_tree(tmp_path / 'a.safetensors', adapter(mesh))
    wider = dataclasses.replace(helpers.TINY, mlp_size=256)
    with pytest.raises(ValueError, match='use the model that it was made for'):
        pretrained.load_adapter(str(tmp_path / 'a.safetensors'), wider, mesh)
    with pytest.raises(FileNotFoundError, match='shipped adapters'):
        pretrained.load_adapter('no-such-adapter', helpers.TINY, mesh)
