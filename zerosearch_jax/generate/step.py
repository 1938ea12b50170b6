"""The jitted programs of the engine: `extend` writes given tokens into the cache, `decode` samples new ones.

A slot's newest token is always *pending*: known, but not in the cache. So `extend` never needs logits (it writes all
but the newest token), and every sampled token comes out of `decode`:

    tokens      p0  p1  p2 | a0  a1      prompt p, sampled a
    in cache    p0  p1  p2   a0          length 4
    pending                      a1      decode writes a1 at position 4 and samples the token for position 5
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import prng
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


@functools.partial(jax.jit, static_argnames='dtype')
def serving_layout(params: dict, *, dtype) -> dict:
    """Decode-only copy of the weights: adapters merged, one array a layer, head as [D, V]; int8 stays int8.

    On CPU a decode step that slices stacked weights copies them every time; accelerators read the training layout.
    """
    merged = jax.tree.map(lambda w: w if w.dtype == jnp.int8 else w.astype(dtype), lora.merge(params))
    count = merged['layers']['q'].shape[0]
    unstacked = tuple(jax.tree.map(lambda w, i=i: w[i], merged['layers']) for i in range(count))
    return {**merged, 'layers': unstacked, 'head': transformer.head(merged)}


def _layer_list(params: dict, cfg: ModelConfig) -> list[dict]:
    stack = params['layers']
    if isinstance(stack, tuple):
        return list(stack)
    return [jax.tree.map(lambda w, i=i: w[i], stack) for i in range(cfg.num_layers)]


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'), donate_argnames='cache')
def extend(
    params: dict,
    cache: kv.KVCache,
    slots_R: jax.Array,
    tokens_RxW: jax.Array,
    starts_R: jax.Array,
    counts_R: jax.Array,
    *,
    cfg: ModelConfig,
    dtype,
) -> kv.KVCache:
    """Writes `counts` tokens of each listed slot at positions starts, starts + 1, ... Unused rows have count 0."""
    offsets_1xW = jnp.arange(tokens_RxW.shape[1])[None, :]
    positions_RxW = starts_R[:, None] + offsets_1xW
    capacity = cache.capacity
    targets_RxW = jnp.where(offsets_1xW < counts_R[:, None], positions_RxW, capacity)  # past the end: dropped
    mask_RxWxS = jnp.arange(capacity)[None, None, :] <= positions_RxW[:, :, None]
    x = transformer.embed(params, tokens_RxW, dtype)
    new_k, new_v = [], []
    for layer, k_layer, v_layer in zip(_layer_list(params, cfg), cache.k, cache.v, strict=True):

        def attend(q, k, v, k_layer=k_layer, v_layer=v_layer):
            keys_BxKxExS, values_BxKxSxE = kv.write(k_layer, v_layer, slots_R[:, None], targets_RxW, k, v)
            new_k.append(keys_BxKxExS)
            new_v.append(values_BxKxSxE)
            return attention.cache_attention(q, keys_BxKxExS[slots_R], values_BxKxSxE[slots_R], mask_RxWxS)

        x = transformer.block(layer, x, positions_RxW, cfg, attend)
    return kv.KVCache(tuple(new_k), tuple(new_v))


fork = jax.jit(kv.fork, donate_argnums=0)


def _decode_one(params, cache: kv.KVCache, rows: Rows, cfg: ModelConfig, dtype):
    """Logits [B, V] for the position after each row's pending token, which is written into the cache."""
    slots_B = jnp.arange(rows.length.shape[0])
    mask_Bx1xS = jnp.arange(cache.capacity)[None, None, :] <= rows.length[:, None, None]
    x = transformer.embed(params, rows.pending[:, None], dtype)
    new_k, new_v = [], []
    for layer, k_layer, v_layer in zip(_layer_list(params, cfg), cache.k, cache.v, strict=True):

        def attend(q, k, v, k_layer=k_layer, v_layer=v_layer):
            keys_BxKxExS, values_BxKxSxE = kv.write(k_layer, v_layer, slots_B, rows.length, k[:, 0], v[:, 0])
            new_k.append(keys_BxKxExS)
            new_v.append(values_BxKxSxE)
            return attention.cache_attention(q, keys_BxKxExS, values_BxKxSxE, mask_Bx1xS)

        x = transformer.block(layer, x, rows.length[:, None], cfg, attend)
    x = layers.rms_norm(x, params['final_norm'], cfg.norm_eps)
    return transformer.logits(params, x)[:, 0], kv.KVCache(tuple(new_k), tuple(new_v))


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
    """Samples up to `steps` tokens in every row that has budget, on the device.

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
