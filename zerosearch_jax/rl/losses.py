"""Token log-probs without the [B, T, V] tensor, and the policy-gradient loss as sums with one global denominator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp

from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.sharding import constrain
from zerosearch_jax.text.trajectory import Batch


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the forward pass is run: numerics and memory, not mathematics."""

    dtype: str = 'float32'
    remat: str = 'none'  # key of transformer.REMAT_POLICIES
    chunk: int = 128  # tokens of a row whose logits exist at once


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Coefficients of the policy loss."""

    clip: float = 0.2  # ratio is kept within [1 - clip, 1 + clip]
    kl: float = 0.001  # weight of the k3 divergence from the reference; 0: no reference is needed
    entropy: float = 0.0  # weight of the entropy bonus


def token_logprobs(
    params: dict, cfg: ModelConfig, batch: Batch, temperature: float, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of every weighted token given those before it, and the entropy of its distribution, float32 [R, T].

    Uses log_softmax(logits / temperature), as the engine does; 0 for tokens of weight 0 and for a row's first token,
    which has no predecessor. Logits are made a chunk of tokens at a time and remade in the backward pass. Weighted
    tokens go first, and chunks without any are skipped: prompts and observations cost no logits.
    """
    hidden_RxTxD = transformer.hidden(
        params,
        cfg,
        batch.tokens,
        batch.positions,
        batch.segments,
        batch.prefixes,
        dtype=jnp.dtype(compute.dtype),
        remat=compute.remat,
    )
    rows, length, _ = hidden_RxTxD.shape
    chunk = min(compute.chunk, length)
    if length % chunk:
        raise ValueError(f'row length {length} is not a multiple of the log-prob chunk {chunk}')
    # index t is about the token that t predicts; the last index predicts nothing
    targets_RxT = jnp.roll(batch.tokens, -1, axis=1)
    wanted_RxT = jnp.roll(batch.weights > 0, -1, axis=1).at[:, -1].set(False)
    order_RxT = jnp.argsort(~wanted_RxT, axis=1, stable=True)

    def one_chunk(hidden_RxCxD, targets_RxC, wanted_RxC):
        logits = transformer.logits(params, hidden_RxCxD) / temperature
        log_z = jax.nn.logsumexp(logits, axis=-1)
        # a comparison instead of a gather keeps a sharded vocabulary sharded
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets_RxC[..., None]
        chosen = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        mean_logit = jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)
        return jnp.where(wanted_RxC, chosen - log_z, 0.0), jnp.where(wanted_RxC, log_z - mean_logit, 0.0)

    def skip_chunk(hidden_RxCxD, targets_RxC, wanted_RxC):
        zeros = jnp.zeros(targets_RxC.shape, jnp.float32)
        return zeros, zeros

    @jax.checkpoint  # around the condition: within it, the head's weights would be kept for every chunk
    def scan_chunk(_, inputs):
        return None, jax.lax.cond(jnp.any(inputs[-1]), one_chunk, skip_chunk, *inputs)

    def split(x):  # [R, T, ...] -> [T / C, R, C, ...], weighted tokens first
        x = jnp.take_along_axis(x, order_RxT.reshape(rows, length, *(1,) * (x.ndim - 2)), axis=1)
        return jnp.moveaxis(x.reshape(rows, length // chunk, chunk, *x.shape[2:]), 1, 0)

    _, found = jax.lax.scan(scan_chunk, None, (split(hidden_RxTxD), split(targets_RxT), split(wanted_RxT)))
    inverse_RxT = jnp.argsort(order_RxT, axis=1)

    def join(x):  # back to [R, T], shifted so that index t belongs to token t as the target
        x = jnp.take_along_axis(jnp.moveaxis(x, 0, 1).reshape(rows, length), inverse_RxT, axis=1)
        return constrain(jnp.pad(x[:, :-1], ((0, 0), (1, 0))), 'batch', None)

    logprobs, entropies = found
    return join(logprobs), join(entropies)


def policy_loss(
    logprobs: jax.Array, entropies: jax.Array, batch: Batch, cfg: LossConfig
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Clipped policy gradient with k3 KL and entropy bonus, as a *sum* over weighted tokens.

    -min(ratio A, clip(ratio) A) + kl (exp(d) - d - 1) - entropy H,  d = ref - logprob  (PPO: arXiv 1707.06347, eq. 7;
    k3 estimator: Schulman 2020; adding it pulls the policy towards the reference, the published code subtracts it).

    Returns:
      the loss sum, and sums of the metrics over the same tokens; divide all by the sum of weights of the whole batch.
    """
    chex.assert_equal_shape([logprobs, entropies, *jax.tree.leaves(batch)])
    weights = batch.weights
    active = weights > 0
    # zeroed outside the loss, so that stale values there can neither overflow nor make 0 * inf
    log_ratio = jnp.where(active, logprobs - batch.old_logprobs, 0.0)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - cfg.clip, 1 + cfg.clip)
    advantages = jnp.where(active, batch.advantages, 0.0)
    surrogate = jnp.minimum(ratio * advantages, clipped * advantages)
    d = jnp.where(active, batch.ref_logprobs - logprobs, 0.0)
    k3 = jnp.expm1(d) - d
    loss = -surrogate - cfg.entropy * entropies
    if cfg.kl:
        loss += cfg.kl * k3
    was_clipped = (ratio * advantages > clipped * advantages).astype(jnp.float32)
    terms = {
        'policy': -surrogate,
        'kl': k3,
        'entropy': entropies,
        'clip_share': was_clipped,
        'ratio': ratio,
        'logprob': logprobs,
    }
    sums = {name: jnp.sum(weights * value) for name, value in terms.items()}
    return jnp.sum(weights * loss), {**sums, 'logprob_gap_max': jnp.max(jnp.abs(log_ratio))}


def nll_loss(logprobs: jax.Array, batch: Batch) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Negative log-likelihood of the weighted tokens, as a sum: supervised fine-tuning."""
    loss = -jnp.sum(batch.weights * logprobs)
    return loss, {'nll': loss}
