"""Attention of a decode step by cache layout: keys and values [B, S, K, E], or [B, K, E, S] and [B, K, S, E].

python -m benchmarks.decode_attention
"""

import jax
import jax.numpy as jnp

from benchmarks.common import best_ms, emit
from zerosearch_jax.models import attention


def einsum_attention(q_Bx1xHxE, k_BxSxKxE, v_BxSxKxE, mask_Bx1xS):
    """The same attention with batched matrix products on [B, S, K, E]."""
    out_Bx1xHxE = jax.nn.dot_product_attention(q_Bx1xHxE, k_BxSxKxE, v_BxSxKxE, mask=mask_Bx1xS[:, None])
    return out_Bx1xHxE.reshape(*q_Bx1xHxE.shape[:2], -1)


def main():
    for slots, positions in ((16, 256), (16, 512), (64, 512)):
        keys = jax.random.split(jax.random.key(0), 3)
        q = jax.random.normal(keys[0], (slots, 1, 9, 64))
        k, v = (jax.random.normal(key, (slots, positions, 3, 64)) for key in keys[1:])
        mask = jnp.arange(positions)[None, None] < jnp.full((slots, 1, 1), positions - 7)
        shape = dict(slots=slots, positions=positions)
        moved = 2 * k.nbytes
        plain = best_ms(einsum_attention, q, k, v, mask)
        ours = best_ms(attention.cache_attention, q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), mask)
        emit('decode_attention', **shape, bske_ms=plain, bkes_ms=ours, bkes_gb_per_s=moved / ours / 1e6)


if __name__ == '__main__':
    main()
