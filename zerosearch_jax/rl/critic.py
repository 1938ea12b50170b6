"""The critic of PPO: values of tokens, from its own transformer or from the policy's, and its clipped loss.

The value at index t is that of the state before token t, as the log-prob at index t is that of token t.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from zerosearch_jax.models import lora
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.rl import losses
from zerosearch_jax.rl.state import TrainState
from zerosearch_jax.rl.step import accumulate, apply_gradients, jit_update, map_micro, shard_rows
from zerosearch_jax.sharding import Param, constrain
from zerosearch_jax.text.trajectory import Batch


def layout(cfg: ModelConfig) -> dict:
    """The value head, initialized to zero, so that the first values are 0."""
    return {'value': Param((cfg.hidden_size,), (None,), 'zeros')}


def token_values(params: dict, cfg: ModelConfig, batch: Batch, compute: losses.Compute) -> jax.Array:
    """Values of the states before every token, float32 [R, T]; 0 before a row's first token."""
    hidden_RxTxD = losses.hidden_states(params, cfg, batch, compute)
    values_RxT = jnp.einsum('rtd,d->rt', hidden_RxTxD.astype(jnp.float32), params['value'])
    return constrain(jnp.pad(values_RxT[:, :-1], ((0, 0), (1, 0))), 'batch', None)


@functools.partial(jax.jit, static_argnames=('cfg', 'compute'))
def values(params: dict, frozen: dict, batch: Batch, *, cfg: ModelConfig, compute: losses.Compute) -> jax.Array:
    """Values [M, R, T] of a batch of micro-batches; empty micro-batches are skipped."""
    combined = lora.combine(frozen, params)
    return map_micro(lambda micro: token_values(combined, cfg, micro, compute), batch)


def value_loss(
    values: jax.Array, returns: jax.Array, old_values: jax.Array, weights: jax.Array, clip: float
) -> jax.Array:
    """Sum of w / 2 max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2) (PPO's reference code; clip 0: none)."""
    worst = jnp.square(values - returns)
    if clip:
        near = jnp.clip(values, old_values - clip, old_values + clip)
        worst = jnp.maximum(worst, jnp.square(near - returns))
    return jnp.sum(weights * jnp.where(weights > 0, worst, 0.0)) / 2


def make_update(
    cfg: ModelConfig,
    tx: optax.GradientTransformationExtraArgs,
    shardings: TrainState,
    clip: float,
    compute: losses.Compute,
):
    """Builds the jitted `update(state, frozen, batch, returns, old_values) -> (state, metrics)`.

    One optimizer step on a batch of micro-batches [M, R, T]; returns and values are [M, R, T] too. `frozen` are weights
    that are not trained: the base of an adapter, or the whole trunk if the critic shares the policy's.
    """

    def update(state: TrainState, frozen: dict, batch: Batch, returns: jax.Array, old_values: jax.Array):
        def loss_sum(params, micro: Batch, micro_returns, micro_old):
            found = token_values(lora.combine(frozen, params), cfg, micro, compute)
            return value_loss(found, micro_returns, micro_old, micro.weights, clip), ({}, {})

        gradient = jax.value_and_grad(loss_sum, has_aux=True)
        (loss, _), grads, _ = accumulate(gradient, state.params, shard_rows(batch), returns, old_values)
        total = jnp.maximum(jnp.sum(batch.weights), 1e-6)
        grads = jax.tree.map(lambda g: g / total, grads)
        metrics = {'loss': loss / total, 'grad_norm': optax.tree.norm(grads)}
        return apply_gradients(tx, state, grads), metrics

    return jit_update(update, shardings)
