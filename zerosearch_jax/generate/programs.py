"""The jitted programs of the engine: `extend` writes given tokens into the cache, `decode` samples new ones.

A slot's newest token is always *pending*: known, but not in the cache. So `extend` never needs logits (it writes all
but the newest token), and every sampled token comes out of `decode`:

    tokens      p0  p1  p2 | a0  a1      prompt p, sampled a
    in cache    p0  p1  p2   a0          length 4
    pending                      a1      decode writes a1 at position 4 and samples the token for position 5

Weights stay where they are. A step has few rows, so what moves between devices is activations, never a kernel: they are
split over fsdp along the embedding, as the kernels are (two-dimensional weight-stationary: Pope et al., arXiv
2211.05102, §3.2.2), and along the rows only where a row meets its own cache:

    x [B, T, D/fsdp] --q, k, v--> [B/fsdp, T, heads] --attention--> [B, T, heads] --o--> x [B, T, D/fsdp] --mlp--> x
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import prng, sharding
from zerosearch_jax.generate.sampling import FULL_SUPPORT, Truncation, sample
from zerosearch_jax.models import attention, layers, lora, transformer
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.sharding import constrain
from zerosearch_jax.text import stop


@flax.struct.dataclass
class Rows:
    """What a decode step knows of its slots besides their cache: small arrays that the host reads back, all [B]."""

    length: jax.Array  # tokens in the cache
    pending: jax.Array  # the newest token
    budget: jax.Array  # tokens that may still be sampled; 0: the row is idle
    stop_state: jax.Array  # state of the stop automaton
    key: jax.Array  # uint32 [B, 2], see prng.row_key


def idle_rows(slots: int) -> Rows:
    zeros = np.zeros(slots, np.int32)
    return Rows(zeros, zeros.copy(), zeros.copy(), zeros.copy(), np.zeros((slots, 2), np.uint32))


def serving_layout(params: dict, *, dtype, owned: bool = False) -> dict:
    """A copy of the weights to generate with: one array a layer, in the compute dtype, head as [D, V]; int8 stays int8.

    A program that slices stacked weights copies them in every call, on GPUs in every token. Adapters are merged in
    float32 only: in less, their small changes of large weights would be lost.

    Args:
      params: training layout, adapters beside their kernels.
      dtype: compute dtype.
      owned: nobody else needs the layers of `params`: each kernel is let go of as soon as it is copied.
    """
    if jnp.dtype(dtype) == jnp.float32 and any('_lora_' in name for name in params['layers']):
        params = jax.jit(lora.merge)(params)
    unstacked = tuple({} for _ in range(len(params['layers']['q'])))
    for name, stack in params['layers'].items():
        for layer, w in zip(unstacked, _split(stack, dtype), strict=True):
            layer[name] = w
        if owned:
            stack.delete()
    flat = {name: _cast(w, dtype) for name, w in params.items() if name != 'layers'}
    return {**flat, 'layers': unstacked, 'head': _cast(transformer.head(params), dtype)}


@functools.partial(jax.jit, static_argnums=1)
def _cast(w: jax.Array, dtype) -> jax.Array:
    return w if w.dtype == jnp.int8 else w.astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _split(stack_LxN: jax.Array, dtype) -> tuple[jax.Array, ...]:
    return tuple(_cast(w, dtype) for w in stack_LxN)


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'), donate_argnames='cache')
def extend(
    params: dict,
    cache: kv.KVCache,
    slots_PxR: jax.Array,
    tokens_PxRxW: jax.Array,
    starts_PxR: jax.Array,
    counts_PxR: jax.Array,
    *,
    cfg: ModelConfig,
    dtype,
) -> kv.KVCache:
    """Writes `counts` tokens of each listed slot at positions starts, starts + 1, ... Unused rows have count 0.

    `params` are in the serving layout.
    The slots lie on P parts of the mesh (data x fsdp); `slots_PxR` are R of each part, counted from its first.
    """
    (parts, _, width), capacity = tokens_PxRxW.shape, cache.capacity
    offsets_1x1xW = jnp.arange(width)[None, None, :]
    positions_PxRxW = starts_PxR[..., None] + offsets_1x1xW
    written_PxRxW = offsets_1x1xW < counts_PxR[..., None]
    targets_PxRxW = jnp.where(written_PxRxW, positions_PxRxW, capacity)  # past the end: dropped
    positions_NxW = positions_PxRxW.reshape(-1, width)
    mask_NxWxS = jnp.arange(capacity)[None, None, :] <= positions_NxW[:, :, None]

    def split(x):  # what a part of the mesh holds is what its own rows read and write: nothing moves
        return x.reshape(parts, -1, *x.shape[1:])

    def merge(x):
        return x.reshape(-1, *x.shape[2:])

    def see(q_NxWxHxE, *keys_and_values):
        k, v, keys, values = map(split, keys_and_values)
        cached = jax.vmap(kv.write)(keys, values, slots_PxR[..., None], targets_PxRxW, k, v)
        rows = (merge(jax.vmap(jnp.take, (0, 0, None))(x, slots_PxR, 0)) for x in cached)
        return attention.cache_attention(q_NxWxHxE, *rows, mask_NxWxS), *map(merge, cached)

    return _layers(params, cache, tokens_PxRxW.reshape(-1, width), positions_NxW, see, cfg, dtype)[1]


fork = jax.jit(kv.fork, donate_argnums=0)


def _layers(params: dict, cache: kv.KVCache, tokens_BxT, positions_BxT, see, cfg: ModelConfig, dtype):
    """All layers of a step: x [B, T, D] and the cache; `see(q, k, v, keys, values)` writes and attends in one layer."""
    mesh = jax.sharding.get_abstract_mesh()
    heads = sharding.divisible_axis('heads', cfg.num_heads, mesh)
    kv_heads = sharding.divisible_axis('kv_heads', cfg.num_kv_heads, mesh)
    x_BxTxD = constrain(params['embed'][constrain(tokens_BxT, 'rows', None)].astype(dtype), 'rows', None, 'embed')
    layers_of_cache = []
    for layer, keys, values in zip(params['layers'], cache.k, cache.v, strict=True):

        def attend(q, k, v, keys=keys, values=values):
            k, v = (constrain(x, 'batch', None, kv_heads, None) for x in (k, v))
            out_BxTxHE, *written = see(constrain(q, 'batch', None, heads, None), k, v, keys, values)
            # or XLA splits a cache that every device along tensor has a copy of, and gathers it again in every step
            layers_of_cache.append([constrain(x, 'batch', kv_heads, None, None) for x in written])
            return constrain(out_BxTxHE, 'rows', None, 'heads')

        x_BxTxD = constrain(transformer.block(layer, x_BxTxD, positions_BxT, cfg, attend), 'rows', None, 'embed')
    return x_BxTxD, kv.KVCache(*map(tuple, zip(*layers_of_cache, strict=True)))


def _decode_one(params, cache: kv.KVCache, rows: Rows, cfg: ModelConfig, dtype):
    """Logits [B, V] for the position after each row's pending token, which is written into the cache."""
    slots_B = jnp.arange(rows.length.shape[0])
    mask_Bx1xS = jnp.arange(cache.capacity)[None, None, :] <= rows.length[:, None, None]

    def see(q_Bx1xHxE, k_Bx1xKxE, v_Bx1xKxE, keys_BxKxExS, values_BxKxSxE):
        cached = kv.write(keys_BxKxExS, values_BxKxSxE, slots_B, rows.length, k_Bx1xKxE[:, 0], v_Bx1xKxE[:, 0])
        return attention.cache_attention(q_Bx1xHxE, *cached, mask_Bx1xS), *cached

    x_Bx1xD, cache = _layers(params, cache, rows.pending[:, None], rows.length[:, None], see, cfg, dtype)
    x_Bx1xD = layers.rms_norm(x_Bx1xD, params['final_norm'], cfg.norm_eps)
    return transformer.logits(params, x_Bx1xD)[:, 0], cache


@functools.partial(
    jax.jit,
    static_argnames=('cfg', 'dtype', 'steps', 'span', 'eos_ids', 'first_accept', 'truncation'),
    donate_argnames='cache',
)
def decode(
    params: dict,
    cache: kv.KVCache,
    rows: Rows,
    slots_B: jax.Array | None,
    stop_table_SxV: jax.Array,
    temperature: jax.Array,
    *,
    cfg: ModelConfig,
    dtype,
    steps: int,
    span: int,
    eos_ids: tuple[int, ...],
    first_accept: int,
    truncation: Truncation = FULL_SUPPORT,
):
    """Samples up to `steps` tokens in every row that has budget, on the device, by weights in the serving layout.

    A row ends at exactly the token that completes a stop string, at an end-of-sequence token, or when its budget is
    spent. `span` bounds the cache positions that are read: every length + steps must be at most `span`, idle rows
    excepted. `slots_B` are the distinct slots of the rows; None: the rows are all the slots.

    Returns:
      cache, rows, tokens int32 [B, steps], log-probs float32 [B, steps], counts int32 [B].
    """

    def one(carry):
        i, cache, rows, tokens, logprobs, counts = carry
        active = rows.budget > 0
        logits, cache = _decode_one(params, cache, rows, cfg, dtype)
        uniforms = prng.position_uniforms(rows.key, rows.length + 1)
        token, logprob = sample(logits, uniforms, temperature, truncation)
        state = stop.advance(stop_table_SxV, rows.stop_state, token)
        ended = (state >= first_accept) | jnp.isin(token, jnp.asarray(eos_ids, jnp.int32))
        rows = Rows(
            length=rows.length + active,
            pending=jnp.where(active, token, rows.pending),
            budget=jnp.where(active & ~ended, rows.budget - 1, 0),
            stop_state=jnp.where(active, state, rows.stop_state),
            key=rows.key,
        )
        tokens = tokens.at[:, i].set(jnp.where(active, token, 0))
        logprobs = logprobs.at[:, i].set(jnp.where(active, logprob, 0.0))
        return i + 1, cache, rows, tokens, logprobs, counts + active

    whole, count = cache, rows.length.shape[0]
    in_place = slots_B is None and span == cache.capacity
    if not in_place:  # one copy out and one back, where reading a part of an array would copy it in every step
        cache = kv.take(whole, slots_B, span)
    empty = jnp.zeros((count, steps), jnp.int32), jnp.zeros((count, steps), jnp.float32), jnp.zeros(count, jnp.int32)
    carry = jax.lax.while_loop(lambda c: (c[0] < steps) & jnp.any(c[2].budget > 0), one, (0, cache, rows, *empty))
    _, cache, *small = carry
    if not in_place:
        cache = kv.put(whole, cache, slots_B)
    return cache, *jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), tuple(small))
