"""Frozen weights in eight bits, with one scale for each output channel, which is applied after the product.

x W is computed as (x Q) * s, where Q = round(W / s) is int8 and s [out] = max |W| / 127 over the inputs. Embedding,
head, norms and routers are unchanged.
"""

import jax
import jax.numpy as jnp

from zerosearch_jax.models import experts, lora


@jax.jit
def quantize(params: dict) -> dict:
    """The weights with int8 kernels `name` [L, ..., in, out] and float32 `name_scale` [L, ..., out], merged."""
    merged = lora.merge(params)
    stack = dict(merged['layers'])
    for name in (name for name in (*lora.TARGETS, *experts.KERNELS) if name in stack):
        kernel = stack[name].astype(jnp.float32)
        scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=-2), 1e-30) / 127
        stack[name] = jnp.round(kernel / scale[..., None, :]).astype(jnp.int8)
        stack[f'{name}_scale'] = scale
    return {**merged, 'layers': stack}
