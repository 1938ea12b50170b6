"""The jitted programs of a run of reinforcement learning on abstract arrays: what the run compiles, without a device.

Nothing is loaded and nothing runs. A program knows what it is called with; what lies in memory beside that follows.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zerosearch_jax import sharding
from zerosearch_jax.generate import programs as generation
from zerosearch_jax.generate.capacity import EXTEND_WIDTH, decode_span, extend_rows, rounded_capacity, slots_that_fit
from zerosearch_jax.generate.sampling import FULL_SUPPORT, Truncation
from zerosearch_jax.models import attention, lora, transformer
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import PRESETS, ModelConfig
from zerosearch_jax.rl import critic as critics
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.text import protocol, stop
from zerosearch_jax.text.trajectory import Batch
from zerosearch_jax.train.config import Config

INTEGERS = ('tokens', 'positions', 'segments', 'prefixes')


class Program(NamedTuple):
    """One jitted program of the run."""

    name: str
    traced: jax.stages.Traced
    arguments: int  # bytes of each device that it is called with, small ones left out
    moved: float  # bytes of each device's memory that it reads and writes at least; of decoding, one token's
    turns: int = 1  # of its loops whose length is not known beforehand
    more: int = 0  # bytes of each device that it takes in another form of it, which is not compiled


@dataclasses.dataclass(frozen=True)
class Run:
    """All of it, for one mesh."""

    resident: Mapping[str, int]  # bytes of each device that are there all the time
    copy: int  # bytes of each device of the weights that the policy generates with, there as long as it does
    programs: tuple[Program, ...]
    slots: Mapping[str, int]  # of the roles' engines
    extend_tokens: Mapping[str, int]  # that one call writes at most
    mesh: jax.sharding.Mesh


def model_config(reference: str) -> ModelConfig:
    """The sizes of a known model by its name, or by its family and size in a hub id; no network.

    Raises:
      ValueError: it is not known; a name of models.config.PRESETS can stand for it.
    """
    name = reference.split('/')[-1].lower()
    for preset in sorted(PRESETS, key=len, reverse=True):
        if name.startswith(preset) or name.replace('-', '').startswith(preset.replace('-', '')):
            return PRESETS[preset]
    size = re.search(r'(?<![\d.])(\d+(?:\.\d+)?)b(?![a-z])', name)
    if 'simulation' in name and size and f'qwen2.5-{size[1]}b' in PRESETS:  # the published simulators
        return PRESETS[f'qwen2.5-{size[1]}b']
    raise ValueError(f'{reference}: sizes unknown; plan with one of {", ".join(PRESETS)} as its model')


def run_programs(cfg: Config, mesh: jax.sharding.Mesh) -> Run:
    """The programs of a run on the devices of a mesh, traced."""
    policy = model_config(cfg.policy.model)
    whole = sharding.abstract(transformer.layout(policy), mesh)
    layout = lora.layout(policy, cfg.policy.lora_rank) if cfg.policy.lora_rank else transformer.layout(policy)
    trained, frozen = sharding.abstract(layout, mesh), whole if cfg.policy.lora_rank else {}
    tx = state.optimizer(cfg.optimizer, cfg.rl.steps)
    train_state, shardings = abstract_state(layout, tx, mesh)
    resident = {'policy': size(trained) + size(frozen), 'optimizer': size(train_state.opt_state)}
    programs, slots, tokens = [], {}, {}
    with jax.set_mesh(mesh):  # compile-only devices: nothing may be computed here, only traced
        for role in _roles(cfg, policy, lora.combine(frozen, trained), mesh):
            cache = abstract_cache(role.model, mesh, role.slots, role.tokens, role.dtype)
            if role.name == 'policy':
                copy = size(role.params)
            else:
                resident['simulator'] = size(role.params)
            resident[f'{role.name} cache'] = size(cache)
            programs += _generation(role, cache, cfg, mesh)
            parts = sharding.shard_count('batch', mesh)
            slots[role.name] = role.slots
            tokens[role.name] = parts * extend_rows(parts)[-1] * EXTEND_WIDTH
        learner = _Learner(cfg, policy, trained, frozen, train_state, mesh)
        if cfg.rl.kl:
            reference = cast(trained, cfg.policy.dtype)
            resident['reference'] = size(reference)
            programs.append(learner.score(reference))
        programs.append(learner.update(tx, shardings))
        if cfg.rl.has_critic:
            kept, more = learner.critic(whole)
            resident['critic'] = kept
            programs += more
    return Run(resident, copy, tuple(programs), slots, tokens, mesh)


def abstract_state(layout: dict, tx, mesh: jax.sharding.Mesh) -> tuple[state.TrainState, state.TrainState]:
    """A training state of this layout without its values; and its shardings."""
    shardings = state.state_shardings(layout, tx, mesh)
    params = sharding.abstract(layout, mesh)
    shapes = jax.eval_shape(lambda p: state.TrainState(jnp.zeros((), jnp.int32), p, tx.init(p)), params)
    made = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)
    return made, shardings


def size(tree) -> int:
    """Bytes of each device that abstract arrays take there."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def cast(tree, dtype):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), tree)


# ---------------------------------------------------------------- generation


class _Role(NamedTuple):
    """A model that generates."""

    name: str
    model: ModelConfig
    params: dict
    slots: int
    tokens: int  # of a slot
    dtype: str
    strings: tuple[str, ...]
    truncation: Truncation


def _roles(cfg: Config, policy: ModelConfig, params: dict, mesh) -> Iterator[_Role]:
    own, sim = cfg.rollout, cfg.simulator
    longest = own.prompt_tokens + own.response_tokens
    slots = _slots(own, policy, mesh, longest, cfg.policy.dtype)
    truncation = Truncation(top_p=own.top_p)
    serving = serving_layout(params, cfg.policy.dtype)
    yield _Role('policy', policy, serving, slots, longest, cfg.policy.dtype, protocol.STOP_STRINGS, truncation)
    if sim.kind == 'model':
        model, longest = model_config(sim.model), sim.prompt_tokens + sim.max_tokens
        weights = serving_layout(sharding.abstract(transformer.layout(model), mesh), sim.dtype)
        slots = _slots(sim, model, mesh, longest, sim.dtype)
        yield _Role('simulator', model, weights, slots, longest, sim.dtype, (), FULL_SUPPORT)


def _slots(wanted, model: ModelConfig, mesh, longest: int, dtype: str) -> int:
    if not wanted.cache_gib:
        return wanted.slots
    return min(wanted.slots, slots_that_fit(int(wanted.cache_gib * 2**30), model, mesh, longest, dtype))


def abstract_cache(model: ModelConfig, mesh, slots: int, tokens: int, dtype: str) -> kv.KVCache:
    capacity = rounded_capacity(tokens)
    place = sharding.named(mesh, *kv.axes(model, mesh))

    def layers(*shape):
        one = jax.ShapeDtypeStruct((slots, model.num_kv_heads, *shape), jnp.dtype(dtype), sharding=place)
        return (one,) * model.num_layers

    return kv.KVCache(layers(model.head_dim, capacity), layers(capacity, model.head_dim))


def serving_layout(params: dict, dtype: str) -> dict:
    """What generation.serving_layout makes of abstract weights: a layer is split as its stack is."""
    made = jax.eval_shape(functools.partial(generation.serving_layout, dtype=dtype), params)
    mesh, embed = params['embed'].sharding.mesh, params['embed'].sharding.spec

    def placed(array, *axes):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def layer(arrays: dict) -> dict:
        return {name: placed(w, *params['layers'][name].sharding.spec[1:]) for name, w in arrays.items()}

    flat = {name: placed(made[name], *params[name].sharding.spec) for name in params if name != 'layers'}
    return {'head': placed(made['head'], *embed[::-1]), **flat, 'layers': tuple(map(layer, made['layers']))}


def _generation(role: _Role, cache: kv.KVCache, cfg: Config, mesh) -> Iterator[Program]:
    """Writing given tokens, and decoding in all slots."""

    def array(shape, kind=np.int32):
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding.named(mesh))

    parts, common = sharding.shard_count('batch', mesh), {'cfg': role.model, 'dtype': role.dtype}
    rows = parts, extend_rows(parts)[-1]
    each, tokens = array(rows), array((*rows, EXTEND_WIDTH))
    arguments, weights = size(role.params) + size(cache), size({**role.params, 'embed': ()})
    traced = generation.extend.trace(role.params, cache, each, tokens, each, each, **common)
    written = size(cache) * rows[0] * rows[1] / role.slots
    yield Program(f'{role.name}: prompts and observations', traced, arguments, weights + written)
    table = stop.compile_table(role.strings, [b''] * role.model.vocab_size)
    traced = generation.decode.trace(
        role.params,
        cache,
        jax.tree.map(lambda x: array(x.shape, x.dtype), generation.idle_rows(role.slots)),
        None,
        array(table.table.shape, table.table.dtype),
        array((), np.float32),
        steps=cfg.rollout.decode_steps,
        span=cache.capacity,
        eos_ids=(0,),
        first_accept=table.first_accept,
        truncation=role.truncation,
        **common,
    )
    half = max((span for span in _spans(cache.capacity) if span < cache.capacity), default=0)
    copied = size(cache) * half // cache.capacity  # of the whole span nothing is
    yield Program(f'{role.name}: decoding', traced, arguments, weights + size(cache), more=copied)


def _spans(capacity: int) -> set[int]:
    return {decode_span(length, capacity) for length in range(1, capacity + 1)}


# ---------------------------------------------------------------- learning


class _Learner:
    """The programs that look at a step's micro-batches, as the learner packs them."""

    def __init__(self, cfg: Config, policy: ModelConfig, trained, frozen, train_state, mesh):
        self._cfg, self._policy, self._mesh = cfg, policy, mesh
        self._trained, self._frozen, self._state = trained, frozen, train_state
        form = attention.choose(policy, cfg.policy.dtype, mesh, cfg.rl.row_length).name
        self._compute = losses.Compute(cfg.policy.dtype, cfg.rl.remat, cfg.rl.chunk, form)
        self._turns = -(-cfg.rl.row_length // cfg.rl.chunk)  # chunks of logits, were every token a sampled one
        # read once in the forward pass, and once or (where the forward pass is made again) twice in the backward pass
        whole = transformer.layout(policy)
        count = sum(math.prod(p.shape) for p in jax.tree.leaves(whole, is_leaf=sharding.is_param))
        self._weights = count * jnp.dtype(cfg.policy.dtype).itemsize / mesh.shape['tensor']

    def _batch(self, trajectories: int) -> Batch:
        rl, longest = self._cfg.rl, self._cfg.rollout.prompt_tokens + self._cfg.rollout.response_tokens
        rows = -(-trajectories // (rl.row_length // longest))
        shape = -(-rows // rl.rows_per_micro), rl.rows_per_micro, rl.row_length
        place = sharding.named(self._mesh)
        return Batch(
            **{
                name: jax.ShapeDtypeStruct(shape, np.int32 if name in INTEGERS else np.float32, sharding=place)
                for name in Batch.__dataclass_fields__
            }
        )

    def score(self, reference) -> Program:
        batch = self._batch(self._cfg.rollout.questions * self._cfg.rollout.group)
        temperature = self._cfg.rollout.temperature
        traced = step.score.trace(reference, self._frozen, batch, temperature, cfg=self._policy, compute=self._compute)
        moved = len_micro(batch) * self._weights
        return Program('reference', traced, size(reference) + size(self._frozen), moved, self._turns)

    def update(self, tx, shardings) -> Program:
        rl = self._cfg.rl
        batch = self._batch(rl.minibatch or self._cfg.rollout.questions * self._cfg.rollout.group)
        loss = losses.LossConfig(kl=rl.kl, entropy=rl.entropy)
        update = step.make_update(self._policy, tx, shardings, loss, self._compute, self._cfg.rollout.temperature)
        moved = len_micro(batch) * (2 if rl.remat == 'none' else 3) * self._weights + 2 * size(self._state)
        there = size(self._state) + size(self._frozen)
        return Program('update', update.trace(self._state, self._frozen, batch), there, moved, self._turns)

    def critic(self, whole) -> tuple[int, list[Program]]:
        """Bytes of each device that the critic of PPO keeps; and its two programs. `whole`: the initial policy."""
        rl, own = self._cfg.rl, self._cfg.critic
        layout, frozen = critics.layout(self._policy), lora.combine(self._frozen, self._trained)
        if own.trunk == 'own':
            rank, frozen = own.lora_rank, whole if own.lora_rank else {}
            layout |= lora.layout(self._policy, rank) if rank else transformer.layout(self._policy)
        tx = state.optimizer(state.OptimizerConfig(own.learning_rate), rl.steps)
        train_state, shardings = abstract_state(layout, tx, self._mesh)
        everything = self._batch(self._cfg.rollout.questions * self._cfg.rollout.group)
        batch = self._batch(rl.minibatch or self._cfg.rollout.questions * self._cfg.rollout.group)
        values = critics.values.trace(train_state.params, frozen, everything, cfg=self._policy, compute=self._compute)
        update = critics.make_update(self._policy, tx, shardings, own.clip, self._compute)
        update = update.trace(train_state, frozen, batch, batch.weights, batch.weights)
        read = (len_micro(everything) * self._weights, len_micro(batch) * 2 * self._weights + 2 * size(train_state))
        there = size(train_state.params) + size(frozen), size(train_state) + size(frozen)
        kept = size(train_state) + (size(frozen) if own.trunk == 'own' else 0)
        return kept, [
            Program('critic: values', values, there[0], read[0]),
            Program('critic: update', update, there[1], read[1]),
        ]


def len_micro(batch: Batch) -> int:
    return batch.tokens.shape[0]
