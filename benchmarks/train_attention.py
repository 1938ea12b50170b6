"""Gradient of training attention: chunks of queries against chunks of keys, or one masked score matrix.

python -m benchmarks.train_attention
"""

import jax
import jax.numpy as jnp

from benchmarks.common import best_ms, emit
from zerosearch_jax.models import attention


def main():
    for length in (512, 1024):
        keys = jax.random.split(jax.random.key(0), 3)
        q = jax.random.normal(keys[0], (1, length, 9, 64))
        k, v = (jax.random.normal(key, (1, length, 3, 64)) for key in keys[1:])
        segments = jnp.ones((1, length), jnp.int32)
        mask = jnp.tril(jnp.ones((1, length, length), bool))

        def chunked(q, k, v, segments=segments):
            return jnp.sum(attention.causal_attention(segments, segments)(q, k, v) ** 2)

        def whole(q, k, v, mask=mask):
            return jnp.sum(jax.nn.dot_product_attention(q, k, v, mask=mask[:, None]) ** 2)

        figures = {name: best_ms(jax.grad(f, (0, 1, 2)), q, k, v) for name, f in (('ours', chunked), ('whole', whole))}
        emit('train_attention_gradient', length=length, chunked_ms=figures['ours'], whole_ms=figures['whole'])


if __name__ == '__main__':
    main()
