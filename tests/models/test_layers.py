"""The layers by themselves: what a gradient in bfloat16 keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerosearch_jax import sharding
from zerosearch_jax.models import layers, transformer

RNG = np.random.default_rng(0)
X, G = (jnp.asarray(RNG.normal(size=(2, 64, n)), jnp.bfloat16) for n in (16, 24))
ROUNDED = 2**-9  # the largest relative error of rounding to bfloat16


def product(w):
    return layers.matmul(X, w)


def norm(w):
    return layers.rms_norm(X, w, 1e-6)


def gradient(function, w):
    out, pull = jax.vjp(function, w)
    return out, pull(G[..., : out.shape[-1]])[0]


@pytest.mark.parametrize('function, shape', [(product, (16, 24)), (norm, (16,))])
def test_a_weights_gradient_of_bfloat16_activations_is_accumulated_in_float32_and_not_rounded(function, shape):
    w = RNG.normal(size=shape).astype(np.float32)
    out, got = gradient(function, w)
    assert out.dtype == jnp.bfloat16 and got.dtype == jnp.float32
    x, g = np.asarray(X, np.float64), np.asarray(G, np.float64)
    if function is product:
        exact = np.einsum('bti,bto->io', x, g)
    else:
        normalized = np.asarray(layers._normalized(X, 1e-6), np.float64)
        exact = (normalized * g[..., :16]).sum((0, 1))
    error = np.abs(got - exact).max() / np.abs(exact).max()
    assert error < ROUNDED / 100


def test_an_embeddings_gradient_adds_up_more_rows_than_bfloat16_can_count():
    tokens = np.zeros((1, 1000), np.int32)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        table = jnp.ones((4, 8), jnp.float32)
        total = lambda table: transformer.embed({'embed': table}, tokens, jnp.bfloat16).astype(jnp.float32).sum()  # noqa: E731
        got = jax.grad(total)(table)
    np.testing.assert_array_equal(got, np.eye(4)[:, :1] * 1000 * np.ones((1, 8)))
