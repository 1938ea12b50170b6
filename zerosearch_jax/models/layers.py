"""The layers of the transformer as pure functions. Shape letters, used in names here and everywhere:

B rows   T tokens   S cache or key positions   D hidden   F mlp   V vocabulary   L layers
H query heads   K key-value heads   G = H / K query heads a key-value head   E head size
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from zerosearch_jax.models.config import ModelConfig, RopeScaling

MASKED = -1e30  # finite, so that a fully masked row has finite values and gradients


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last dimension, computed in float32."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype) * jax.lax.expand_dims(weight, range(x.ndim - weight.ndim)).astype(x.dtype)


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [..., in] @ w [in, out], with a gradient whose matrix products XLA cannot rearrange.

    Left alone, XLA on CPU writes the incoming gradient transposed, recomputing the activation function in strided
    order, before it multiplies: a gradient then takes twice as long (benchmarks/linear_gradient.py).
    """
    return x @ w


def _matmul_forward(x, w):
    return x @ w, (x, w)


def _matmul_backward(residuals, g):
    x, w = residuals
    g = jax.lax.optimization_barrier(g)
    dx = jax.lax.dot_general(g, w, (((g.ndim - 1,), (1,)), ((), ())))
    rows = tuple(range(x.ndim - 1))
    return dx, jax.lax.dot_general(x, g, ((rows, rows), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


def linear(layer: dict, name: str, x: jax.Array) -> jax.Array:
    """x @ W, plus the bias and the low-rank update where the layer has them."""
    y = matmul(x, layer[name].astype(x.dtype))
    if f'{name}_bias' in layer:
        y += jax.lax.expand_dims(layer[f'{name}_bias'], range(y.ndim - 1)).astype(x.dtype)
    if f'{name}_lora_a' in layer:
        low = matmul(x, layer[f'{name}_lora_a'].astype(x.dtype))
        y += matmul(low, layer[f'{name}_lora_b'].astype(x.dtype))
    return y


def rope_frequencies(cfg: ModelConfig) -> jax.Array:
    """Inverse frequencies [E / 2], with the Llama-3 scaling where the model has it."""
    inverse = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
    return inverse if cfg.rope_scaling is None else _llama3_scaled(inverse, cfg.rope_scaling)


def _llama3_scaled(inverse: jax.Array, scaling: RopeScaling) -> jax.Array:
    wavelength = 2 * math.pi / inverse
    ratio = scaling.original_max_position / wavelength
    smooth = (ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)  # 0: long waves, slowed by the factor; 1: short waves, untouched
    return inverse * (smooth + (1 - smooth) / scaling.factor)


def rope(x_BxTxHxE: jax.Array, positions_BxT: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Rotary embedding in the rotate-half convention of transformers (not the interleaved one of GGUF)."""
    angles = positions_BxT[:, :, None].astype(jnp.float32) * rope_frequencies(cfg)[None, None, :]
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    a, b = jnp.split(x_BxTxHxE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxTxHxE.dtype)


def qkv(layer: dict, x_BxTxD: jax.Array, positions_BxT: jax.Array, cfg: ModelConfig):
    """Rotated queries [B, T, H, E] and keys, and values [B, T, K, E]."""
    b, t, _ = x_BxTxD.shape
    q = linear(layer, 'q', x_BxTxD).reshape(b, t, cfg.num_heads, cfg.head_dim)
    k = linear(layer, 'k', x_BxTxD).reshape(b, t, cfg.num_kv_heads, cfg.head_dim)
    v = linear(layer, 'v', x_BxTxD).reshape(b, t, cfg.num_kv_heads, cfg.head_dim)
    if cfg.qk_norm:
        q, k = rms_norm(q, layer['q_norm'], cfg.norm_eps), rms_norm(k, layer['k_norm'], cfg.norm_eps)
    return rope(q, positions_BxT, cfg), rope(k, positions_BxT, cfg), v


def attention(q_BxTxHxE: jax.Array, k_BxSxKxE: jax.Array, v_BxSxKxE: jax.Array, mask_BxTxS: jax.Array) -> jax.Array:
    """Grouped-query attention under a boolean mask (True: may attend); softmax in float32. Returns [B, T, H * E]."""
    b, t, h, e = q_BxTxHxE.shape
    out = jax.nn.dot_product_attention(q_BxTxHxE, k_BxSxKxE, v_BxSxKxE, mask=mask_BxTxS[:, None])
    return out.reshape(b, t, h * e)


QUERY_CHUNK = 128


def causal_attention(
    q_BxTxHxE: jax.Array, k_BxTxKxE: jax.Array, v_BxTxKxE: jax.Array, segments_BxT: jax.Array, prefixes_BxT: jax.Array
) -> jax.Array:
    """Attention of packed rows: a token sees itself and earlier tokens of its segment and prefix. [B, T, H * E].

    Queries go in chunks, each against the keys up to its own end, so that half of the score matrix is never made:
    on CPU a gradient costs a third of that of one masked matrix (benchmarks/train_attention.py).
    """
    b, t, h, e = q_BxTxHxE.shape
    kv_heads = k_BxTxKxE.shape[2]
    q_BxKxGxTxE = (q_BxTxHxE * e**-0.5).reshape(b, t, kv_heads, h // kv_heads, e).transpose(0, 2, 3, 1, 4)
    k_BxKxTxE, v_BxKxTxE = k_BxTxKxE.transpose(0, 2, 1, 3), v_BxTxKxE.transpose(0, 2, 1, 3)
    outputs = []
    for start in range(0, t, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, t)
        scores = jnp.einsum('bkgce,bkse->bkgcs', q_BxKxGxTxE[:, :, :, start:end], k_BxKxTxE[:, :, :end])
        sees_BxCxS = segments_BxT[:, start:end, None] == segments_BxT[:, None, :end]
        sees_BxCxS |= prefixes_BxT[:, start:end, None] == segments_BxT[:, None, :end]
        sees_BxCxS &= jnp.arange(start, end)[None, :, None] >= jnp.arange(end)[None, None, :]
        scores = jnp.where(sees_BxCxS[:, None, None], scores.astype(jnp.float32), MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(v_BxTxKxE.dtype)
        outputs.append(jnp.einsum('bkgcs,bkse->bkgce', weights, v_BxKxTxE[:, :, :end]))
    return jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4).reshape(b, t, h * e)


def decode_attention(q_Bx1xHxE: jax.Array, k_BxKxExS: jax.Array, v_BxKxSxE: jax.Array, mask_BxS: jax.Array):
    """Attention of one query a row against its cache; softmax in float32. Returns [B, 1, H * E].

    A decode step is bound by reading the cache, and both products read it along its last axis
    (benchmarks/decode_attention.py).
    """
    b, _, h, e = q_Bx1xHxE.shape
    kv_heads = k_BxKxExS.shape[1]
    q_BxKxGxE = q_Bx1xHxE.reshape(b, kv_heads, h // kv_heads, e) * e**-0.5
    scores_BxKxGxS = jnp.einsum('bkge,bkes->bkgs', q_BxKxGxE, k_BxKxExS, preferred_element_type=jnp.float32)
    weights_BxKxGxS = jax.nn.softmax(jnp.where(mask_BxS[:, None, None], scores_BxKxGxS, MASKED), axis=-1)
    out_BxKxGxE = jnp.einsum('bkgs,bkse->bkge', weights_BxKxGxS.astype(v_BxKxSxE.dtype), v_BxKxSxE)
    return out_BxKxGxE.astype(q_Bx1xHxE.dtype).reshape(b, 1, h * e)


def mlp(layer: dict, x_BxTxD: jax.Array) -> jax.Array:
    """SwiGLU."""
    return linear(layer, 'down', jax.nn.silu(linear(layer, 'gate', x_BxTxD)) * linear(layer, 'up', x_BxTxD))
