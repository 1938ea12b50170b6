"""Sampling against NumPy: the token that a uniform selects, the support, and the log-prob that is returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zerosearch_jax.generate import sampling
from zerosearch_jax.generate.sampling import Truncation
from zerosearch_jax.sharding import make_mesh

B, V = 4, 600  # more than two blocks, and not a multiple of one
ALMOST_ONE = np.float32(1 - 2**-24)

draw = jax.jit(sampling.inverse_cdf)
truncate = jax.jit(sampling.truncate, static_argnums=1)
sample = jax.jit(sampling.sample, static_argnames='truncation')


@pytest.fixture(autouse=True, scope='module')
def one_device():
    with jax.set_mesh(make_mesh()):
        yield


@pytest.fixture(params=['sequential', 'tree'])
def inverse_cdf(request, monkeypatch):
    """The function under both orders of summation: CPU adds one by one, accelerators add as a tree."""
    if request.param == 'tree':
        monkeypatch.setattr(jnp, 'cumsum', lambda x, axis: jax.lax.associative_scan(jnp.add, x, axis=axis % x.ndim))
        return jax.jit(lambda p, u: sampling.inverse_cdf(p, u))
    return draw


def sparse_probs(seed, rows=B, vocabulary=V, share=0.5):
    rng = np.random.default_rng(seed)
    probs = rng.random((rows, vocabulary)) ** 6 * (rng.random((rows, vocabulary)) < share)
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


uniforms = hnp.arrays(np.float32, B, elements=st.floats(0, ALMOST_ONE.item(), width=32))


@given(seed=st.integers(0, 2**32 - 1), u=uniforms)
def test_inverse_cdf_equals_searchsorted(seed, u):
    probs = sparse_probs(seed)
    tokens = np.asarray(draw(probs, u))
    for row, token, p in zip(u, tokens, probs.astype(np.float64), strict=True):
        cdf = np.cumsum(p)
        expected = np.searchsorted(cdf, row * cdf[-1], side='right')
        # float32 sums may land on the other side of an edge that the uniform hits within rounding
        near = np.abs(cdf[min(token, expected) : max(token, expected)] - row * cdf[-1])
        assert token == expected or near.max() < 1e-6
        assert p[token] > 0


@given(seed=st.integers(0, 2**32 - 1), u=uniforms)
def test_exact_on_binary_fractions(seed, u):
    """Where no sum rounds, an edge belongs to the token above it, without tolerance."""
    counts = np.random.default_rng(seed).multinomial(1024, np.ones(V) / V, size=B)
    u = np.floor(u * 1024) / np.float32(1024)
    expected = [np.searchsorted(np.cumsum(c), x * 1024, side='right') for c, x in zip(counts, u, strict=True)]
    np.testing.assert_array_equal(draw((counts / 1024).astype(np.float32), u), expected)


def test_zero_probability_is_never_drawn(inverse_cdf):
    """Uniforms at the very edges of the cumulative sum, and one step below and above."""
    rows, drawn_edges = 128, 0
    for seed in range(4):
        probs = sparse_probs(seed, rows)
        edges = np.cumsum(probs, axis=-1)[np.arange(rows), np.random.default_rng(seed).integers(0, V, rows)]
        for u in (edges, np.nextafter(edges, 0), np.nextafter(edges, 2), np.zeros(rows), np.full(rows, ALMOST_ONE)):
            tokens = np.asarray(inverse_cdf(probs, np.clip(u, 0, ALMOST_ONE).astype(np.float32)))
            assert (probs[np.arange(rows), tokens] > 0).all()
            drawn_edges += len(tokens)
    assert drawn_edges == 4 * 5 * rows


def test_first_and_last_token(inverse_cdf):
    probs = np.zeros((B, V), np.float32)
    probs[:, [7, 300, 590]] = 1 / 3
    assert inverse_cdf(probs, np.zeros(B, np.float32)).tolist() == [7] * B
    assert inverse_cdf(probs, np.full(B, ALMOST_ONE)).tolist() == [590] * B


@pytest.mark.parametrize('only', [0, 255, 256, 599])
def test_all_probability_on_one_token(inverse_cdf, only):
    probs = np.zeros((B, V), np.float32)
    probs[:, only] = 1
    assert inverse_cdf(probs, np.array([0, 0.5, ALMOST_ONE, 1e-30], np.float32)).tolist() == [only] * B


def test_vanishing_last_tokens_are_not_out_of_range(inverse_cdf):
    probs = np.full((B, V), 1e-12, np.float32)
    probs[:, 0] = 1
    tokens = np.asarray(inverse_cdf(probs, np.full(B, ALMOST_ONE)))
    assert ((tokens >= 0) & (tokens < V)).all()


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    n, vocabulary = 100_000, 12
    logits = np.random.default_rng(0).normal(size=vocabulary).astype(np.float32)
    u = np.random.default_rng(1).random(n).astype(np.float32)
    tokens, _ = sample(jnp.broadcast_to(logits, (n, vocabulary)), u, temperature)
    expected = n * np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    chi2 = (np.square(np.bincount(tokens, minlength=vocabulary) - expected) / expected).sum()
    assert chi2 < 31.3  # 99.9 % quantile at 11 degrees of freedom


def test_greedy_is_the_argmax_and_ignores_the_uniform():
    logits = np.random.default_rng(0).normal(size=(B, V)).astype(np.float32)
    logits[0, [5, 9]] = 10  # a tie goes to the first
    for u in (0.0, 0.7):
        tokens, logprobs = sample(logits, np.full(B, u, np.float32), 0.0)
        np.testing.assert_array_equal(tokens, logits.argmax(-1))
        np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[np.arange(B), tokens], rtol=1e-5)


def test_a_temperature_may_be_a_rows_own():
    rows, temperatures = 64, np.array([0, 0.7, 1, 2] * 16, np.float32)
    logits = np.random.default_rng(5).normal(size=(rows, V)).astype(np.float32) * 2
    logits[::8, [3, 500]] = 20  # ties of greedy rows, in different blocks
    u = np.random.default_rng(6).random(rows).astype(np.float32)
    truncation = Truncation(50, 0.9)
    together = sample(logits, u, temperatures, truncation=truncation)
    for temperature in (0, 0.7, 1, 2):
        of = temperatures == np.float32(temperature)
        alone = sample(logits[of], u[of], np.float32(temperature), truncation=truncation)
        for got, want in zip(together, alone, strict=True):
            np.testing.assert_array_equal(got[of], want)
    np.testing.assert_array_equal(together[0][::4], logits[::4].argmax(-1))


def reference_support(scaled, k, p):
    """Boolean mask of the kept tokens of one row; ties with the last kept one are kept too."""
    kept = np.ones(len(scaled), bool)
    if k:
        kept &= scaled >= np.sort(scaled)[::-1][min(k, len(scaled)) - 1]
    if p < 1:
        weights = np.where(kept, np.exp(scaled - scaled.max()), 0)
        order = np.argsort(-np.where(kept, scaled, -np.inf), kind='stable')
        before = np.cumsum(weights[order] / weights.sum()) - weights[order] / weights.sum()
        kept &= scaled >= scaled[order[before < p]].min()
    return kept


@pytest.mark.parametrize(
    'truncation',
    [Truncation(1), Truncation(5), Truncation(1000), Truncation(0, 0.3), Truncation(0, 1e-6), Truncation(20, 0.8)],
    ids=str,
)
@pytest.mark.parametrize('ties', [False, True])
def test_support_equals_numpy(truncation, ties):
    logits = np.random.default_rng(2).normal(size=(B, V)).astype(np.float32) * 2
    if ties:
        logits = np.round(logits)
    kept = np.isfinite(truncate(logits, truncation))
    expected = [reference_support(row.astype(np.float64), truncation.top_k, truncation.top_p) for row in logits]
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(np.asarray(truncate(logits, truncation))[kept], logits[kept])


def test_the_nucleus_by_hand():
    logits = np.log(np.array([[0.4, 0.05, 0.3, 0.25]], np.float32))
    for p, expected in [(0.3, [0]), (0.5, [0, 2]), (0.69, [0, 2]), (0.75, [0, 2, 3]), (0.96, [0, 1, 2, 3])]:
        kept = np.isfinite(sampling.truncate(logits, Truncation(top_p=p)))
        assert np.flatnonzero(kept[0]).tolist() == expected, p


def test_truncated_samples_stay_in_the_support_and_keep_the_untruncated_logprob():
    n, temperature = 400, 0.7
    logits = np.random.default_rng(3).normal(size=V).astype(np.float32)
    u = np.linspace(0, ALMOST_ONE, n, dtype=np.float32)
    tokens, logprobs = sample(jnp.broadcast_to(logits, (n, V)), u, temperature, truncation=Truncation(10, 0.9))
    kept = reference_support(logits.astype(np.float64) / temperature, 10, 0.9)
    assert set(np.asarray(tokens).tolist()) == set(np.flatnonzero(kept).tolist())
    scaled = logits.astype(np.float64) / temperature
    full = scaled - np.log(np.exp(scaled).sum())
    np.testing.assert_allclose(logprobs, full[np.asarray(tokens)], atol=1e-5)


def test_bfloat16_logits_are_sampled_in_float32(strict_ranks):
    logits = np.random.default_rng(4).normal(size=(B, V)).astype(jnp.bfloat16)
    u = np.array([0.1, 0.4, 0.6, 0.9], np.float32)
    narrow, wide = sample(logits, u, np.float32(1)), sample(logits.astype(np.float32), u, np.float32(1))
    jax.tree.map(np.testing.assert_array_equal, narrow, wide)
    assert narrow[1].dtype == jnp.float32


@pytest.mark.parametrize(('k', 'p'), [(-1, 1.0), (0, 0.0), (0, 1.1), (5, -0.5)])
def test_bad_truncation(k, p):
    with pytest.raises(ValueError, match='top_k must be'):
        Truncation(k, p)
