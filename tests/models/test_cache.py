"""The forms of the cache: the same numbers from every layout and reader, here without their hardware."""

import dataclasses
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import ragged_paged_attention

from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.sharding import make_mesh

SLOTS, CAPACITY, HEADS, KV_HEADS, SIZE = 4, 256, 4, 2, 128


@pytest.fixture
def stand_ins(monkeypatch):
    """cuDNN's attention by XLA, and a TPU's kernel by the reference that JAX ships beside it."""
    library, kernel = jax.nn.dot_product_attention, ragged_paged_attention.ragged_paged_attention
    known = set(inspect.signature(ragged_paged_attention.ref_ragged_paged_attention).parameters)

    def fused(*args, implementation, **kw):
        assert implementation == 'cudnn'
        return library(*args, **kw, implementation='xla')

    def paged(*args, **kw):
        inspect.signature(kernel).bind(*args, **kw)
        kw = {name: value for name, value in kw.items() if name in known}
        return ragged_paged_attention.ref_ragged_paged_attention(*args, **kw)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', fused)
    monkeypatch.setattr(ragged_paged_attention, 'ragged_paged_attention', paged)


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def stored(form, keys_BxSxKxE, values_BxSxKxE):
    """A layer of the form that holds what is given."""
    match form:
        case 'einsum':
            return keys_BxSxKxE.transpose(0, 2, 3, 1), values_BxSxKxE.transpose(0, 2, 1, 3)
        case 'cudnn':
            return keys_BxSxKxE, values_BxSxKxE
        case 'ragged':
            return (jnp.stack([keys_BxSxKxE, values_BxSxKxE], 3).reshape(*keys_BxSxKxE.shape[:2], -1, SIZE),)


def reference(keys, values, q, k, v, slots, starts, counts):
    """What is held after the write, and what each query that is no padding sees; one at a time."""
    keys, values = np.array(keys), np.array(values)
    out = np.zeros(q.shape, np.float32)
    for n, slot in enumerate(slots):
        for t in range(min(counts[n], CAPACITY - starts[n])):
            keys[slot, starts[n] + t], values[slot, starts[n] + t] = k[n, t], v[n, t]
        for t, h in np.ndindex(counts[n], HEADS):
            end, of = starts[n] + t + 1, h // (HEADS // KV_HEADS)
            scores = keys[slot, :end, of] @ np.asarray(q[n, t, h]) / SIZE**0.5
            weights = np.exp(scores - scores.max())
            out[n, t, h] = weights / weights.sum() @ values[slot, :end, of]
    return keys, values, out


DECODE = dict(tokens=1, slots=None, starts=[200, 0, 17, 0], counts=[1, 0, 1, 1], span=256)
EXTEND = dict(tokens=24, slots=[2, 0, 0], starts=[20, 90, 0], counts=[24, 5, 0], span=128)
LAST = dict(tokens=24, slots=[1], starts=[250], counts=[6], span=256)  # padding would not fit the slot


@pytest.mark.parametrize('case', [DECODE, EXTEND, LAST], ids=['decode', 'extend', 'last'])
@pytest.mark.parametrize('form', kv.FORMS)
def test_every_form_writes_and_attends_alike(stand_ins, form, case):
    rows = len(case['starts'])
    keys, values = (random(seed, SLOTS, CAPACITY, KV_HEADS, SIZE) for seed in (0, 1))
    q = random(2, rows, case['tokens'], HEADS, SIZE)
    k, v = (random(seed, rows, case['tokens'], KV_HEADS, SIZE) for seed in (3, 4))
    slots, starts, counts = (None if case[x] is None else jnp.array(case[x]) for x in ('slots', 'starts', 'counts'))
    place = kv.Place(slots, starts, counts)
    out, layer = kv.READERS[form](stored(form, keys, values), q, k, v, place, case['span'])
    expected = reference(keys, values, q, k, v, case['slots'] or range(SLOTS), case['starts'], case['counts'])
    for got, want in zip(layer, stored(form, *map(jnp.asarray, expected[:2])), strict=True):
        np.testing.assert_array_equal(got, want)
    written = np.arange(case['tokens'])[None] < np.array(case['counts'])[:, None]
    assert out.shape == (rows, case['tokens'], HEADS * SIZE) and np.isfinite(out).all()
    np.testing.assert_allclose(out.reshape(q.shape)[written], expected[2][written], atol=2e-5)


@pytest.mark.parametrize('form', kv.FORMS)
def test_a_cache_has_the_shapes_of_its_form(monkeypatch, form):
    monkeypatch.setattr(kv, 'choose', lambda *_: form)
    cfg, mesh = PRESETS['tiny'], make_mesh((1, 4, 2))
    made = kv.create(cfg, mesh, 8, 256, jnp.bfloat16)
    assert (made.form, made.capacity, len(made.layers)) == (form, 256, cfg.num_layers)
    like = jax.tree.leaves(kv.abstract(cfg, mesh, 8, 256, jnp.bfloat16))
    for x, y in zip(jax.tree.leaves(made), like, strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
        assert x.addressable_shards[0].data.nbytes * 8 == x.nbytes and not np.asarray(x, np.float32).any()
    each = kv.slot_bytes(cfg, mesh, 256, jnp.bfloat16)
    assert sum(x.nbytes for x in jax.tree.leaves(made)) == 8 * 2 * each  # two devices have half of the heads each


@pytest.mark.parametrize(
    'platform, dtype, model, tensor, form',
    [
        ('cpu', 'bfloat16', 'qwen2.5-1.5b', 1, 'einsum'),
        ('gpu', 'bfloat16', 'qwen2.5-1.5b', 2, 'cudnn'),
        ('gpu', 'bfloat16', 'qwen2.5-0.5b', 1, 'cudnn'),
        ('gpu', 'float32', 'qwen2.5-1.5b', 1, 'einsum'),
        ('gpu', 'bfloat16', 'qwen2.5-1.5b', 4, 'einsum'),
        ('tpu', 'bfloat16', 'qwen2.5-1.5b', 2, 'ragged'),
        ('tpu', 'float32', 'qwen2.5-1.5b', 1, 'einsum'),
        ('tpu', 'bfloat16', 'qwen2.5-1.5b', 4, 'einsum'),
        ('tpu', 'bfloat16', 'qwen2.5-0.5b', 1, 'einsum'),
    ],
)
def test_a_kernel_is_chosen_where_it_reads_the_cache(platform, dtype, model, tensor, form):
    device = types.SimpleNamespace(platform=platform, compute_capability='8.0', device_kind='a device')
    mesh = types.SimpleNamespace(devices=np.array([device]), shape={'data': 1, 'fsdp': 1, 'tensor': tensor})
    assert kv.choose(PRESETS[model], dtype, mesh) == form
    odd = dataclasses.replace(PRESETS[model], num_heads=18, num_kv_heads=6)  # no tile of a TPU
    assert kv.choose(odd, dtype, types.SimpleNamespace(**vars(mesh) | {'shape': {'tensor': 1}})) != 'ragged'
