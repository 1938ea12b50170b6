"""Attention of packed rows against a softmax over explicit sets of visible tokens, in value and gradient."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerosearch_jax import sharding
from zerosearch_jax.models import attention
from zerosearch_jax.models.config import PRESETS

HEADS, KV_HEADS, SIZE = 4, 2, 8


def packed(length, seed=0):
    """q, k, v, segments and prefixes of two rows: a shared prefix (1), two that see it (2, 3), one alone (4)."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(2, length, n, SIZE)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS))
    bounds = [int(length * share) for share in (0.2, 0.5, 0.7, 0.9)]
    segments = np.zeros((2, length), np.int32)
    for number, (start, end) in enumerate(zip([0, *bounds], bounds, strict=False), start=1):
        segments[0, start:end] = number
    segments[1, : length - 3] = 1
    prefixes = np.where((segments == 2) | (segments == 3), 1, segments).astype(np.int32)
    return q, k, v, segments, prefixes


def reference(q, k, v, segments, prefixes):
    """One head at a time, over the keys that each query may see."""
    rows, length = range(len(q)), range(q.shape[1])
    sees = [
        [[s <= t and segments[b, s] in (segments[b, t], prefixes[b, t]) for s in length] for t in length] for b in rows
    ]
    heads = []
    for h in range(HEADS):
        kv = h // (HEADS // KV_HEADS)
        scores = jnp.where(np.array(sees), q[:, :, h] @ k[:, :, kv].swapaxes(1, 2) / SIZE**0.5, -jnp.inf)
        heads.append(jax.nn.softmax(scores) @ v[:, :, kv])
    return jnp.concatenate(heads, axis=2)


@pytest.mark.parametrize('length, chunk', [(20, 8), (17, 4), (16, 16)])
def test_chunked_attention_equals_the_definition(monkeypatch, length, chunk):
    monkeypatch.setattr(attention, 'QUERY_CHUNK', chunk)
    q, k, v, segments, prefixes = packed(length)
    direction = np.random.default_rng(1).normal(size=(2, length, HEADS * SIZE))

    def total(function, q, k, v):
        out = function(q, k, v, segments, prefixes)
        return jnp.sum(jnp.sin(out) * direction), out

    def both(function):
        return jax.grad(lambda *a: total(function, *a), (0, 1, 2), has_aux=True)(q, k, v)

    ours, expected = both(attention.causal_attention), both(reference)
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_long_rows_have_a_bounded_number_of_chunks():
    assert attention._chunks(300) == [(0, 128), (128, 256), (256, 300)]
    for length in (129, 4096, 16384, 16385):
        chunks = attention._chunks(length)
        assert len(chunks) <= attention.MOST_CHUNKS
        assert (chunks[0][0], chunks[-1][1]) == (0, length)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(chunks))


def mesh_of(platform, tensor=1, capability='9.0'):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability, device_kind='a GPU')
    return types.SimpleNamespace(devices=np.array([device]), shape={'data': 1, 'fsdp': 1, 'tensor': tensor})


@pytest.mark.parametrize(
    'platform, dtype, model, tensor, name, reason',
    [
        ('cpu', 'float32', 'qwen2.5-1.5b', 1, 'chunked', 'cpu'),
        ('tpu', 'bfloat16', 'qwen2.5-1.5b', 1, 'chunked', 'tpu'),
        ('gpu', 'bfloat16', 'qwen2.5-1.5b', 1, 'cudnn', 'fused'),
        ('gpu', 'float32', 'qwen2.5-1.5b', 1, 'chunked', 'float32'),
        ('gpu', 'bfloat16', 'qwen2.5-1.5b', 4, 'chunked', 'tensor=4'),
    ],
)
def test_the_choice_names_its_reason(platform, dtype, model, tensor, name, reason):
    choice = attention.choose(PRESETS[model], dtype, mesh_of(platform, tensor), 64)
    assert choice.name == name
    assert reason in choice.reason


@pytest.mark.parametrize(
    'capability, length, name, reason',
    [('7.5', 64, 'chunked', 'Ampere'), ('8.0', 64, 'cudnn', 'fused'), ('10.0', 65, 'chunked', '65 tokens')],
)
def test_the_fused_kernel_is_chosen_where_it_runs(capability, length, name, reason):
    choice = attention.choose(PRESETS['qwen2.5-1.5b'], 'bfloat16', mesh_of('gpu', 1, capability), length)
    assert choice.name == name and reason in choice.reason


def test_the_choice_on_this_machine_can_be_run():
    choice = attention.choose(PRESETS['tiny'], 'float32', sharding.make_mesh(), 16)
    q, k, v, segments, prefixes = packed(16)
    assert attention.causal_attention(q, k, v, segments, prefixes, choice.name).shape == (2, 16, HEADS * SIZE)
