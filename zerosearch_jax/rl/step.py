"""The jitted programs of the learner: `score` (log-probs under fixed weights) and `update`.

Gradients are sums over tokens, added over micro-batches by a scan and divided once by the weight of the whole batch,
so that neither the split into micro-batches nor the mesh changes them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zerosearch_jax.models import lora
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.rl import losses
from zerosearch_jax.rl.state import TrainState
from zerosearch_jax.sharding import constrain
from zerosearch_jax.text.trajectory import Batch


class Fit(NamedTuple):
    """The settings with which an update fits into memory."""

    remat: str  # key of transformer.REMAT_POLICIES
    rows: int  # of a micro-batch


def free_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """Free bytes of the fullest device of this process; None if devices do not report it, as on CPU."""
    found = [device.memory_stats() for device in mesh.local_devices]
    return min(stats['bytes_limit'] - stats['bytes_in_use'] for stats in found) if all(found) else None


def own_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program takes on each device besides its arguments."""
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def fit_memory(measure: Callable[[Fit], int], free: int, remats: Sequence[str], least: int, most: int) -> int:
    """Compiles updates until one fits: with the least rematerialization, and then the most rows, that memory allows.

    The last program that is compiled fits and is the one to run; those before it are discarded.

    Args:
      measure: compiles a fit and returns the bytes that it needs.
      free: free bytes.
      remats: the fastest first; the last one is used even if it does not fit.
      least: micro-batches have a multiple of this many rows.
      most: the most rows that there can be.

    Returns:
      the bytes that the last program needs.
    """
    for remat in remats:
        need = measure(Fit(remat, least))
        if need <= free:
            break
    times = min(free // need, -(-most // least))  # as if all memory grew with the rows, which is cautious
    return measure(Fit(remat, times * least)) if times > 1 else need


def shard_rows(batch: Batch) -> Batch:
    """Micro-batches [M, R, T] with rows sharded over the mesh."""
    return jax.tree.map(lambda x: constrain(x, None, 'batch', None), batch)


@functools.partial(jax.jit, static_argnames=('cfg', 'compute'))
def score(
    params: dict, frozen: dict, batch: Batch, temperature: float, *, cfg: ModelConfig, compute: losses.Compute
) -> jax.Array:
    """Log-probs [M, R, T] of a batch of micro-batches; empty micro-batches are skipped."""
    combined = lora.combine(frozen, params)
    return map_micro(lambda micro: losses.token_logprobs(combined, cfg, micro, temperature, compute)[0], batch)


def map_micro(function: Callable[[Batch], jax.Array], batch: Batch) -> jax.Array:
    """A function [R, T] of every micro-batch, stacked [M, R, T]; 0 for empty ones, which are skipped."""

    def one(_, micro: Batch):
        zeros = lambda: jnp.zeros(micro.tokens.shape, jnp.float32)  # noqa: E731
        return None, jax.lax.cond(jnp.any(micro.segments > 0), lambda: function(micro), zeros)

    return jax.lax.scan(one, None, shard_rows(batch))[1]


def make_update(
    cfg: ModelConfig,
    tx: optax.GradientTransformationExtraArgs,
    shardings: TrainState,
    loss_cfg: losses.LossConfig | None,
    compute: losses.Compute,
    temperature: float = 1.0,
    policy_loss: Callable = losses.policy_loss,
):
    """Builds the jitted `update(state, frozen, batch) -> (state, metrics)`.

    One optimizer step on a batch of micro-batches [M, R, T]. The state is donated and keeps its shardings; `frozen`
    are the weights that are not trained ({} if all are). Metrics are float32 means over the weighted tokens ('loss',
    'kl', ...), 'logprob_gap_max', 'grad_norm' (before clipping) and 'tokens' (the weight of the batch). A policy's
    update also returns 'logprobs' [M, R, T], those of the weighted tokens before it.

    Args:
      cfg: the model.
      tx: the optimizer.
      shardings: shardings of the state.
      loss_cfg: coefficients of the policy loss; None for supervised fine-tuning on the weighted tokens.
      compute: precision and memory.
      temperature: with which the batch was sampled.
      policy_loss: takes `loss_cfg`; has the arguments and results of losses.policy_loss.
    """

    def update(state: TrainState, frozen: dict, batch: Batch):
        batch = shard_rows(batch)

        def loss_sum(params, micro: Batch):
            logprobs, entropies = losses.token_logprobs(lora.combine(frozen, params), cfg, micro, temperature, compute)
            if loss_cfg is None:
                loss, sums = losses.nll_loss(logprobs, micro)
                return loss, (sums, {})
            loss, sums = policy_loss(logprobs, entropies, micro, loss_cfg)
            return loss, (sums, {'logprobs': logprobs})

        gradient = jax.value_and_grad(loss_sum, has_aux=True)
        (loss, sums), grads, each = accumulate(gradient, state.params, batch)
        total = jnp.maximum(jnp.sum(batch.weights), 1e-6)
        denominator = (loss_cfg.denominator if loss_cfg else 0.0) or total
        grads = jax.tree.map(lambda g: g / denominator, grads)
        metrics = {name: value if name.endswith('_max') else value / total for name, value in sums.items()}
        metrics |= {'loss': loss / denominator, 'grad_norm': optax.tree.norm(grads), 'tokens': total}
        metrics |= each
        return apply_gradients(tx, state, grads), metrics

    return jit_update(update, shardings)


def apply_gradients(tx: optax.GradientTransformationExtraArgs, state: TrainState, grads: dict) -> TrainState:
    """The state after one optimizer step."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)


def jit_update(update: Callable, shardings: TrainState) -> Callable:
    """Jits `update(state, ...) -> (state, metrics)`: the state is donated and keeps its shardings."""
    everywhere = NamedSharding(shardings.step.mesh, P())
    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, everywhere))


def accumulate(gradient, params: dict, batch: Batch, *beside):
    """Adds gradients over the micro-batches.

    Args:
      gradient: of params and a micro-batch; returns (loss, (sums, each)), gradients.
      params: weights.
      batch: micro-batches [M, ...].
      beside: further arrays [M, ...], passed with the micro-batches.

    Returns:
      (loss, sums), added, except for sums named '*_max', of which the largest is taken; the added gradients; and
      `each`, stacked [M, ...], 0 for empty micro-batches.
    """
    first = jax.tree.map(lambda x: x[0], (batch, *beside))
    shapes = jax.eval_shape(gradient, params, *first)
    (loss, (sums, each)), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(accumulated, micro):
        def run():
            (loss, (sums, found)), grads = gradient(params, *micro)
            (loss0, sums0), grads0 = accumulated
            merged = {
                name: jnp.maximum(sums0[name], value) if name.endswith('_max') else sums0[name] + value
                for name, value in sums.items()
            }
            return ((loss0 + loss, merged), jax.tree.map(jnp.add, grads0, grads)), found

        return jax.lax.cond(jnp.any(micro[0].weights > 0), run, lambda: (accumulated, each))

    (added, grads), stacked = jax.lax.scan(add, ((loss, sums), grads), (batch, *beside))
    return added, grads, stacked
