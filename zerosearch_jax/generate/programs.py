"""The jitted programs of the engine: `extend` prefills given tokens, `decode` samples new ones, `fork` copies slots.

A slot's newest token is always *pending*: known, but not in the cache. So `extend` never needs logits (it prefills all
but the newest token), and `decode` samples every token:

    tokens      p0  p1  p2 | a0  a1      prompt p, sampled a
    in cache    p0  p1  p2   a0          length 4
    pending                      a1      decode writes a1 at position 4 and samples the token for position 5

Weights stay where they are. A step has few rows, so activations move between devices, and kernels never do. Activations
are split over fsdp along the embedding, as the kernels are (two-dimensional weight-stationary: Pope et al., arXiv
2211.05102, §3.2.2), and along the rows only in attention, where each row needs its own cache:

    x [B, T, D/fsdp] --q, k, v--> [B/fsdp, T, heads] --attention--> [B, T, heads] --o--> x [B, T, D/fsdp] --mlp--> x
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import prng
from zerosearch_jax.generate import serving
from zerosearch_jax.generate.sampling import FULL_SUPPORT, Truncation, sample
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models import layers, transformer
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.sharding import constrain
from zerosearch_jax.text import stop


@flax.struct.dataclass
class Rows:
    """The state of slots besides their cache, for decode: small arrays that the host reads back, all [B]."""

    length: jax.Array  # tokens in the cache
    pending: jax.Array  # the newest token
    budget: jax.Array  # tokens that may still be sampled; 0: the row is idle
    stop_state: jax.Array  # state of the stop automaton
    key: jax.Array  # uint32 [B, 2], see prng.row_key
    temperature: jax.Array  # float32, of sampling; 0: greedy
    role: jax.Array  # whose adapter the row uses


def idle_rows(slots: int) -> Rows:
    numbers = {name: np.zeros(slots, np.int32) for name in ('length', 'pending', 'budget', 'stop_state', 'role')}
    return Rows(**numbers, key=np.zeros((slots, 2), np.uint32), temperature=np.zeros(slots, np.float32))


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype', 'span'), donate_argnames='cache')
def extend(
    params: dict,
    cache: kv.KVCache,
    slots_PxR: jax.Array,
    tokens_PxRxW: jax.Array,
    starts_PxR: jax.Array,
    counts_PxR: jax.Array,
    roles_PxR: jax.Array,
    *,
    cfg: ModelConfig,
    dtype,
    span: int | None = None,
) -> kv.KVCache:
    """Prefills `counts` tokens of each listed slot at positions starts, starts + 1, ...; both are 0 for unused rows.

    `params` are in the serving layout. `span` bounds the cache positions that are read: every start + count must be at
    most `span`; None: the capacity. A slot may be listed more than once, with consecutive tokens. The slots are on P
    parts of the mesh (data x fsdp); `slots_PxR` are R slots of each part, counted from its first one.
    """
    place = kv.Place(*(x.reshape(-1) for x in (slots_PxR, starts_PxR, counts_PxR)))
    tokens_NxW = tokens_PxRxW.reshape(-1, tokens_PxRxW.shape[-1])
    return _layers(params, cache, tokens_NxW, place, roles_PxR.reshape(-1), span or cache.capacity, cfg, dtype)[1]


fork = jax.jit(kv.fork, donate_argnums=0)


def _layers(params: dict, cache: kv.KVCache, tokens_NxT, place: kv.Place, roles_N, span: int, cfg: ModelConfig, dtype):
    """All layers of a step, which write the tokens' keys and values: x [N, T, D] and the cache."""
    axes = 'rows', None, 'embed'
    x_NxTxD = constrain(params['embed'][constrain(tokens_NxT, 'rows', None)].astype(dtype), *axes)
    x_NxTxD, written = transformer.scaled(x_NxTxD, cfg), []
    kinds = cfg.sliding or (False,) * cfg.num_layers
    for layer, held, sliding in zip(params['layers'], cache.layers, kinds, strict=True):

        def attend(q, k, v, held=held, window=cfg.window if sliding else 0):
            out_NxTxHE, held = kv.attend(cache.form, held, q, k, v, place, span, window)
            written.append(held)
            return constrain(out_NxTxHE, 'rows', None, 'heads')

        layer = serving.for_rows(layer, roles_N)
        positions = place.positions(tokens_NxT.shape[1])
        x_NxTxD = transformer.block(layer, x_NxTxD, positions, cfg, attend, axes=axes, sliding=sliding)
        x_NxTxD = constrain(x_NxTxD, *axes)
    return x_NxTxD, cache.replace(layers=tuple(written))


def _decode_one(params, cache: kv.KVCache, rows: Rows, slots_B, cfg: ModelConfig, dtype):
    """Logits [B, V] for the position after each active row's pending token, which is written into the cache."""
    active = rows.budget > 0
    place = kv.Place(slots_B, jnp.where(active, rows.length, 0), active.astype(jnp.int32))
    x_Bx1xD, cache = _layers(params, cache, rows.pending[:, None], place, rows.role, cache.capacity, cfg, dtype)
    x_Bx1xD = layers.norm(x_Bx1xD, params['final_norm'], cfg)
    return transformer.logits(params, x_Bx1xD)[:, 0], cache


def _turns(one, steps: int, carry: tuple) -> tuple:
    """Calls `one(turn, (cache, rows, ...))` for `steps` turns.

    With attention by matrix products, it stops when no row has budget. Otherwise it does not: a GPU would wait for the
    host in every turn to decide, longer than the kernels of an idle row take.
    """
    if carry[0].form != 'einsum':
        return jax.lax.fori_loop(0, steps, one, carry)

    def go_on(state):
        return (state[0] < steps) & jnp.any(state[1][1].budget > 0)

    return jax.lax.while_loop(go_on, lambda state: (state[0] + 1, one(*state)), (0, carry))[1]


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
    *,
    cfg: ModelConfig,
    dtype,
    steps: int,
    span: int,
    eos_ids: tuple[int, ...],
    first_accept: int,
    truncation: Truncation = FULL_SUPPORT,
):
    """Samples up to `steps` tokens in every row that has budget, on the device, with weights in the serving layout.

    A row ends at exactly the token that completes a stop string, at an end-of-sequence token, or when its budget is
    spent. `slots_B` are the distinct slots of the rows, past the end for idle rows; None: the rows are all the slots.
    `span` bounds the cache positions that are read: every length + steps must be at most `span`, except for idle rows.
    For a kernel that reads each row only up to its length, they are None and the capacity.

    Returns:
      cache, rows, tokens int32 [B, steps], log-probs float32 [B, steps], counts int32 [B].
    """

    def one(i, carry):
        cache, rows, tokens, logprobs, counts = carry
        active = rows.budget > 0
        logits, cache = _decode_one(params, cache, rows, None if copied else slots_B, cfg, dtype)
        uniforms = prng.position_uniforms(rows.key, rows.length + 1)
        token, logprob = sample(logits, uniforms, rows.temperature, truncation)
        state = stop.advance(stop_table_SxV, rows.stop_state, token)
        ended = (state >= first_accept) | jnp.isin(token, jnp.asarray(eos_ids, jnp.int32))
        rows = Rows(
            length=rows.length + active,
            pending=jnp.where(active, token, rows.pending),
            budget=jnp.where(active & ~ended, rows.budget - 1, 0),
            stop_state=jnp.where(active, state, rows.stop_state),
            key=rows.key,
            temperature=rows.temperature,
            role=rows.role,
        )
        tokens = tokens.at[:, i].set(jnp.where(active, token, 0))
        logprobs = logprobs.at[:, i].set(jnp.where(active, logprob, 0.0))
        return cache, rows, tokens, logprobs, counts + active

    count = rows.length.shape[0]
    empty = jnp.zeros((count, steps), jnp.int32), jnp.zeros((count, steps), jnp.float32), jnp.zeros(count, jnp.int32)
    copied = cache.form == 'einsum' and not (slots_B is None and span == cache.capacity)
    # copies the part that is read once, and its new tokens back, if reading a part would copy it in every step
    part = kv.take(cache, slots_B, span) if copied else cache
    part, *small = _turns(one, steps, (part, rows, *empty))
    cache = kv.put(cache, part, slots_B, rows.length, steps) if copied else part
    return cache, *jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), tuple(small))
