"""The key-value cache: one contiguous region a slot, right-padded, with a length of its own.

              position   0    1    2   ...              S-1
    slot 0              [p    p    a    o    o    .    .  ]   length 5; '.' is free or stale, never attended to
    slot 1              [p    p    p    .    .    .    .  ]   length 3

p prompt, a action, o observation. Writing past the capacity drops the write. Layers are separate arrays [B, S, K, E],
because slicing one stacked array copies it on every decode step on CPU.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.models.config import ModelConfig


@flax.struct.dataclass
class KVCache:
    """Keys and values, a tuple of L arrays [B, S, K, E] each."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def axes(cfg: ModelConfig, mesh: jax.sharding.Mesh) -> tuple[str | None, ...]:
    """Logical axes of a layer's cache; key-value heads that the tensor axis does not divide are replicated."""
    return ('batch', None, 'kv_heads' if cfg.num_kv_heads % mesh.shape['tensor'] == 0 else None, None)


def create(cfg: ModelConfig, mesh: jax.sharding.Mesh, slots: int, capacity: int, dtype=jnp.float32) -> KVCache:
    """An empty cache, born sharded. `slots` must be a multiple of the mesh's data x fsdp."""
    shape = (slots, capacity, cfg.num_kv_heads, cfg.head_dim)
    rows = mesh.shape['data'] * mesh.shape['fsdp']
    if slots % rows:
        raise ValueError(f'{slots} slots cannot be split over {rows} (data x fsdp) devices; use a multiple of {rows}')

    def zeros():
        return tuple(jnp.zeros(shape, dtype) for _ in range(cfg.num_layers))

    place = sharding.named(mesh, *axes(cfg, mesh))
    return jax.jit(lambda: KVCache(zeros(), zeros()), out_shardings=place)()


def bytes_per_slot(cfg: ModelConfig, capacity: int, dtype=jnp.float32) -> int:
    return 2 * cfg.num_layers * capacity * cfg.num_kv_heads * cfg.head_dim * jnp.dtype(dtype).itemsize


def write(layer_BxSxKxE: jax.Array, rows: jax.Array, positions: jax.Array, new: jax.Array) -> jax.Array:
    """Writes new [..., K, E] at (row, position), both [...]; out-of-range positions are dropped."""
    return layer_BxSxKxE.at[rows, positions].set(new.astype(layer_BxSxKxE.dtype), mode='drop')


def fork(cache: KVCache, sources_R: jax.Array, targets_R: jax.Array) -> KVCache:
    """Copies whole slots: a group's members share one prefill of their prompt. Out-of-range targets are dropped."""
    return jax.tree.map(lambda x: x.at[targets_R].set(x[sources_R], mode='drop'), cache)
