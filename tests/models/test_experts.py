"""A mixture of experts: what each token's experts add up to, in value and gradient, on any mesh and in the engine."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, drain, requests, tiny_engine, tiny_params, worst

from zerosearch_jax import sharding
from zerosearch_jax.generate import serving
from zerosearch_jax.models import config, experts, lora, quant, transformer

MOE = dataclasses.replace(
    TINY, family='qwen3_moe', mlp_size=32, num_experts=6, experts_per_token=2, normalize_experts=True
)


def layer_of(cfg, seed=0):
    """One layer's weights in numpy, with a router that prefers no expert."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=p.shape[1:]).astype(np.float32) / 4 for n, p in experts.layout(cfg).items()}


def expected(layer, x, cfg):
    """Token by token, expert by expert."""
    out = np.zeros_like(x)
    for row in np.ndindex(x.shape[:2]):
        logits = x[row] @ layer['router']
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        chosen = np.argsort(-shares)[: cfg.experts_per_token]
        total = shares[chosen].sum() if cfg.normalize_experts else 1.0
        for expert in chosen:
            gate, up = (x[row] @ layer[name][expert] for name in ('expert_gate', 'expert_up'))
            silu = gate / (1 + np.exp(-gate))
            out[row] += shares[expert] / total * (silu * up) @ layer['expert_down'][expert]
    return out


def run_on(mesh, layer, x, cfg, axes):
    with jax.set_mesh(mesh):
        return jax.jit(functools.partial(experts.mlp, cfg=cfg, axes=axes))(layer, x)


@pytest.mark.parametrize('axes', [transformer.TOKENS, ('rows', None, 'embed')], ids=['training', 'generation'])
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize('normalize', [True, False])
def test_experts_equal_the_definition(shape, axes, normalize):
    cfg = dataclasses.replace(MOE, normalize_experts=normalize)
    layer, x = layer_of(cfg), np.random.default_rng(1).normal(size=(4, 5, cfg.hidden_size)).astype(np.float32)
    want = expected(layer, x, cfg)
    np.testing.assert_allclose(run_on(sharding.make_mesh(shape), layer, x, cfg, axes), want, rtol=1e-4, atol=1e-5)


def test_an_expert_without_tokens_and_one_with_all_are_computed_too():
    layer, x = layer_of(MOE), np.abs(np.random.default_rng(1).normal(size=(1, 9, MOE.hidden_size))).astype(np.float32)
    layer['router'] = np.tile(np.array([3.0, 2, 1, 0, -1, -2], np.float32), (MOE.hidden_size, 1))
    weights, chosen = experts.route(layer['router'], x[0], MOE)
    assert (np.sort(chosen, axis=1) == [0, 1]).all() and np.allclose(weights.sum(1), 1)
    got = run_on(sharding.make_mesh(), layer, x, MOE, transformer.TOKENS)
    np.testing.assert_allclose(got, expected(layer, x, MOE), rtol=1e-4, atol=1e-4)


def test_the_router_is_in_float32():
    """Two experts whose weights differ by less than bfloat16 can tell."""
    router = np.zeros((MOE.hidden_size, MOE.num_experts), np.float32)
    router[0] = [1.0, 1.001, 0, 0, 0, 1.002]
    x = np.zeros((1, MOE.hidden_size), np.float32)
    x[0, 0] = 8
    _, chosen = experts.route(router, jnp.asarray(x, jnp.bfloat16), MOE)
    assert chosen.tolist() == [[5, 1]]
    mesh = sharding.make_mesh()
    layer = serving.base_layout(tiny_params(mesh, cfg=MOE), MOE, mesh, dtype=jnp.bfloat16)['layers'][0]
    assert {name for name, w in layer.items() if w.dtype == jnp.float32} == {'router'}


def losses(mesh, cfg=MOE):
    """A loss of packed rows and its gradient by every weight."""
    rng = np.random.default_rng(0)
    tokens, target = rng.integers(0, cfg.vocab_size, (8, 12)), rng.normal(size=(8, 12, cfg.hidden_size))
    ones = np.ones((8, 12), np.int32)

    def loss(params):
        out = transformer.hidden(params, cfg, tokens, np.tile(np.arange(12), (8, 1)), ones, ones, remat='full')
        return jnp.sum(out * target) / 100

    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(tiny_params(mesh, cfg=cfg)))


def test_loss_and_gradients_are_those_of_any_mesh_and_of_differences():
    one, (many, many_grads) = losses(sharding.make_mesh()), losses(sharding.make_mesh((2, 2, 2)))
    assert many == pytest.approx(one[0], rel=1e-5)
    for got, want in zip(jax.tree.leaves(many_grads), jax.tree.leaves(one[1]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    assert all(np.abs(one[1]['layers'][name]).max() > 1e-3 for name in experts.layout(MOE))


def test_the_gradient_is_that_of_the_definition():
    layer, rng = layer_of(MOE), np.random.default_rng(1)
    x, direction = rng.normal(size=(2, 2, 6, MOE.hidden_size)).astype(np.float32)

    def total(layer, x):
        return jnp.sum(experts.mlp(layer, x, MOE, transformer.TOKENS) * direction)

    with jax.set_mesh(sharding.make_mesh()):
        by_layer, by_x = jax.jit(jax.grad(total, (0, 1)))(layer, x)
    for name, gradient in [*by_layer.items(), ('x', by_x)]:
        move = rng.normal(size=gradient.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = {n: w.astype(np.float64) + (step * move if n == name else 0) for n, w in layer.items()}
            at = x.astype(np.float64) + (step * move if name == 'x' else 0)
            ends.append(np.sum(expected(moved, at, MOE) * direction))
        assert np.sum(gradient * move) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-3), name


def test_a_packed_row_equals_its_sequences_alone():
    mesh = sharding.make_mesh()
    params, texts = tiny_params(mesh, cfg=MOE), [np.array(helpers.prompt(n)) for n in (7, 12)]
    row, positions = np.concatenate(texts)[None], np.r_[np.arange(7), np.arange(12)][None]
    segments = np.repeat([1, 2], [7, 12])[None]
    with jax.set_mesh(mesh):
        together = transformer.logits(params, transformer.hidden(params, MOE, row, positions, segments, segments))[0]
        for part, text in zip(np.split(together, [7]), texts, strict=True):
            assert worst(part, helpers.full_logits(params, text[None], MOE)[0]) < 1e-4


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)])
def test_cached_decoding_equals_the_full_forward(shape):
    mesh = sharding.make_mesh(shape)
    params = tiny_params(mesh, cfg=MOE)
    found = drain(tiny_engine(mesh, params, cfg=MOE, temperature=0.0), requests([5, 11, 3], 12))
    with jax.set_mesh(sharding.make_mesh()):
        one = jax.device_get(params)
        for handle, (length, _) in enumerate([(5, 0), (11, 1), (3, 2)]):
            ids = [*helpers.prompt(length, handle), *found[handle].tokens]
            greedy = np.argmax(helpers.full_logits(one, np.array([ids]), MOE)[0], axis=-1)
            assert greedy[length - 1 : -1].tolist() == list(found[handle].tokens)


def test_adapters_are_those_of_attention():
    assert {name.split('_')[0] for name in lora.layout(MOE, 4)['layers']} == {'q', 'k', 'v', 'o'}
    with pytest.raises(ValueError, match='among q, k, v, o; got rank 4'):
        lora.layout(MOE, 4, ('q', 'up'))
    mesh = sharding.make_mesh()
    adapter = sharding.init(lora.layout(MOE, 4), jax.random.key(1), mesh)
    adapter['layers'] = {name: w + 0.1 for name, w in adapter['layers'].items()}
    params, asked = lora.combine(tiny_params(mesh, cfg=MOE), adapter), requests([5, 11], 12)
    beside = tiny_engine(mesh, cfg=MOE, temperature=0.0)
    beside.load(params, temperature=0.0)
    merged = tiny_engine(mesh, lora.merge(params), cfg=MOE, temperature=0.0)
    tokens = [[s.tokens for _, s in sorted(drain(engine, asked).items())] for engine in (beside, merged)]
    assert tokens[0] == tokens[1]


def test_experts_in_eight_bits_are_near_the_original():
    mesh = sharding.make_mesh((2, 2, 2))
    params, ids = tiny_params(mesh, cfg=MOE), np.array([helpers.prompt(30)] * 4)
    small = quant.quantize(params)
    assert small['layers']['expert_down'].dtype == jnp.int8 and small['layers']['router'].dtype == jnp.float32
    assert small['layers']['expert_down_scale'].shape == (MOE.num_layers, MOE.num_experts, MOE.hidden_size)
    stack = dict(small['layers'])
    for name in (*lora.TARGETS[:4], *experts.KERNELS):
        stack[name] = stack[name] * stack.pop(f'{name}_scale')[..., None, :]
    with jax.set_mesh(mesh):
        exact = helpers.full_logits({**small, 'layers': stack}, ids, MOE)
        assert worst(helpers.full_logits(small, ids, MOE), exact) < 1e-3  # of logits of order 10
    asked = requests([5, 11], 12)
    engines = (tiny_engine(mesh, w, cfg=MOE, temperature=0.0) for w in (small, {**small, 'layers': stack}))
    one, other = ([s.tokens for _, s in sorted(drain(engine, asked).items())] for engine in engines)
    assert one == other


REFUSED = {
    'a dense layer': ({'mlp_only_layers': [0]}, 'every layer must have experts'),
    'dense layers in between': ({'decoder_sparse_step': 2}, 'every layer must have experts'),
    'no size': ({'moe_intermediate_size': None}, 'moe_intermediate_size must be a positive whole number'),
    'no experts': ({'num_experts': 0}, 'num_experts must be a positive whole number'),
    'more than all': ({'num_experts_per_tok': 7}, 'num_experts_per_tok=7 exceeds num_experts=6'),
    'text': ({'norm_topk_prob': 'yes'}, 'norm_topk_prob must be true or false'),
}


@pytest.mark.parametrize(('changes', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_a_mixture_of_experts_cannot_be_is_refused(changes, message):
    described = config.to_hf(MOE)
    assert config.from_hf(described) == MOE
    with pytest.raises(ValueError, match=message):
        config.from_hf(described | changes)
