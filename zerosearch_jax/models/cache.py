"""The key-value cache: one contiguous region for each slot, right-padded, with its own length.

              position   0    1    2   ...              S-1
    slot 0              [p    p    a    o    o    .    .  ]   length 5; '.' is free or stale, never attended to
    slot 1              [p    p    p    .    .    .    .  ]   length 3

p prompt, a action, o observation. A write past the capacity is dropped. Layers are separate arrays, because slicing one
stacked array copies it in every decode step on CPU. The layout of a layer depends on what reads it:

    form     a layer                                  read by                         up to
    einsum   keys [B, K, E, S], values [B, K, S, E]   matrix products                 a span that all rows share
    cudnn    keys [B, S, K, E], values [B, S, K, E]   cuDNN's fused attention         each row's own length
    ragged   keys and values in turn [B, S, M, E]     JAX's kernel for TPUs; M = 2 K  each row's own length

A decode step multiplies rows of the first by a vector, along their last, contiguous axis: on CPU four times faster than
[B, S, K, E] at 16 slots of 512 tokens (benchmarks/decode_attention.py).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.models import attention
from zerosearch_jax.models.config import ModelConfig

# the arrays of a layer by form, as in the table above
FORMS = {'einsum': ('BKES', 'BKSE'), 'cudnn': ('BSKE', 'BSKE'), 'ragged': ('BSME',)}
Layer = tuple[jax.Array, ...]


@flax.struct.dataclass
class KVCache:
    """Keys and values of L layers."""

    layers: tuple[Layer, ...]
    form: str = flax.struct.field(pytree_node=False)  # key of FORMS

    @property
    def capacity(self) -> int:
        return self.layers[0][0].shape[FORMS[self.form][0].index('S')]


@flax.struct.dataclass
class Place:
    """The places of T tokens of each of N rows: positions starts, starts + 1, ... of a slot."""

    slots: jax.Array | None  # [N], counted from the first on the same device; None: all the slots, in order
    starts: jax.Array  # [N]; 0 for an idle row, so that little is read
    counts: jax.Array  # [N] tokens to write; the rest of the T are padding

    def positions(self, tokens: int) -> jax.Array:
        """[N, T]."""
        return self.starts[:, None] + jnp.arange(tokens)[None]

    def sees(self, tokens: int, span: int, window: int = 0) -> jax.Array:
        """Which of the first positions each token attends to, at most the last `window`, bool [N, T, span]."""
        keys, queries = jnp.arange(span)[None, None], self.positions(tokens)[..., None]
        return (keys <= queries) & (keys > queries - window) if window else keys <= queries

    def rows(self, x: jax.Array) -> jax.Array:
        """The rows [N, ...] of an array of all slots."""
        return x if self.slots is None else x[self.slots]


def choose(cfg: ModelConfig, dtype, mesh: jax.sharding.Mesh) -> str:
    """The form of the cache of a model that generates on a mesh: that of a kernel if one can read it."""
    if mesh.devices.flat[0].platform == 'tpu':
        heads, rest = divmod(cfg.num_kv_heads, mesh.shape['tensor'])
        tiled = cfg.head_dim % 128 == 0 and not rest and (heads % 8 == 0 or 8 % heads == 0)
        return 'ragged' if tiled and jnp.dtype(dtype) == jnp.bfloat16 and not cfg.window else 'einsum'
    return 'cudnn' if attention.choose(cfg, dtype, mesh, row_length=2).name == 'cudnn' else 'einsum'


def _axes(form: str, heads: str | None) -> list[tuple[str | None, ...]]:
    """Logical axes of a layer's arrays; `heads` is None if the mesh does not divide the heads."""
    names = {'B': 'batch', 'K': heads, 'M': heads}
    return [tuple(map(names.get, letters)) for letters in FORMS[form]]


def slot_bytes(cfg: ModelConfig, mesh: jax.sharding.Mesh, capacity: int, dtype) -> int:
    """Bytes of one slot on each device that holds a part of it."""
    split = sharding.divisible_axis('kv_heads', cfg.num_kv_heads, mesh)
    heads = cfg.num_kv_heads // (mesh.shape['tensor'] if split else 1)
    return 2 * cfg.num_layers * heads * cfg.head_dim * capacity * jnp.dtype(dtype).itemsize


def abstract(cfg: ModelConfig, mesh: jax.sharding.Mesh, slots: int, capacity: int, dtype=jnp.float32) -> KVCache:
    """The cache's shapes and shardings. `slots` must be a multiple of the mesh's data x fsdp."""
    rows = sharding.shard_count('batch', mesh)
    if slots % rows:
        raise ValueError(f'{slots} slots cannot be split over {rows} (data x fsdp) devices; use a multiple of {rows}')
    form, heads = choose(cfg, dtype, mesh), sharding.divisible_axis('kv_heads', cfg.num_kv_heads, mesh)
    sizes = {'B': slots, 'S': capacity, 'K': cfg.num_kv_heads, 'M': 2 * cfg.num_kv_heads, 'E': cfg.head_dim}
    layer = tuple(
        jax.ShapeDtypeStruct([sizes[x] for x in letters], jnp.dtype(dtype), sharding=sharding.named(mesh, *axes))
        for letters, axes in zip(FORMS[form], _axes(form, heads), strict=True)
    )
    return KVCache((layer,) * cfg.num_layers, form)


def create(cfg: ModelConfig, mesh: jax.sharding.Mesh, slots: int, capacity: int, dtype=jnp.float32) -> KVCache:
    """An empty cache, created sharded."""
    like = abstract(cfg, mesh, slots, capacity, dtype)
    places = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), out_shardings=places)()


def fork(cache: KVCache, sources_PxR: jax.Array, targets_PxR: jax.Array) -> KVCache:
    """Copies whole slots, so that a group's prompt is prefilled once. Out-of-range targets are dropped.

    The slots are on P parts of the mesh (data x fsdp); they are counted from the first of their part and copied within.
    """

    def within(part, sources_R, targets_R):
        return part.at[targets_R].set(part[sources_R], mode='drop')

    def copied(x):
        parts = x.reshape(len(sources_PxR), -1, *x.shape[1:])
        return jax.vmap(within)(parts, sources_PxR, targets_PxR).reshape(x.shape)

    return jax.tree.map(copied, cache)


def take(cache: KVCache, slots_N: jax.Array | None, span: int) -> KVCache:
    """A copy of the first `span` positions of the listed slots, as a cache of N slots; None: of all slots."""

    def rows(x):
        return x if slots_N is None else x.at[slots_N].get(mode='clip')

    return cache.replace(layers=tuple((rows(k[..., :span]), rows(v[:, :, :span])) for k, v in cache.layers))


def put(cache: KVCache, part: KVCache, slots_N: jax.Array | None, starts_N: jax.Array, tokens: int) -> KVCache:
    """Writes `tokens` positions of a copy by `take`, from `starts` on, back to their slots, which are distinct."""
    slots_Nx1 = (jnp.arange(len(starts_N)) if slots_N is None else slots_N)[:, None]
    positions_NxT = starts_N[:, None] + jnp.arange(tokens)[None]

    def back(whole, part):
        (keys, values), (k, v) = whole, part
        k_NxKxExT = jnp.take_along_axis(k, positions_NxT[:, None, None], axis=3, mode='clip')
        v_NxKxTxE = jnp.take_along_axis(v, positions_NxT[:, None, :, None], axis=2, mode='clip')
        keys = keys.at[slots_Nx1, :, :, positions_NxT].set(k_NxKxExT.transpose(0, 3, 1, 2), **DROPPED)
        return keys, values.at[slots_Nx1, :, positions_NxT].set(v_NxKxTxE.transpose(0, 2, 1, 3), **DROPPED)

    return cache.replace(layers=tuple(map(back, cache.layers, part.layers)))


# ---------------------------------------------------------------- one layer


def attend(form: str, layer: Layer, q_NxTxHxE, k_NxTxKxE, v_NxTxKxE, place: Place, span: int, window: int = 0) -> tuple:
    """Writes new keys and values, then attends to the slots; returns out [N, T, H * E] and the layer.

    Each device does this for its own slots and heads, so that no part of a cache moves.

    Args:
      form: key of FORMS.
      span: the most positions that are read.
      window: the most positions that a token attends to; 0: all. Only the form einsum has windows.
    """
    options = {'span': span} | ({'window': window} if window else {})
    heads = sharding.divisible_axis('kv_heads', k_NxTxKxE.shape[2], jax.sharding.get_abstract_mesh())
    held = tuple(sharding.spec(*names) for names in _axes(form, heads))
    rows = sharding.spec('batch', None, heads)
    own = jax.shard_map(
        functools.partial(READERS[form], **options),
        in_specs=(held, rows, rows, rows, sharding.spec('batch')),
        out_specs=(rows, held),
        check_vma=False,  # kernels do not declare along which axes their results vary
    )
    return own(layer, q_NxTxHxE, k_NxTxKxE, v_NxTxKxE, place)


DROPPED = dict(mode='drop', unique_indices=True)  # distinct targets, so that a GPU need not write atomically


def _targets(place: Place, tokens: int, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Slots [N, 1] and positions [N, T] of written tokens, distinct; padding is past the end, where it is dropped."""
    rows = len(place.starts)
    slots_N = jnp.arange(rows) if place.slots is None else place.slots
    written_NxT = jnp.arange(tokens)[None] < place.counts[:, None]
    past_NxT = capacity + jnp.arange(rows * tokens).reshape(rows, tokens)
    return slots_N[:, None], jnp.where(written_NxT, place.positions(tokens), past_NxT)


def _einsum(layer, q, k, v, place, span, window=0):
    keys, values = layer
    slots, positions = _targets(place, q.shape[1], values.shape[2])
    keys = keys.at[slots, :, :, positions].set(k.astype(keys.dtype), **DROPPED)
    values = values.at[slots, :, positions].set(v.astype(values.dtype), **DROPPED)
    read = place.rows(keys[..., :span]), place.rows(values[:, :, :span])
    return attention.cache_attention(q, *read, place.sees(q.shape[1], span, window)), (keys, values)


def _cudnn(layer, q, k, v, place, span):
    at, tokens = _targets(place, q.shape[1], layer[0].shape[1]), q.shape[1]
    layer = tuple(x.at[at].set(new.astype(x.dtype), **DROPPED) for x, new in zip(layer, (k, v), strict=True))
    out_NxTxHxE = jax.nn.dot_product_attention(
        *(q, *(place.rows(x[:, :span]) for x in layer)),
        mask=None if tokens == 1 else place.sees(tokens, span)[:, None],  # a single query sees all that is read
        key_value_seq_lengths=jnp.minimum(place.starts + tokens, span),
        implementation='cudnn',
    )
    return out_NxTxHxE.reshape(*q.shape[:2], -1), layer


# positions of a page, pages and queries of a block: what most of JAX's own table of tuned sizes has for such pages
PAGE, KV_PAGES, QUERIES = 128, 8, 32


def _ragged(layer, q, k, v, place, span):
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    (kv_BxSxMxE,), (n, t, h, e) = layer, q.shape
    slots, positions = _targets(place, t, kv_BxSxMxE.shape[1])
    new = jnp.stack([k, v], axis=3).reshape(n, t, -1, e)
    kv_BxSxMxE = kv_BxSxMxE.at[slots, positions].set(new.astype(kv_BxSxMxE.dtype), **DROPPED)
    pages = kv_BxSxMxE.shape[1] // PAGE  # pages of a slot, which are consecutive
    out = ragged_paged_attention(
        q.reshape(n * t, h, e),
        kv_BxSxMxE.reshape(-1, PAGE, *kv_BxSxMxE.shape[2:]),
        place.starts + t,
        slots * pages + jnp.arange(pages)[None],
        jnp.arange(n + 1) * t,
        jnp.full(1, n),
        sm_scale=e**-0.5,
        num_kv_pages_per_block=min(KV_PAGES, pages),
        num_queries_per_block=min(QUERIES, n * t),
    )
    return out.reshape(n, t, h * e), (kv_BxSxMxE,)


READERS = {'einsum': _einsum, 'cudnn': _cudnn, 'ragged': _ragged}
