"""Attention: of packed rows in training, of written tokens and of single queries against a cache in generation.

`choose` says which form training takes on the hardware at hand, and why; all give the same results to tolerance.
Shape letters as in models/layers.py; C is a chunk of queries, M = G x C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zerosearch_jax.models.config import ModelConfig

MASKED = -1e30  # finite, so that a fully masked row has finite values and gradients
QUERY_CHUNK, MOST_CHUNKS = 128, 16  # queries a chunk at least; chunks are unrolled, so their number is bounded


class Choice(NamedTuple):
    """A key of TRAINING, and why it was taken."""

    name: str
    reason: str


def choose(cfg: ModelConfig, dtype, mesh: jax.sharding.Mesh, row_length: int) -> Choice:
    """The form of training attention for rows of a model on a mesh."""
    device, dtype = mesh.devices.flat[0], jnp.dtype(dtype)
    platform = device.platform
    if platform not in ('gpu', 'cuda'):
        return Choice('chunked', f'{platform}: the cuDNN kernel is for NVIDIA GPUs')
    if dtype not in (jnp.bfloat16, jnp.float16):
        return Choice('chunked', f'cuDNN attention has no {dtype}')
    if float(device.compute_capability) < 8:
        return Choice('chunked', f'cuDNN attention is for Ampere and later, not {device.device_kind}')
    if row_length % 2:
        return Choice('chunked', f'cuDNN attention has no gradient for rows of {row_length} tokens: even ones')
    if cfg.head_dim % 8 or cfg.head_dim > 128:
        return Choice('chunked', f'cuDNN attention has no head size {cfg.head_dim}: multiples of 8 up to 128')
    if cfg.num_kv_heads % mesh.shape['tensor']:
        return Choice('chunked', f'{cfg.num_kv_heads} key-value heads are not split over tensor={mesh.shape["tensor"]}')
    return Choice('cudnn', f'{dtype} on a GPU: a fused kernel')


def causal_attention(
    q_BxTxHxE: jax.Array,
    k_BxTxKxE: jax.Array,
    v_BxTxKxE: jax.Array,
    segments_BxT: jax.Array,
    prefixes_BxT: jax.Array,
    form: str = 'chunked',
) -> jax.Array:
    """Attention of packed rows: a token sees itself and earlier tokens of its segment and prefix. [B, T, H * E].

    Args:
      form: key of TRAINING, see `choose`.
    """
    b, t, h, e = q_BxTxHxE.shape
    return TRAINING[form](q_BxTxHxE, k_BxTxKxE, v_BxTxKxE, segments_BxT, prefixes_BxT).reshape(b, t, h * e)


def _sees(segments_BxT: jax.Array, prefixes_BxT: jax.Array, start: int, end: int) -> jax.Array:
    """Whether queries start..end see the keys up to end, bool [B, C, end]."""
    sees_BxCxS = segments_BxT[:, start:end, None] == segments_BxT[:, None, :end]
    sees_BxCxS |= prefixes_BxT[:, start:end, None] == segments_BxT[:, None, :end]
    return sees_BxCxS & (jnp.arange(start, end)[None, :, None] >= jnp.arange(end)[None, None, :])


def _cudnn(q, k, v, segments_BxT, prefixes_BxT):
    mask_BxTxT = _sees(segments_BxT, prefixes_BxT, 0, segments_BxT.shape[1])
    return jax.nn.dot_product_attention(q, k, v, mask=mask_BxTxT[:, None], implementation='cudnn')


def _chunked(q_BxTxHxE, k_BxTxKxE, v_BxTxKxE, segments_BxT, prefixes_BxT):
    """Queries in chunks, each against the keys up to its own end: half of the score matrix is never made."""
    b, t, h, e = q_BxTxHxE.shape
    kv_heads = k_BxTxKxE.shape[2]
    q_BxKxGxTxE = (q_BxTxHxE * e**-0.5).reshape(b, t, kv_heads, h // kv_heads, e).transpose(0, 2, 3, 1, 4)
    k_BxKxTxE, v_BxKxTxE = k_BxTxKxE.transpose(0, 2, 1, 3), v_BxTxKxE.transpose(0, 2, 1, 3)
    out_BxKxGxTxE = _attend(q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, segments_BxT, prefixes_BxT)
    return out_BxKxGxTxE.transpose(0, 3, 1, 2, 4)


def _chunks(length: int) -> list[tuple[int, int]]:
    size = max(QUERY_CHUNK, -(-length // MOST_CHUNKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


@jax.custom_vjp
def _attend(q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, segments_BxT, prefixes_BxT):
    """The gradient is written out for two reasons: what is kept for it grows with T, not with T x T, and every matrix
    product of it is one that XLA does fast on CPU (benchmarks/train_attention.py)."""
    return _attend_forward(q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, segments_BxT, prefixes_BxT)[0]


def _scores(q_BxKxGxCxE, k_BxKxSxE):
    return jnp.einsum('bkgce,bkse->bkgcs', q_BxKxGxCxE, k_BxKxSxE, preferred_element_type=jnp.float32)


def _attend_forward(q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, segments_BxT, prefixes_BxT):
    outputs, log_sums = [], []
    for start, end in _chunks(q_BxKxGxTxE.shape[3]):
        scores_BxKxGxCxS = _scores(q_BxKxGxTxE[:, :, :, start:end], k_BxKxTxE[:, :, :end])
        sees_BxCxS = _sees(segments_BxT, prefixes_BxT, start, end)
        scores_BxKxGxCxS = jnp.where(sees_BxCxS[:, None, None], scores_BxKxGxCxS, MASKED)
        top = jnp.max(scores_BxKxGxCxS, axis=-1, keepdims=True)
        weights = jnp.exp(scores_BxKxGxCxS - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum('bkgcs,bkse->bkgce', weights.astype(v_BxKxTxE.dtype), v_BxKxTxE[:, :, :end])
        outputs.append((out / total).astype(q_BxKxGxTxE.dtype))
        log_sums.append(top + jnp.log(total))
    out_BxKxGxTxE, log_sum_BxKxGxTx1 = jnp.concatenate(outputs, axis=3), jnp.concatenate(log_sums, axis=3)
    kept = q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, segments_BxT, prefixes_BxT, out_BxKxGxTxE, log_sum_BxKxGxTx1
    return out_BxKxGxTxE, kept


def _rows_last(x_BxKxGxCxE: jax.Array) -> jax.Array:
    """[B, K, E, M] in memory: XLA on CPU multiplies slowly where both operands are read along their rows."""
    b, k, g, c, e = x_BxKxGxCxE.shape
    return jax.lax.optimization_barrier(x_BxKxGxCxE.reshape(b, k, g * c, e).swapaxes(2, 3))


def _attend_backward(kept, d_out_BxKxGxTxE):
    q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, segments_BxT, prefixes_BxT, out_BxKxGxTxE, log_sum_BxKxGxTx1 = kept
    barrier, dtype = jax.lax.optimization_barrier, q_BxKxGxTxE.dtype
    d_out_BxKxGxTxE = barrier(d_out_BxKxGxTxE)
    b, k, _, t, e = q_BxKxGxTxE.shape
    inner = jnp.sum(d_out_BxKxGxTxE.astype(jnp.float32) * out_BxKxGxTxE, axis=-1, keepdims=True)
    d_queries, d_keys_BxKxExT = [], jnp.zeros((b, k, e, t), jnp.float32)
    d_values_BxKxExT = d_keys_BxKxExT
    for start, end in _chunks(t):
        here = (slice(None),) * 3 + (slice(start, end),)
        queries, d_out = q_BxKxGxTxE[here], d_out_BxKxGxTxE[here]
        sees_BxCxS = _sees(segments_BxT, prefixes_BxT, start, end)
        scores_BxKxGxCxS = barrier(_scores(queries, k_BxKxTxE[:, :, :end]))
        weights = jnp.where(sees_BxCxS[:, None, None], jnp.exp(scores_BxKxGxCxS - log_sum_BxKxGxTx1[here]), 0.0)
        d_weights = barrier(_scores(d_out, v_BxKxTxE[:, :, :end]))
        d_scores = barrier((weights * (d_weights - inner[here])).astype(dtype))
        weights_BxKxMxS = barrier(weights.astype(dtype)).reshape(b, k, -1, end)
        d_queries.append(jnp.einsum('bkgcs,bkse->bkgce', d_scores, k_BxKxTxE[:, :, :end]))
        d_keys = jnp.einsum('bkem,bkms->bkes', _rows_last(queries), d_scores.reshape(b, k, -1, end))
        d_values = jnp.einsum('bkem,bkms->bkes', _rows_last(d_out), weights_BxKxMxS)
        d_keys_BxKxExT = d_keys_BxKxExT.at[..., :end].add(d_keys.astype(jnp.float32))
        d_values_BxKxExT = d_values_BxKxExT.at[..., :end].add(d_values.astype(jnp.float32))
    d_keys, d_values = (x.swapaxes(2, 3).astype(dtype) for x in (d_keys_BxKxExT, d_values_BxKxExT))
    return jnp.concatenate(d_queries, axis=3), d_keys, d_values, None, None


_attend.defvjp(_attend_forward, _attend_backward)

TRAINING = {'chunked': _chunked, 'cudnn': _cudnn}


def cache_attention(q_BxTxHxE: jax.Array, k_BxKxExS: jax.Array, v_BxKxSxE: jax.Array, mask_BxTxS: jax.Array):
    """Attention of queries against their rows' cache (True: may attend); softmax in float32. Returns [B, T, H * E].

    A decode step (T = 1) is bound by reading the cache, and both products read it along its last axis
    (benchmarks/decode_attention.py).
    """
    b, t, h, e = q_BxTxHxE.shape
    kv_heads = k_BxKxExS.shape[1]
    q_BxKxGxTxE = (q_BxTxHxE * e**-0.5).reshape(b, t, kv_heads, h // kv_heads, e).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum('bkgte,bkes->bkgts', q_BxKxGxTxE, k_BxKxExS, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask_BxTxS[:, None, None], scores, MASKED), axis=-1)
    out_BxKxGxTxE = jnp.einsum('bkgts,bkse->bkgte', weights.astype(v_BxKxSxE.dtype), v_BxKxSxE)
    return out_BxKxGxTxE.astype(q_BxTxHxE.dtype).transpose(0, 3, 1, 2, 4).reshape(b, t, h * e)
