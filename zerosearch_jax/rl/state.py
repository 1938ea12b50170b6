"""The training state and its optimizer."""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from zerosearch_jax import sharding


@flax.struct.dataclass
class TrainState:
    """What an update changes: the trainable weights (all of them, or an adapter) and the optimizer's moments."""

    step: jax.Array  # int32, steps of the run that are done; the learning rate follows it
    params: dict
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with gradient clipping and a warm-up."""

    learning_rate: float = 1e-6
    warmup_steps: int = 0  # steps of the linear warm-up of the learning rate
    warmup_from_zero: bool = False  # whether the first update of a warm-up has rate 0, as published (difference D13)
    schedule: Literal['constant', 'cosine'] = 'constant'  # after the warm-up; cosine: to 0 after the last step
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment
    weight_decay: float = 0.01  # of matrices, not of norms and biases
    clip_norm: float = 1.0  # largest norm of the whole gradient; 0: no clipping

    def __post_init__(self):
        if max(self.b1, self.b2) >= 1:
            raise ValueError(f'b1 and b2 must be below 1, got {self.b1} and {self.b2}')


def schedule(cfg: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, by default from a value above zero, then constant or cosine to 0."""
    if cfg.schedule == 'cosine':
        main = optax.cosine_decay_schedule(cfg.learning_rate, max(total_steps - cfg.warmup_steps, 1))
    else:
        main = optax.constant_schedule(cfg.learning_rate)
    if cfg.warmup_steps < 1:
        return main
    if cfg.warmup_from_zero:
        warmup = optax.linear_schedule(0.0, cfg.learning_rate, cfg.warmup_steps)
    else:
        first = cfg.learning_rate / cfg.warmup_steps
        warmup = optax.linear_schedule(first, cfg.learning_rate, max(cfg.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, main], [cfg.warmup_steps])


def optimizer(cfg: OptimizerConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW whose `update` gets the step of the run as an argument, since a step may have several updates.

    Weight decay acts on matrices only, not on norms and biases (leaves of rank 2 are stacked vectors).
    """

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim >= (3 if _stacked(path) else 2), params)

    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),  # of states alike
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2),
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed),
        _scale_by_rate(schedule(cfg, total_steps)),
    )


def _scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    def update(updates, opt_state, params=None, *, step, **_):
        return jax.tree.map(lambda u: -rate(step) * u, updates), opt_state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _stacked(path) -> bool:
    return path[0].key == 'layers'


def state_shardings(layout: dict, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    """Shardings of a whole state: the optimizer's moments follow the weights, everything else is replicated."""
    params = sharding.abstract(layout, mesh)
    weights = sharding.shardings(layout, mesh)
    everywhere = sharding.named(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        tx, lambda _, place: place, jax.eval_shape(tx.init, params), weights, transform_non_params=lambda _: everywhere
    )
    return TrainState(step=everywhere, params=weights, opt_state=opt_state)


def create(params: dict, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """A new state with the given trainable weights, created sharded. `params` are donated."""
    make = jax.jit(
        lambda p: TrainState(jnp.zeros((), jnp.int32), p, tx.init(p)), out_shardings=shardings, donate_argnums=0
    )
    return make(params)
