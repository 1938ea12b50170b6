"""The layers of the transformer as pure functions. Shape letters, used in names here and everywhere:

B rows   T tokens   S cache or key positions   D hidden   F mlp   V vocabulary   L layers
H query heads   K key-value heads   G = H / K query heads per key-value head   E head size
"""

import math

import jax
import jax.numpy as jnp

from zerosearch_jax.models.config import ModelConfig, RopeScaling


def last_sum(x: jax.Array) -> jax.Array:
    """Sum over the last dimension as a product with ones: on CPU many times faster than a sum that XLA fuses.

    It is in float32 at highest precision, because an accelerator would otherwise round the factors.
    """
    return jnp.matmul(x, jnp.ones(x.shape[-1], x.dtype), precision=jax.lax.Precision.HIGHEST)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last dimension, computed in float32; `weight` has that dimension alone."""
    return _scaled(_normalized(x, eps), weight)


def norm(x: jax.Array, weight: jax.Array, cfg: ModelConfig) -> jax.Array:
    """`rms_norm` as the model has it: Gemma's weights are distances from 1, and multiply before rounding."""
    if not cfg.norm_from_one:
        return rms_norm(x, weight, cfg.norm_eps)
    return rms_norm(x.astype(jnp.float32), 1 + weight.astype(x.dtype).astype(jnp.float32), cfg.norm_eps).astype(x.dtype)


def _normalized(x: jax.Array, eps: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean_square = last_sum(jnp.square(x32))[..., None] / x.shape[-1]
    return (x32 * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype)


@jax.custom_vjp
def _scaled(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x * weight along the last dimension, whose weight gradient is summed by `last_sum`, in float32."""
    return x * jax.lax.expand_dims(weight.astype(x.dtype), range(x.ndim - 1))


def _scaled_backward(residuals, g):
    x, weight = residuals
    products = (g.astype(jnp.float32) * x).reshape(-1, x.shape[-1])
    return _scaled(g, weight), last_sum(products.T).astype(weight.dtype)


_scaled.defvjp(lambda x, weight: (_scaled(x, weight), (x, weight)), _scaled_backward)


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [..., in] @ w [in, out], with a gradient whose matrix products XLA cannot rearrange.

    Otherwise XLA on CPU first writes the incoming gradient transposed and recomputes the activation function in strided
    order: a gradient then takes twice as long (benchmarks/linear_gradient.py). The product is in the dtype of `x`; the
    gradient of `w` is accumulated in float32 and then cast to the dtype of `w`.
    """
    return x @ w.astype(x.dtype)


def _matmul_forward(x, w):
    cast = w.astype(x.dtype)  # kept, so that a rematerialized layer gathers it once, not for each of its two products
    return x @ cast, (x, cast, jnp.zeros(0, w.dtype))


def _matmul_backward(residuals, g):
    x, cast, like = residuals
    g = jax.lax.optimization_barrier(g)
    dx = jax.lax.dot_general(g, cast, (((g.ndim - 1,), (1,)), ((), ())))
    rows = tuple(range(x.ndim - 1))
    dw = jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return dx, dw.astype(like.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def linear(layer: dict, name: str, x: jax.Array) -> jax.Array:
    """x @ W, times the scale of an int8 W, plus the bias and the low-rank update, if the layer has them."""
    y = matmul(x, layer[name])
    if f'{name}_scale' in layer:
        y *= jax.lax.expand_dims(layer[f'{name}_scale'], range(y.ndim - 1)).astype(x.dtype)
    if f'{name}_bias' in layer:
        y += jax.lax.expand_dims(layer[f'{name}_bias'], range(y.ndim - 1)).astype(x.dtype)
    if f'{name}_lora_a' in layer:
        low = matmul(x, layer[f'{name}_lora_a'])
        if f'{name}_lora_rows' in layer:  # several roles: a row uses the columns of its role
            low *= layer[f'{name}_lora_rows']
        y += matmul(low, layer[f'{name}_lora_b'])
    return y


def rope_frequencies(cfg: ModelConfig, sliding: jax.Array | bool = False) -> jax.Array:
    """Inverse frequencies [E / 2] of a layer, scaled if the model has a scaling; sliding layers have their own."""
    powers = -jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
    inverse = cfg.rope_theta**powers / cfg.rope_factor
    if cfg.rope_scaling is not None:
        inverse = _llama3_scaled(inverse, cfg.rope_scaling)
    return jnp.where(sliding, cfg.local_rope_theta**powers, inverse) if cfg.window else inverse


def _llama3_scaled(inverse: jax.Array, scaling: RopeScaling) -> jax.Array:
    wavelength = 2 * math.pi / inverse
    ratio = scaling.original_max_position / wavelength
    smooth = (ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)  # 0: long waves, slowed by the factor; 1: short waves, untouched
    return inverse * (smooth + (1 - smooth) / scaling.factor)


def rope(x_BxTxHxE: jax.Array, positions_BxT: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotary embedding in the rotate-half convention of transformers (not the interleaved one of GGUF)."""
    angles = positions_BxT[:, :, None].astype(jnp.float32) * frequencies[None, None, :]
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    a, b = jnp.split(x_BxTxHxE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxTxHxE.dtype)


def qkv(layer: dict, x_BxTxD: jax.Array, positions_BxT: jax.Array, cfg: ModelConfig, sliding: jax.Array | bool = False):
    """Rotated queries [B, T, H, E] and keys, and values [B, T, K, E]; `sliding`: of a layer with a window."""
    if 'qkv' in layer:  # one matrix: generate/serving.py
        ends = cfg.num_heads * cfg.head_dim, (cfg.num_heads + cfg.num_kv_heads) * cfg.head_dim
        parts = jnp.split(linear(layer, 'qkv', x_BxTxD), ends, axis=-1)
    else:
        parts = [linear(layer, name, x_BxTxD) for name in ('q', 'k', 'v')]
    q, k, v = (part.reshape(*x_BxTxD.shape[:2], -1, cfg.head_dim) for part in parts)
    if cfg.qk_norm:
        q, k = norm(q, layer['q_norm'], cfg), norm(k, layer['k_norm'], cfg)
    if cfg.query_size:  # attention divides scores by the root of the head's size
        q *= (cfg.head_dim / cfg.query_size) ** 0.5
    frequencies = rope_frequencies(cfg, sliding)
    return rope(q, positions_BxT, frequencies), rope(k, positions_BxT, frequencies), v


def mlp(layer: dict, x_BxTxD: jax.Array, gelu: bool = False) -> jax.Array:
    """SwiGLU, or the same with GELU by its approximation with tanh."""
    if 'gate_up' in layer:
        gate, up = jnp.split(linear(layer, 'gate_up', x_BxTxD), 2, axis=-1)
    else:
        gate, up = linear(layer, 'gate', x_BxTxD), linear(layer, 'up', x_BxTxD)
    return linear(layer, 'down', (jax.nn.gelu(gate) if gelu else jax.nn.silu(gate)) * up)
