"""Attention of packed rows against a softmax over explicit sets of visible tokens, in value and gradient."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerosearch_jax import sharding
from zerosearch_jax.models import attention
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.plan import hardware

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
        out = function(q, k, v)
        return jnp.sum(jnp.sin(out) * direction), out

    def both(function):
        return jax.grad(lambda *a: total(function, *a), (0, 1, 2), has_aux=True)(q, k, v)

    ours = both(attention.causal_attention(segments, prefixes))
    expected = both(lambda q, k, v: reference(q, k, v, segments, prefixes))
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_fused_form_equals_the_definition_and_tells_the_kernel_that_it_is_causal(monkeypatch):
    fused, told = jax.nn.dot_product_attention, []

    def by_xla(*args, implementation, **options):
        told.append((implementation, options['is_causal']))
        return fused(*args, implementation='xla', **options)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', by_xla)
    q, k, v, segments, prefixes = packed(20)
    got = attention.causal_attention(segments, prefixes, 'cudnn')(q, k, v)
    own = segments > 0  # of padding nothing is promised
    np.testing.assert_allclose(got[own], reference(q, k, v, segments, prefixes)[own], rtol=1e-4, atol=1e-5)
    assert told == [('cudnn', True)]


def chunks_of(segments, prefixes, chunk):
    rows = attention._Rows.of(segments, prefixes, chunk)
    return [[*map(int, order[:count])] for order, count in zip(rows.order_NxN, rows.count_N, strict=True)]


def test_chunks_of_keys_that_no_query_of_a_chunk_sees_are_left_out():
    segments = np.repeat([[1, 1, 2, 2, 3, 3, 4, 0]], 4, axis=1)
    prefixes = np.repeat([[1, 1, 1, 1, 1, 1, 4, 0]], 4, axis=1)
    alone = chunks_of(segments, prefixes, 4)
    assert alone == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [6], [7]]
    both = chunks_of(*(np.concatenate([x, np.ones_like(x)]) for x in (segments, prefixes)), 4)  # any row's are needed
    assert both == [[*range(n)] for n in range(1, 9)]
    straddling = chunks_of(np.repeat([[1, 2, 3]], 4, axis=1), np.repeat([[1, 2, 3]], 4, axis=1), 6)
    assert straddling == [[0], [0, 1]]


def test_long_rows_have_a_bounded_number_of_chunks():
    assert [attention._chunk_size(n) for n in (17, 128, 300, 2048, 4608)] == [17, 128, 128, 128, 384]
    assert all(-(-n // attention._chunk_size(n)) <= attention.MOST_CHUNKS for n in (129, 4096, 16384, 16385))


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
    assert attention.causal_attention(segments, prefixes, choice.name)(q, k, v).shape == (2, 16, HEADS * SIZE)


@pytest.mark.targets
@pytest.mark.timeout(3600)
def test_the_fused_form_is_a_causal_kernel_for_an_h100():
    pytest.importorskip('jax_cuda12_plugin')
    devices, _ = hardware.devices(hardware.parse('h100-80gb:1'))
    everywhere = sharding.named(sharding.make_mesh((1, 1, 1), devices))

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    def total(q, k, v, segments):
        return jnp.sum(attention.causal_attention(segments, segments, 'cudnn')(q, k, v).astype(jnp.float32))

    kv = array(1, 512, 2, 128)
    made = jax.jit(jax.grad(total, (0, 1, 2))).lower(array(1, 512, 4, 128), kv, kv, array(1, 512, dtype=np.int32))
    text = made.compile().as_text()
    kernels = [line for line in text.splitlines() if 'custom_call_target="__cudnn$fmha' in line]
    assert len(kernels) == 2 and all('"mask_type": "CAUSAL"' in line for line in kernels)
