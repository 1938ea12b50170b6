"""Gradient of a SwiGLU MLP with adapters: our matmul, whose gradient is fixed, or the `@` operator.

python -m benchmarks.linear_gradient
"""

import jax
import jax.numpy as jnp

from benchmarks.common import best_ms, emit
from zerosearch_jax.models import layers
from zerosearch_jax.models.config import PRESETS

RANK, TOKENS = 8, 512


def main():
    cfg = PRESETS['smollm2-135m']
    sizes = {'gate': (cfg.hidden_size, cfg.mlp_size), 'up': (cfg.hidden_size, cfg.mlp_size)}
    sizes['down'] = (cfg.mlp_size, cfg.hidden_size)
    frozen, adapter = {}, {}
    for number, (name, (size_in, size_out)) in enumerate(sizes.items()):
        keys = jax.random.split(jax.random.key(number), 3)
        frozen[name] = 0.05 * jax.random.normal(keys[0], (size_in, size_out))
        adapter[f'{name}_lora_a'] = 0.05 * jax.random.normal(keys[1], (size_in, RANK))
        adapter[f'{name}_lora_b'] = 0.05 * jax.random.normal(keys[2], (RANK, size_out))
    x = jax.random.normal(jax.random.key(9), (1, TOKENS, cfg.hidden_size))

    def loss(adapter, x):
        return jnp.sum(layers.mlp({**frozen, **adapter}, x) ** 2)

    ours = best_ms(jax.grad(loss, (0, 1)), adapter, x)
    fixed, layers.matmul = layers.matmul, lambda x, w: x @ w
    operator = best_ms(jax.grad(loss, (0, 1)), adapter, x)
    layers.matmul = fixed
    emit('linear_gradient', tokens=TOKENS, rank=RANK, matmul_ms=ours, operator_ms=operator)


if __name__ == '__main__':
    main()
