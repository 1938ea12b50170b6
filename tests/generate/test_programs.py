"""The programs with a cache that a kernel reads; cuDNN's attention is XLA's here."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, drain, prompt, requests, tiny_engine, tiny_params

from zerosearch_jax.generate import programs, serving
from zerosearch_jax.models import cache as kv
from zerosearch_jax.sharding import make_mesh

LENGTHS = (1, 31, 90, 9, 2)


@pytest.fixture
def with_kernel(monkeypatch):
    library = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, 'dot_product_attention', lambda *a, implementation, **kw: library(*a, **kw, implementation='xla')
    )
    monkeypatch.setattr(kv, 'choose', lambda *_: 'cudnn')


@functools.cache
def by_matrix_products():
    return conversation(make_mesh())


def conversation(mesh, **kw):
    """What all sample before and after an observation, more of them than slots."""
    engine = tiny_engine(mesh, tiny_params(mesh), slots=4, capacity=128, **kw)
    first = drain(engine, requests(LENGTHS, 6), close=False)
    for handle in (1, 3):
        engine.extend(handle, prompt(7), 9)
    return [first, drain(engine)]


@pytest.mark.thorough
@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 4, 2)])
def test_a_kernel_that_reads_the_cache_samples_the_same(with_kernel, shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, 'choose', lambda *_: 'einsum')
        expected = by_matrix_products()
    for got, want in zip(conversation(make_mesh(shape)), expected, strict=True):
        assert {h: r.tokens for h, r in got.items()} == {h: r.tokens for h, r in want.items()}
        for handle, result in got.items():
            np.testing.assert_allclose(result.logprobs, want[handle].logprobs, atol=1e-4)


def lowered(steps, slots=8):
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        params = serving.base_layout(tiny_params(mesh), TINY, mesh, dtype=jnp.float32)
        return programs.decode.lower(
            *(params, kv.create(TINY, mesh, slots, 128), programs.idle_rows(slots), None),
            jnp.zeros((1, TINY.vocab_size), jnp.int32),
            **dict(cfg=TINY, dtype=jnp.float32, steps=steps, span=128, eos_ids=(), first_accept=1),
        )


def test_a_call_with_a_kernel_never_waits_for_the_host(with_kernel):
    """The turns of the loop are known, and nothing branches."""
    text = lowered(steps=7).compile().as_text()
    loops = [line for line in text.splitlines() if ' while(' in line]
    assert '7' in [re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)[1] for line in loops]
    assert ' conditional(' not in text


def test_a_call_by_matrix_products_ends_with_its_last_row():
    """A row of budget 2 among idle ones takes two turns, though the call could take five."""
    mesh = make_mesh()
    rows = programs.idle_rows(4)
    rows.budget[1] = 2
    with jax.set_mesh(mesh):
        params = serving.base_layout(tiny_params(mesh), TINY, mesh, dtype=jnp.float32)
        cache = kv.create(TINY, mesh, 4, 128)
        cache, after, _, _, counts = programs.decode(
            *(params, cache, rows, None, jnp.zeros((1, TINY.vocab_size), jnp.int32)),
            **dict(cfg=TINY, dtype=jnp.float32, steps=5, span=128, eos_ids=(), first_accept=1),
        )
    assert counts.tolist() == [0, 2, 0, 0] and after.length.tolist() == [0, 2, 0, 0]
    keys = np.asarray(cache.layers[0][0])
    assert keys[1, :, :, :2].all() and not keys[1, :, :, 2:].any()  # as many are written as were counted
    assert not keys[[0, 2, 3]].any()  # and nothing in slots that are idle
