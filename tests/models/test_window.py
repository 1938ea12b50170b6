"""Sliding layers and the rest of Gemma 3: windows in packed rows and in the cache, norms, its config.json."""

import dataclasses
import json
import types

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, drain, requests, tiny_engine, tiny_params, worst

from zerosearch_jax import sharding
from zerosearch_jax.models import attention, cache, config, layers, transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.models.families import GEMMA

FIELDS = dict(window=5, sliding=(True, False), local_rope_theta=100.0, query_size=24, rope_factor=2.0)
TINY_GEMMA = dataclasses.replace(TINY, family='gemma3_text', **GEMMA, **FIELDS)


def params_of(mesh):
    """Random weights whose norms are not at their initial value."""
    params = tiny_params(mesh, cfg=TINY_GEMMA)
    rng, stack = np.random.default_rng(0), params['layers']
    norms = {name: w + 0.3 * rng.normal(size=w.shape).astype(np.float32) for name, w in stack.items() if 'norm' in name}
    assert len(norms) == 6
    return params | {'layers': stack | norms, 'embed': params['embed'] / 5}


PARTS = [(0, 9), (1, 8), (2, 10), (3, 6)]  # a prefix and two sequences after it, and one alone: (number, tokens)


def packed():
    """Tokens, positions, segments and prefixes of one row, and the same as four sequences."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, TINY.vocab_size, length) for _, length in PARTS]
    starts = 0, 9, 9, 0
    positions = np.concatenate([start + np.arange(n) for start, (_, n) in zip(starts, PARTS, strict=True)])
    segments = np.concatenate([np.full(n, number + 1) for number, n in PARTS])
    prefixes = np.where((segments == 2) | (segments == 3), 1, segments)
    alone = texts[0], np.r_[texts[0], texts[1]], np.r_[texts[0], texts[2]], texts[3]
    return [x[None] for x in (np.concatenate(texts), positions, segments, prefixes)], alone


@pytest.mark.parametrize('chunk', [4, 64])
def test_a_packed_row_equals_its_sequences_alone(monkeypatch, chunk):
    monkeypatch.setattr(attention, 'QUERY_CHUNK', chunk)
    mesh, (row, alone) = sharding.make_mesh(), packed()
    params = params_of(mesh)
    with jax.set_mesh(mesh):
        together = transformer.logits(params, transformer.hidden(params, TINY_GEMMA, *row))[0]
        parts = np.split(together, np.cumsum([n for _, n in PARTS])[:-1])
        for part, tokens in zip(parts, alone, strict=True):
            whole = helpers.full_logits(params, tokens[None], TINY_GEMMA)[0]
            assert worst(part, whole[-len(part) :]) < 1e-4
        for changes in ({'window': 6}, {'sliding': (False, True)}):
            other = dataclasses.replace(TINY_GEMMA, **changes)
            assert worst(transformer.logits(params, transformer.hidden(params, other, *row))[0], together) > 1e-2


@pytest.mark.parametrize('sliding', [False, True])
@pytest.mark.parametrize('window, chunk', [(1, 4), (5, 4), (5, 64), (40, 8)])
def test_windows_of_packed_attention_equal_the_definition(monkeypatch, window, chunk, sliding):
    monkeypatch.setattr(attention, 'QUERY_CHUNK', chunk)
    (_, positions, segments, prefixes), _ = packed()
    length, rng = positions.shape[1], np.random.default_rng(2)
    q, k, v, direction = rng.normal(size=(4, 1, length, 2, 8)).astype(np.float32)
    sees = np.zeros((length, length), bool)
    for t in range(length):
        for s in range(t + 1):
            near = positions[0, t] - positions[0, s] < window or not sliding
            sees[t, s] = near and segments[0, s] in (segments[0, t], prefixes[0, t])

    def definition(q, k, v):
        scores = jnp.einsum('bthe,bshe->bhts', q, k, precision='highest') / 8**0.5
        return jnp.einsum('bhts,bshe->bthe', jax.nn.softmax(jnp.where(sees, scores, -jnp.inf)), v, precision='highest')

    def ours(q, k, v):
        attend = attention.causal_attention(segments, prefixes, 'chunked', positions, window)
        return attend(q, k, v, jnp.asarray(sliding)).reshape(q.shape)

    np.testing.assert_allclose(ours(q, k, v), definition(q, k, v), rtol=1e-4, atol=1e-5)
    gradients = (jax.grad(lambda *a, f=f: jnp.sum(f(*a) * direction), (0, 1, 2))(q, k, v) for f in (ours, definition))
    for got, want in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_chunks_before_the_window_are_left_out():
    ones = np.ones((1, 24), np.int32)
    counts = [
        attention._Rows.of(ones, ones, 4, np.arange(24)[None], window).count_N.tolist() for window in (1, 4, 5, 6)
    ]
    assert counts == [[1] * 6, [1, 2, 2, 2, 2, 2], [1, 2, 2, 2, 2, 2], [1, 2, 3, 3, 3, 3]]


def test_what_a_token_of_the_cache_sees_are_its_last_positions():
    place = cache.Place(None, jnp.array([0, 3]), jnp.array([2, 2]))
    assert np.array(place.sees(2, 6, 3), int).tolist() == [
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
        [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]],
    ]
    assert np.array(place.sees(2, 6), int).sum(-1).tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)])
def test_cached_decoding_equals_the_full_forward(shape):
    mesh = sharding.make_mesh(shape)
    params = params_of(mesh)
    found = drain(tiny_engine(mesh, params, cfg=TINY_GEMMA, temperature=0.0), requests([5, 21, 3], 12))
    with jax.set_mesh(sharding.make_mesh()):
        one = jax.device_get(params)
        for handle, length in enumerate([5, 21, 3]):
            ids = [*helpers.prompt(length, handle), *found[handle].tokens]
            logits = helpers.full_logits(one, np.array([ids]), TINY_GEMMA)[0, length - 1 : -1]
            assert np.argmax(logits, axis=-1).tolist() == list(found[handle].tokens)
            logprobs = jax.nn.log_softmax(logits)[np.arange(12), np.array(found[handle].tokens)]
            np.testing.assert_allclose(found[handle].logprobs, logprobs, atol=1e-4)


def mesh_of(platform):
    device = types.SimpleNamespace(platform=platform, compute_capability='9.0', device_kind='a GPU')
    return types.SimpleNamespace(devices=np.array([device]), shape={'data': 1, 'fsdp': 1, 'tensor': 1})


def test_kernels_without_windows_are_not_chosen_and_the_reason_is_said():
    wide = dataclasses.replace(PRESETS['gemma3-1b'], head_dim=128, num_kv_heads=8)  # else fit for both kernels
    choice = attention.choose(wide, 'bfloat16', mesh_of('gpu'), 64)
    assert choice.name == 'chunked' and 'a window of 512 tokens' in choice.reason
    for platform in ('gpu', 'tpu'):
        assert cache.choose(wide, 'bfloat16', mesh_of(platform)) == 'einsum'
        full = dataclasses.replace(wide, window=0)
        assert cache.choose(full, 'bfloat16', mesh_of(platform)) == {'gpu': 'cudnn', 'tpu': 'ragged'}[platform]
    with pytest.raises(ValueError, match='no windows'):
        attention.causal_attention(np.ones((1, 4)), np.ones((1, 4)), 'cudnn', np.arange(4)[None], 2)


def test_norms_multiply_before_they_round_and_embeddings_by_a_rounded_root():
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(a, jnp.bfloat16) for a in (rng.normal(size=(50, 64)), rng.normal(size=64)))
    wide, distance = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + TINY.norm_eps) * (1 + distance)
    got = layers.norm(x, weight, TINY_GEMMA)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.asarray(exact, jnp.bfloat16))
    twice = layers.rms_norm(x, 1 + weight, TINY.norm_eps)
    assert np.mean(np.asarray(twice) != np.asarray(got)) > 0.1
    cfg = dataclasses.replace(TINY_GEMMA, hidden_size=1152)
    ones = jnp.ones((1, 1, 1152), jnp.bfloat16)
    assert float(transformer.scaled(ones, cfg)[0, 0, 0]) == 34.0  # sqrt(1152) = 33.94
    assert transformer.scaled(ones, TINY) is ones


PUBLISHED = {  # the spelling of the published files
    'model_type': 'gemma3_text',
    'vocab_size': 262144,
    'hidden_size': 1152,
    'intermediate_size': 6912,
    'num_hidden_layers': 26,
    'num_attention_heads': 4,
    'num_key_value_heads': 1,
    'head_dim': 256,
    'hidden_activation': 'gelu_pytorch_tanh',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 32768,
    'query_pre_attn_scalar': 256,
    'rope_theta': 1000000,
    'rope_local_base_freq': 10000,
    'rope_scaling': None,
    'sliding_window': 512,
    'sliding_window_pattern': 6,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
}


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'sliding_window_pattern': 2},
        {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0}},
        {'rope_local_base_freq': 5000, 'rope_theta': 7.0},
        {'layer_types': ['full_attention'] * 13 + ['sliding_attention'] * 13},
        {'rope_parameters': {'full_attention': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 3.0}}},
        {'rope_parameters': {'sliding_attention': {'rope_type': 'default', 'rope_theta': 3.0}}, 'rope_theta': 4.0},
    ],
    ids=str,
)
def test_its_configuration_is_read_as_transformers_reads_it(changes):
    from transformers import Gemma3TextConfig

    given = json.dumps(PUBLISHED | changes)
    ours, theirs = config.from_hf(json.loads(given)), Gemma3TextConfig(**json.loads(given))
    full, local = (theirs.rope_parameters[kind] for kind in ('full_attention', 'sliding_attention'))
    assert (ours.rope_theta, ours.local_rope_theta) == (full['rope_theta'], local['rope_theta'])
    assert ours.rope_factor == full.get('factor', 1.0)
    assert ours.sliding == tuple(kind == 'sliding_attention' for kind in theirs.layer_types)
    assert (ours.window, ours.query_size, ours.tie_embeddings) == (512, 256, True)
    assert config.from_hf(config.to_hf(ours)) == ours
    if not changes:
        assert ours == PRESETS['gemma3-1b']


REFUSED = {
    'images': ({'model_type': 'gemma3'}, 'reads images too; take a model of text alone'),
    'soft caps': ({'final_logit_softcapping': 30.0}, 'final_logit_softcapping=30.0 is not supported'),
    'kinds': ({'layer_types': ['full_attention']}, 'for each of the 26 layers'),
    'chunks': ({'layer_types': ['chunked_attention'] * 26}, 'layer_types must say sliding_attention or full_attention'),
    'no window': ({'sliding_window': None}, 'sliding_window must be a positive whole number'),
    'exact gelu': (
        {'hidden_activation': 'gelu'},
        "hidden_act 'gelu' is not supported for gemma3_text; only gelu_pytor",
    ),
    'yarn': ({'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0}}, "'yarn' is not supported"),
    'local scaling': ({'rope_parameters': {'sliding_attention': {'rope_type': 'linear'}}}, 'in sliding layers'),
}


@pytest.mark.parametrize(('changes', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config.from_hf(PUBLISHED | changes)
