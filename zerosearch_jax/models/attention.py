"""Attention: of packed rows in training, and of queries against a cache in generation (prefill and decode).

`choose` selects the form for training on the present hardware, with the reason; all forms give the same results up to
rounding. Shape letters are those of models/layers.py; C is a chunk of queries, M = G x C.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zerosearch_jax.models.config import ModelConfig

MASKED = -1e30  # finite, so that a fully masked row has finite values and gradients
EVERYTHING = 2**30  # a window that no row exceeds
QUERY_CHUNK, MOST_CHUNKS = 128, 16  # tokens of a chunk, or a multiple, so that a row has at most so many chunks


class Choice(NamedTuple):
    """A key of TRAINING, and why it was chosen."""

    name: str
    reason: str


def choose(cfg: ModelConfig, dtype, mesh: jax.sharding.Mesh, row_length: int) -> Choice:
    """The form of training attention for rows of a model on a mesh."""
    device, dtype = mesh.devices.flat[0], jnp.dtype(dtype)
    platform = device.platform
    if cfg.window:
        return Choice('chunked', f'no kernel here has a window of {cfg.window} tokens; generation uses none either')
    if platform not in ('gpu', 'cuda'):
        return Choice('chunked', f'{platform}: the cuDNN kernel is for NVIDIA GPUs')
    if dtype not in (jnp.bfloat16, jnp.float16):
        return Choice('chunked', f'cuDNN attention has no {dtype}')
    if float(device.compute_capability) < 8:
        return Choice('chunked', f'cuDNN attention is for Ampere and later, not {device.device_kind}')
    if row_length % 2:
        return Choice('chunked', f'cuDNN attention has no gradient for rows of {row_length} tokens: even ones')
    if cfg.head_dim % 8 or cfg.head_dim > 128:
        return Choice('chunked', f'cuDNN attention has no head size {cfg.head_dim}: multiples of 8 up to 128')
    if cfg.num_kv_heads % mesh.shape['tensor']:
        return Choice('chunked', f'{cfg.num_kv_heads} key-value heads are not split over tensor={mesh.shape["tensor"]}')
    return Choice('cudnn', f'{dtype} on a GPU: a fused kernel')


def causal_attention(
    segments_BxT, prefixes_BxT, form: str = 'chunked', positions_BxT=None, window: int = 0
) -> Callable:
    """Attention of packed rows: a token sees itself and earlier tokens of its segment and prefix.

    Args:
      segments_BxT, prefixes_BxT, positions_BxT: as in models/transformer.py `hidden`.
      form: key of TRAINING, see `choose`.
      window: how many positions, its own included, a token sees in a sliding layer; 0: there are no such layers.

    Returns:
      attend(q [B, T, H, E], k [B, T, K, E], v [B, T, K, E], sliding) -> [B, T, H * E], of any layer.
    """
    attend = TRAINING[form](segments_BxT, prefixes_BxT, positions_BxT, window)
    return lambda q, k, v, sliding=False: attend(q, k, v, sliding).reshape(*q.shape[:2], -1)


def _cudnn(segments_BxT, prefixes_BxT, positions_BxT, window):
    if window:
        raise ValueError('attention by cuDNN has no windows here; models with sliding layers take the form chunked')
    length = segments_BxT.shape[1]
    mask_Bx1xTxT = _Rows.of(segments_BxT, prefixes_BxT, length).sees(0, 0, length)[:, 0]
    # is_causal adds nothing to the mask, but lets the kernel skip the part above the diagonal
    options = dict(mask=mask_Bx1xTxT, is_causal=True, implementation='cudnn')
    return lambda q, k, v, sliding: jax.nn.dot_product_attention(q, k, v, **options)


def _chunked(segments_BxT, prefixes_BxT, positions_BxT, window):
    """Attends chunk by chunk, and only to chunks of keys that a query of the chunk may attend to.

    keys   P 1 2 3     a row of a prefix P and three sequences, each a chunk long
    P      #
    1      # #
    2      # . #       #: computed
    3      # . . #
    """
    length = segments_BxT.shape[1]
    chunk = _chunk_size(length)
    pad = (0, 0), (0, -length % chunk)
    packed = [jnp.pad(x, pad) for x in (segments_BxT, prefixes_BxT)]
    if window:
        near, far = (_Rows.of(*packed, chunk, jnp.pad(positions_BxT, pad), most) for most in (window, EVERYTHING))
    else:
        near = far = _Rows.of(*packed, chunk)

    def attend(q_BxTxHxE, k_BxTxKxE, v_BxTxKxE, sliding):
        rows = jax.tree.map(functools.partial(jnp.where, sliding), near, far) if window else far
        (b, t, h, e), kv_heads = q_BxTxHxE.shape, k_BxTxKxE.shape[2]
        q, k, v = (jnp.pad(x, (*pad, (0, 0), (0, 0))) for x in (q_BxTxHxE * e**-0.5, k_BxTxKxE, v_BxTxKxE))
        q_BxKxGxTxE = q.reshape(b, -1, kv_heads, h // kv_heads, e).transpose(0, 2, 3, 1, 4)
        out_BxKxGxTxE = _attend(q_BxKxGxTxE, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), rows, chunk)
        return out_BxKxGxTxE.transpose(0, 3, 1, 2, 4).reshape(b, -1, h, e)[:, :t]

    return attend


def _chunk_size(length: int) -> int:
    return min(length, -(-length // (QUERY_CHUNK * MOST_CHUNKS)) * QUERY_CHUNK)


class _Rows(NamedTuple):
    """What the queries of packed rows attend to: token by token, and chunk by chunk of N chunks."""

    segments_BxT: jax.Array
    prefixes_BxT: jax.Array
    positions_BxT: jax.Array | None
    window: jax.Array | int | None  # the most positions that a query sees; both None: any number
    order_NxN: jax.Array  # for each chunk of queries: the chunks of keys that it attends to come first, ...
    count_N: jax.Array  # ... and this is their number

    @classmethod
    def of(cls, segments_BxT, prefixes_BxT, chunk: int, positions_BxT=None, window: int | None = None):
        def ranges(x_BxT):
            x_BxNxC = x_BxT.reshape(x_BxT.shape[0], -1, chunk)
            return x_BxNxC.min(-1), x_BxNxC.max(-1)

        low, high = ranges(segments_BxT)
        meets_BxNxN = jnp.zeros((), bool)
        for least, most in ((low, high), ranges(prefixes_BxT)):
            meets_BxNxN |= (least[:, :, None] <= high[:, None]) & (low[:, None] <= most[:, :, None])
        if window is not None:
            first, last = ranges(positions_BxT)
            meets_BxNxN &= first[:, :, None] - last[:, None] < window
        sees_NxN = jnp.tril(jnp.any(meets_BxNxN, axis=0))
        order_NxN, count_N = jnp.argsort(~sees_NxN, axis=1, stable=True), jnp.sum(sees_NxN, axis=1)
        return cls(segments_BxT, prefixes_BxT, positions_BxT, window, order_NxN, count_N)

    def sees(self, i, j, chunk: int) -> jax.Array:
        """Whether queries of chunk i attend to keys of chunk j, bool [B, 1, 1, C, C]."""
        keys, segments = (_part(self.segments_BxT, n, chunk, 1) for n in (j, i))
        sees_BxCxC = segments[:, :, None] == keys[:, None]
        sees_BxCxC |= _part(self.prefixes_BxT, i, chunk, 1)[:, :, None] == keys[:, None]
        positions = jnp.arange(chunk)
        sees_BxCxC &= (i * chunk + positions)[None, :, None] >= (j * chunk + positions)[None, None, :]
        if self.window is not None:  # positions in the sequence: between a prefix and a segment, others may be packed
            own, others = (_part(self.positions_BxT, n, chunk, 1) for n in (i, j))
            sees_BxCxC &= own[:, :, None] - others[:, None] < self.window
        return sees_BxCxC[:, None, None]


def _part(x: jax.Array, i, chunk: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis)


def _put(x: jax.Array, part: jax.Array, i, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), i * part.shape[axis], axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, rows: _Rows, chunk: int):
    """Attention with a hand-written gradient, for two reasons.

    The memory that is kept for it grows with T, not with T x T, and all of its matrix products are ones that XLA
    computes fast on CPU (benchmarks/train_attention.py).
    """
    return _attend_forward(q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, rows, chunk)[0]


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
_SCORES = 'bkgce,bkse->bkgcs'


def _attend_forward(q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, rows, chunk):
    """Softmax over chunks of keys in turn, rescaled by the largest score so far (arXiv 2205.14135)."""
    zeros_BxKxGxCx1 = jnp.zeros((*q_BxKxGxTxE.shape[:3], chunk, 1), jnp.float32)

    def queries(i, found):
        q = _part(q_BxKxGxTxE, i, chunk, 3)

        def keys(n, state):
            (top, total, out), j = state, rows.order_NxN[i, n]
            k, v = _part(k_BxKxTxE, j, chunk, 2), _part(v_BxKxTxE, j, chunk, 2)
            scores = jnp.where(rows.sees(i, j, chunk), _product(_SCORES, q, k), MASKED)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            weights, kept = jnp.exp(scores - higher), jnp.exp(top - higher)
            total = kept * total + jnp.sum(weights, axis=-1, keepdims=True)
            return higher, total, kept * out + _product('bkgcs,bkse->bkgce', weights.astype(v.dtype), v)

        nothing = zeros_BxKxGxCx1 + MASKED, zeros_BxKxGxCx1, jnp.zeros(q.shape, jnp.float32)
        top, total, out = jax.lax.fori_loop(0, rows.count_N[i], keys, nothing)
        return _put(found[0], out / total, i, 3), _put(found[1], top + jnp.log(total), i, 3)

    nothing = jnp.zeros_like(q_BxKxGxTxE), jnp.zeros((*q_BxKxGxTxE.shape[:4], 1), jnp.float32)
    out, log_sum = jax.lax.fori_loop(0, len(rows.count_N), queries, nothing)
    return out, (q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, rows, out, log_sum)


def _rows_last(x_BxKxGxCxE: jax.Array) -> jax.Array:
    """[B, K, E, M] in memory: XLA on CPU multiplies slowly if both operands are read along their rows."""
    b, k, g, c, e = x_BxKxGxCxE.shape
    return jax.lax.optimization_barrier(x_BxKxGxCxE.reshape(b, k, g * c, e).swapaxes(2, 3))


def _attend_backward(chunk, kept, d_out_BxKxGxTxE):
    q_BxKxGxTxE, k_BxKxTxE, v_BxKxTxE, rows, out_BxKxGxTxE, log_sum_BxKxGxTx1 = kept
    barrier, dtype = jax.lax.optimization_barrier, q_BxKxGxTxE.dtype
    d_out_BxKxGxTxE = barrier(d_out_BxKxGxTxE)
    b, k, _, t, e = q_BxKxGxTxE.shape
    inner = jnp.sum(d_out_BxKxGxTxE.astype(jnp.float32) * out_BxKxGxTxE, axis=-1, keepdims=True)

    def queries(i, found):
        whole = q_BxKxGxTxE, d_out_BxKxGxTxE, log_sum_BxKxGxTx1, inner
        q, d_out, log_sum, own = (_part(x, i, chunk, 3) for x in whole)
        columns, d_columns = _rows_last(q), _rows_last(d_out)

        def keys(n, state):
            (d_q, d_keys, d_values), j = state, rows.order_NxN[i, n]
            key, value = _part(k_BxKxTxE, j, chunk, 2), _part(v_BxKxTxE, j, chunk, 2)
            scores = barrier(_product(_SCORES, q, key))
            weights = jnp.where(rows.sees(i, j, chunk), jnp.exp(scores - log_sum), 0.0)
            d_weights = barrier(_product(_SCORES, d_out, value))
            d_scores = barrier((weights * (d_weights - own)).astype(dtype))
            weights = barrier(weights.astype(dtype)).reshape(b, k, -1, chunk)
            d_key = _product('bkem,bkms->bkes', columns, d_scores.reshape(b, k, -1, chunk))
            d_value = _product('bkem,bkms->bkes', d_columns, weights)
            d_keys = _put(d_keys, _part(d_keys, j, chunk, 3) + d_key, j, 3)
            d_values = _put(d_values, _part(d_values, j, chunk, 3) + d_value, j, 3)
            return d_q + _product('bkgcs,bkse->bkgce', d_scores, key), d_keys, d_values

        d_q, *added = jax.lax.fori_loop(0, rows.count_N[i], keys, (jnp.zeros(q.shape, jnp.float32), *found[1:]))
        return _put(found[0], d_q, i, 3), *added

    zeros_BxKxExT = jnp.zeros((b, k, e, t), jnp.float32)
    nothing = jnp.zeros_like(q_BxKxGxTxE), zeros_BxKxExT, zeros_BxKxExT
    d_q, d_keys, d_values = jax.lax.fori_loop(0, len(rows.count_N), queries, nothing)
    return d_q, d_keys.swapaxes(2, 3).astype(dtype), d_values.swapaxes(2, 3).astype(dtype), None


_attend.defvjp(_attend_forward, _attend_backward)

TRAINING = {'chunked': _chunked, 'cudnn': _cudnn}


def cache_attention(q_BxTxHxE: jax.Array, k_BxKxExS: jax.Array, v_BxKxSxE: jax.Array, mask_BxTxS: jax.Array):
    """Attention of queries against their rows' cache (True: may attend); softmax in float32. Returns [B, T, H * E].

    A decode step (T = 1) is limited by reading the cache, and both products read it along its last axis
    (benchmarks/decode_attention.py).
    """
    b, t, h, e = q_BxTxHxE.shape
    kv_heads = k_BxKxExS.shape[1]
    q_BxKxGxTxE = (q_BxTxHxE * e**-0.5).reshape(b, t, kv_heads, h // kv_heads, e).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum('bkgte,bkes->bkgts', q_BxKxGxTxE, k_BxKxExS, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask_BxTxS[:, None, None], scores, MASKED), axis=-1)
    out_BxKxGxTxE = jnp.einsum('bkgts,bkse->bkgte', weights.astype(v_BxKxSxE.dtype), v_BxKxSxE)
    return out_BxKxGxTxE.astype(q_BxTxHxE.dtype).transpose(0, 3, 1, 2, 4).reshape(b, t, h * e)
