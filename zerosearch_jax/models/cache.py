"""The key-value cache: one contiguous region a slot, right-padded, with a length of its own.

              position   0    1    2   ...              S-1
    slot 0              [p    p    a    o    o    .    .  ]   length 5; '.' is free or stale, never attended to
    slot 1              [p    p    p    .    .    .    .  ]   length 3

p prompt, a action, o observation. Writing past the capacity drops the write. Layers are separate arrays, because
slicing one stacked array copies it on every decode step on CPU. Keys are [B, K, E, S] and values [B, K, S, E]: a decode
step multiplies rows of both by a vector, along their last, contiguous axis (on CPU four times faster than [B, S, K, E]
at 16 slots of 512 tokens, benchmarks/decode_attention.py).
"""

import flax.struct
import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.models.config import ModelConfig


@flax.struct.dataclass
class KVCache:
    """Keys and values, a tuple of L arrays each."""

    k: tuple[jax.Array, ...]  # [B, K, E, S]
    v: tuple[jax.Array, ...]  # [B, K, S, E]

    @property
    def capacity(self) -> int:
        return self.v[0].shape[2]


def axes(cfg: ModelConfig, mesh: jax.sharding.Mesh) -> tuple[str | None, ...]:
    """Logical axes of a layer's cache; key-value heads that the tensor axis does not divide are replicated."""
    return ('batch', sharding.divisible_axis('kv_heads', cfg.num_kv_heads, mesh), None, None)


def slot_bytes(cfg: ModelConfig, mesh: jax.sharding.Mesh, capacity: int, dtype) -> int:
    """Bytes of one slot on each of the devices that hold a part of it."""
    heads = cfg.num_kv_heads // (mesh.shape['tensor'] if axes(cfg, mesh)[1] else 1)
    return 2 * cfg.num_layers * heads * cfg.head_dim * capacity * jnp.dtype(dtype).itemsize


def create(cfg: ModelConfig, mesh: jax.sharding.Mesh, slots: int, capacity: int, dtype=jnp.float32) -> KVCache:
    """An empty cache, born sharded. `slots` must be a multiple of the mesh's data x fsdp."""
    rows = sharding.shard_count('batch', mesh)
    if slots % rows:
        raise ValueError(f'{slots} slots cannot be split over {rows} (data x fsdp) devices; use a multiple of {rows}')

    def zeros(*shape: int):
        return tuple(jnp.zeros((slots, cfg.num_kv_heads, *shape), dtype) for _ in range(cfg.num_layers))

    def empty():
        return KVCache(zeros(cfg.head_dim, capacity), zeros(capacity, cfg.head_dim))

    return jax.jit(empty, out_shardings=sharding.named(mesh, *axes(cfg, mesh)))()


def write(
    keys_BxKxExS: jax.Array,
    values_BxKxSxE: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Writes k and v [..., K, E] of one layer at (row, position), both [...]; out-of-range positions are dropped."""
    keys = keys_BxKxExS.at[rows, :, :, positions].set(k.astype(keys_BxKxExS.dtype), mode='drop')
    values = values_BxKxSxE.at[rows, :, positions].set(v.astype(values_BxKxSxE.dtype), mode='drop')
    return keys, values


def fork(cache: KVCache, sources_PxR: jax.Array, targets_PxR: jax.Array) -> KVCache:
    """Copies whole slots: a group's members share one prefill of their prompt. Out-of-range targets are dropped.

    The slots lie on P parts of the mesh (data x fsdp); a slot is counted from the first of its part, and copied within.
    """

    def within(part, sources_R, targets_R):
        return part.at[targets_R].set(part[sources_R], mode='drop')

    def copied(x):
        parts = x.reshape(len(sources_PxR), -1, *x.shape[1:])
        return jax.vmap(within)(parts, sources_PxR, targets_PxR).reshape(x.shape)

    return jax.tree.map(copied, cache)


def take(cache: KVCache, slots_N: jax.Array | None, span: int) -> KVCache:
    """A copy of the first `span` positions of the listed slots, as a cache of N slots; None: of all slots."""
    rows = slice(None) if slots_N is None else slots_N
    return KVCache(tuple(k[rows, :, :, :span] for k in cache.k), tuple(v[rows, :, :span] for v in cache.v))


def put(cache: KVCache, part: KVCache, slots_N: jax.Array | None) -> KVCache:
    """Writes what `take` has copied back to its slots, which are distinct."""
    rows, span = slice(None) if slots_N is None else slots_N, part.capacity
    keys = (k.at[rows, :, :, :span].set(p) for k, p in zip(cache.k, part.k, strict=True))
    values = (v.at[rows, :, :span].set(p) for v, p in zip(cache.v, part.v, strict=True))
    return KVCache(tuple(keys), tuple(values))
