"""Token log-probs without the [B, T, V] tensor, and the policy-gradient loss as sums with one global denominator."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.models import layers, transformer
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.sharding import constrain
from zerosearch_jax.text.trajectory import Batch


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the forward pass is computed: precision and memory, which do not change the mathematics."""

    dtype: str = 'float32'
    remat: str = 'none'  # key of transformer.REMAT_POLICIES
    chunk: int = 512  # tokens of a row whose logits exist at once
    attention: str = 'chunked'  # key of attention.TRAINING


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The policy loss: form and coefficients."""

    clip: float = 0.2  # the ratio is clipped to [1 - clip, 1 + clip] (0: no clipping) ...
    clip_high: float = 0.0  # ... or to [1 - clip, 1 + clip_high] (DAPO); 0: clip
    ratio: Literal['token', 'sequence'] = 'token'  # sequence: the geometric mean of a sequence's ratios (GSPO)
    importance_cap: float = 0.0  # truncated importance sampling between engine and trainer; 0: off
    kl: float = 0.001  # weight of the KL divergence from the reference; 0: no reference is needed
    kl_estimator: Literal['k2', 'k3'] = 'k3'  # k1 has no gradient in expectation here; it belongs in the reward
    entropy: float = 0.0  # weight of the entropy bonus
    denominator: float = 0.0  # the sum over all tokens is divided by this; 0: by their weight


def hidden_states(params: dict, cfg: ModelConfig, batch: Batch, compute: Compute) -> jax.Array:
    """The model's last hidden states of packed rows [R, T, D]."""
    return transformer.hidden(
        params,
        cfg,
        batch.tokens,
        batch.positions,
        batch.segments,
        batch.prefixes,
        dtype=jnp.dtype(compute.dtype),
        remat=compute.remat,
        form=compute.attention,
    )


def token_logprobs(
    params: dict, cfg: ModelConfig, batch: Batch, temperature: float, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """The log-prob of every weighted token, and the entropy of its distribution, float32 [R, T].

    Uses log_softmax(logits / temperature), as the engine does; 0 for tokens of weight 0 and for a row's first token,
    which has no predecessor.
    """
    hidden_RxTxD = hidden_states(params, cfg, batch, compute)
    # here index t belongs to the token that t predicts; the last index predicts nothing
    targets_RxT = jnp.roll(batch.tokens, -1, axis=1)
    wanted_RxT = jnp.roll(batch.weights > 0, -1, axis=1).at[:, -1].set(False)
    found = _wanted_logprobs(
        hidden_RxTxD, transformer.head(params), targets_RxT, wanted_RxT, temperature, compute.chunk
    )

    def shift(x):  # from the index of the predicting token to that of the target
        return constrain(jnp.pad(jnp.where(wanted_RxT, x, 0.0)[:, :-1], ((0, 0), (1, 0))), 'batch', None)

    return shift(found[0]), shift(found[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _wanted_logprobs(hidden_RxTxD, head_DxV, targets_RxT, wanted_RxT, temperature, chunk: int):
    """Log-probs of the targets and entropies [R, T], defined for wanted tokens.

    Wanted tokens are sorted to the front, and logits are computed for a chunk of tokens at a time until none is left:
    prompts and observations cost no logits. The backward pass recomputes them, once.
    """
    return _wanted_forward(hidden_RxTxD, head_DxV, targets_RxT, wanted_RxT, temperature, chunk)[0]


class _Order(NamedTuple):
    """An order with wanted tokens first, in chunks of `size` tokens, of which `count` are not empty."""

    order_RxT: jax.Array
    size: int
    count: jax.Array

    @classmethod
    def of(cls, wanted_RxT: jax.Array, chunk: int):
        size = min(chunk, wanted_RxT.shape[1])
        count = -(-jnp.max(jnp.sum(wanted_RxT, axis=1)) // size)
        return cls(jnp.argsort(~wanted_RxT, axis=1, stable=True), size, count)

    def apply(self, x: jax.Array) -> jax.Array:
        """x [R, T, ...] in this order, padded with zeros to whole chunks."""
        x = _take(x, self.order_RxT)
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.size), *((0, 0),) * (x.ndim - 2)))

    def undo(self, x: jax.Array) -> jax.Array:
        return _take(x, jnp.argsort(self.order_RxT, axis=1))

    def chunk(self, x: jax.Array, i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis=1)

    def write(self, x: jax.Array, values: jax.Array, i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, values, i * self.size, axis=1)


def _take(x: jax.Array, order_RxT: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, order_RxT.reshape(*order_RxT.shape, *(1,) * (x.ndim - 2)), axis=1)


def _wanted_forward(hidden_RxTxD, head_DxV, targets_RxT, wanted_RxT, temperature, chunk):
    order = _Order.of(wanted_RxT, chunk)
    hidden_RxNxD, targets_RxN = order.apply(hidden_RxTxD), order.apply(targets_RxT)
    weights_DxV = _gathered(head_DxV, hidden_RxTxD.dtype)

    def one(i, found):
        hidden, targets = order.chunk(hidden_RxNxD, i), order.chunk(targets_RxN, i)
        logits = transformer.project(hidden, weights_DxV) / temperature
        top = jnp.max(logits, axis=-1, keepdims=True)
        exp = jnp.exp(logits - top)
        total = layers.last_sum(exp)
        log_z = jnp.log(total) + top[..., 0]
        chosen = layers.last_sum(jnp.where(_is_target(logits, targets), logits, 0.0))
        values = chosen - log_z, log_z - layers.last_sum(exp * logits) / total, log_z
        return tuple(order.write(x, value, i) for x, value in zip(found, values, strict=True))

    zeros_RxN = jnp.zeros(targets_RxN.shape, jnp.float32)
    logprobs_RxN, entropies_RxN, log_z_RxN = jax.lax.fori_loop(0, order.count, one, (zeros_RxN,) * 3)
    kept = hidden_RxTxD, head_DxV, targets_RxT, wanted_RxT, temperature, entropies_RxN, log_z_RxN
    return (order.undo(logprobs_RxN), order.undo(entropies_RxN)), kept


def _gathered(head_DxV: jax.Array, dtype) -> jax.Array:
    """The head for all chunks, gathered once, in the dtype of the product."""
    return constrain(head_DxV.astype(dtype), None, 'vocab')


def _is_target(logits_RxCxV: jax.Array, targets_RxC: jax.Array) -> jax.Array:
    """Where each token's target is; a comparison instead of a gather keeps a sharded vocabulary sharded."""
    return jax.lax.broadcasted_iota(jnp.int32, logits_RxCxV.shape, 2) == targets_RxC[..., None]


def _wanted_backward(chunk, kept, gradients):
    """d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)."""
    hidden_RxTxD, head_DxV, targets_RxT, wanted_RxT, temperature, entropies_RxN, log_z_RxN = kept
    order = _Order.of(wanted_RxT, chunk)
    weights_DxV = _gathered(head_DxV, hidden_RxTxD.dtype)
    d_logprobs_RxT, d_entropies_RxT = (jnp.where(wanted_RxT, g, 0.0) for g in gradients)
    ordered = map(order.apply, (hidden_RxTxD, targets_RxT, d_logprobs_RxT, d_entropies_RxT))
    tokens = *ordered, entropies_RxN, log_z_RxN
    # every part of the mesh adds up its own gradient of the head: they are added once, not in every chunk
    mesh = jax.sharding.get_abstract_mesh()
    rows = sharding.divisible_axis('batch', hidden_RxTxD.shape[0], mesh)
    parts = sharding.shard_count('batch', mesh) if rows else 1

    def one(i, carry):
        d_hidden_RxNxD, d_head_PxDxV = carry
        hidden, targets, d_logprob, d_entropy, entropy, log_z = (order.chunk(x, i) for x in tokens)
        logits = jax.lax.optimization_barrier(transformer.project(hidden, weights_DxV)) / temperature
        log_p = logits - log_z[..., None]
        pull = d_logprob[..., None] + d_entropy[..., None] * (log_p + entropy[..., None])
        d_logits = jnp.where(_is_target(logits, targets), d_logprob[..., None], 0.0) - jnp.exp(log_p) * pull
        # one array for both products, or each would compute it again
        d_logits = jax.lax.optimization_barrier((d_logits / temperature).astype(hidden.dtype))
        d_hidden = jnp.einsum('rcv,dv->rcd', d_logits, weights_DxV)
        by_part = (x.reshape(parts, -1, *x.shape[1:]) for x in (hidden, d_logits))
        d_head = jnp.einsum('prcd,prcv->pdv', *by_part, preferred_element_type=jnp.float32)
        return order.write(d_hidden_RxNxD, d_hidden, i), constrain(d_head_PxDxV + d_head, rows, None, 'vocab')

    zeros = jnp.zeros_like(tokens[0]), jnp.zeros((parts, *head_DxV.shape), jnp.float32)
    d_hidden_RxNxD, d_head_PxDxV = jax.lax.fori_loop(0, order.count, one, zeros)
    d_head_DxV = jnp.sum(d_head_PxDxV, axis=0).astype(head_DxV.dtype)
    return order.undo(d_hidden_RxNxD), d_head_DxV, None, None, None


_wanted_logprobs.defvjp(_wanted_forward, _wanted_backward)


def policy_loss(
    logprobs: jax.Array, entropies: jax.Array, batch: Batch, cfg: LossConfig
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Clipped policy gradient with KL and entropy bonus, as a *sum* over weighted tokens.

    -min(ratio A, clip(ratio) A) + kl KL(logprob, ref) - entropy H  (PPO: arXiv 1707.06347, eq. 7; DAPO's clip:
    2503.14476, eq. 8; GSPO's ratio: 2507.18071, eq. 7 and 14). The KL is added, which pulls the policy towards the
    reference; the published code subtracts it, as a negative coefficient does.

    With `importance_cap` the engine's policy sampled, the old policy is the trainer's, and a token's loss is weighted
    by min(old / engine, cap) (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training").

    Tokens with the old log-prob NaN were not sampled (observations that are trained on): their ratio is 1.

    Returns:
      the loss sum, and sums of the metrics over the same tokens; divide all by the sum of weights of the whole batch.
    """
    chex.assert_equal_shape([logprobs, entropies, *jax.tree.leaves(batch)])
    weights = batch.weights
    active = weights > 0
    sampled = active & ~jnp.isnan(batch.old_logprobs)
    # zero for tokens outside the loss, so that stale values can neither overflow nor give 0 * inf
    gap = jnp.where(sampled, logprobs - batch.old_logprobs, 0.0)
    importance = 1.0
    log_ratio = jnp.where(sampled, gap, logprobs - jax.lax.stop_gradient(logprobs))
    if cfg.importance_cap:
        importance = jnp.minimum(jnp.exp(jax.lax.stop_gradient(gap)), cfg.importance_cap)
        log_ratio = logprobs - jax.lax.stop_gradient(logprobs)
    if cfg.ratio == 'sequence':
        mean = segment_mean(jax.lax.stop_gradient(log_ratio), sampled, batch.segments)
        log_ratio = jnp.where(sampled, mean, 0.0) + logprobs - jax.lax.stop_gradient(logprobs)
    ratio = jnp.exp(jnp.where(active, log_ratio, 0.0))
    clipped = jnp.clip(ratio, 1 - cfg.clip, 1 + (cfg.clip_high or cfg.clip)) if cfg.clip else ratio
    advantages = jnp.where(active, batch.advantages, 0.0)
    surrogate = importance * jnp.minimum(ratio * advantages, clipped * advantages)
    d = jnp.where(active & (cfg.kl != 0), batch.ref_logprobs - logprobs, 0.0)
    kl = jnp.expm1(d) - d if cfg.kl_estimator == 'k3' else jnp.square(d) / 2
    loss = -surrogate - cfg.entropy * entropies
    if cfg.kl:
        loss += cfg.kl * kl
    was_clipped = (ratio * advantages > clipped * advantages).astype(jnp.float32)
    terms = {
        'policy': -surrogate,
        'kl': kl,
        'entropy': entropies,
        'clip_share': was_clipped,
        'ratio': ratio,
        'logprob': logprobs,
    }
    sums = {name: jnp.sum(weights * value) for name, value in terms.items()}
    return jnp.sum(weights * loss), {**sums, 'logprob_gap_max': jnp.max(jnp.abs(gap))}


def segment_mean(x_RxT: jax.Array, counted_RxT: jax.Array, segments_RxT: jax.Array) -> jax.Array:
    """The mean over every sequence's counted tokens, at each of its tokens [R, T]."""
    size = segments_RxT.shape[1] + 1

    def one(x_T, counted_T, segments_T):
        total = jax.ops.segment_sum(x_T * counted_T, segments_T, size)
        count = jax.ops.segment_sum(counted_T, segments_T, size)
        return (total / jnp.maximum(count, 1.0))[segments_T]

    return jax.vmap(one)(x_RxT, counted_RxT.astype(jnp.float32), segments_RxT)


def nll_loss(logprobs: jax.Array, batch: Batch) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Negative log-likelihood of the weighted tokens, as a sum: supervised fine-tuning."""
    loss = -jnp.sum(batch.weights * logprobs)
    return loss, {'nll': loss}
