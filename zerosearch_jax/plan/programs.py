"""The jitted programs of a run of reinforcement learning, traced with abstract arrays, so that no device is needed.

Nothing is loaded and nothing runs. For each program its arguments are known, and so is what else is in memory.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import sharding
from zerosearch_jax.generate import ahead, serving
from zerosearch_jax.generate import programs as generation
from zerosearch_jax.generate.capacity import Shapes, rounded_capacity, shapes, slots_that_fit
from zerosearch_jax.generate.sampling import FULL_SUPPORT, Truncation
from zerosearch_jax.models import attention, lora, transformer
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import PRESETS, ModelConfig
from zerosearch_jax.rl import critic as critics
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.text import protocol, stop
from zerosearch_jax.text.trajectory import Batch
from zerosearch_jax.train.config import Config, share_base, with_copy

INTEGERS = ('tokens', 'positions', 'segments', 'prefixes')
GENERATION = generation.extend, generation.decode


class Program(NamedTuple):
    """One jitted program of the run."""

    name: str
    traced: jax.stages.Traced
    arguments: int  # bytes of its arguments on each device, without small ones
    moved: float  # the least bytes that it reads and writes in each device's memory, without the cache
    turns: int = 1  # iterations of loops whose length is not known before they run
    cached: float = 0.0  # bytes of the cache that it reads on each device, if every slot is full


class Extend(NamedTuple):
    """The size of a prefill call."""

    rows: int
    width: int  # tokens in a row


@dataclasses.dataclass(frozen=True)
class Run:
    """The programs and the memory of a run on one mesh."""

    resident: Mapping[str, int]  # bytes that are always in each device's memory
    generating: Mapping[str, int]  # bytes of the policy's engine that are in memory while models generate
    programs: tuple[Program, ...]
    engines: Mapping[str, Mapping[str, int]]  # {engine: {role: slots}}
    capacity: Mapping[str, int]  # {engine: tokens of a slot}
    extends: Mapping[str, Extend]  # {engine: the largest prefill call}
    meshes: Mapping[str, jax.sharding.Mesh]  # {engine: on which it generates}
    mesh: jax.sharding.Mesh

    def mesh_of(self, program: Program) -> jax.sharding.Mesh:
        """The mesh of a program."""
        return self.meshes.get(program.name.split(':')[0], self.mesh)

    @property
    def slots(self) -> dict[str, int]:
        """{engine: slots of all of its roles}."""
        return {name: sum(roles.values()) for name, roles in self.engines.items()}


def model_config(reference: str) -> ModelConfig:
    """The sizes of a known model; `reference` and errors are those of `preset`."""
    return PRESETS[preset(reference)]


def preset(reference: str) -> str:
    """The key in PRESETS of a known model, by its name or by family and size in its hub id, without the network.

    Raises:
      ValueError: the model is not known; use a name of models.config.PRESETS instead.
    """
    name = reference.split('/')[-1].lower()
    candidates = PRESETS if name == 'tiny' else PRESETS.keys() - {'tiny'}  # TinyLlama is another model
    for known in sorted(candidates, key=len, reverse=True):
        if name.startswith(known) or name.replace('-', '').startswith(known.replace('-', '')):
            return known
    size = re.search(r'(?<![\d.])(\d+(?:\.\d+)?)b(?![a-z])', name)
    if 'simulation' in name and size and f'qwen2.5-{size[1]}b' in PRESETS:  # the published simulators
        return f'qwen2.5-{size[1]}b'
    raise ValueError(f'{reference}: its sizes are not known; plan with one of {", ".join(PRESETS)} as the model')


def run_programs(cfg: Config, mesh: jax.sharding.Mesh) -> Run:
    """The programs of a run on the devices of a mesh, traced."""
    parts = sharding.shard_count('batch', mesh)
    rl = dataclasses.replace(cfg.rl, remat=cfg.rl.remats[0], rows_per_micro=cfg.rl.rows_per_micro or parts)
    cfg, policy = dataclasses.replace(with_copy(cfg), rl=rl), model_config(cfg.policy.model)
    whole = sharding.abstract(transformer.layout(policy), mesh)
    layout = lora.layout(policy, cfg.policy.lora_rank) if cfg.policy.lora_rank else transformer.layout(policy)
    trained, frozen = sharding.abstract(layout, mesh), whole if cfg.policy.lora_rank else {}
    tx = state.optimizer(cfg.optimizer, cfg.rl.steps)
    train_state, shardings = abstract_state(layout, tx, mesh)
    resident = {'policy': size(trained) + size(frozen), 'optimizer': size(train_state.opt_state)}
    learner = _Learner(cfg, policy, trained, frozen, train_state, mesh)
    critic = learner.critic_state(whole) if cfg.rl.has_critic else None
    programs, engines, capacity, extends, generating, meshes = [], {}, {}, {}, {}, {}
    for role in _roles(cfg, policy, lora.combine(frozen, trained), mesh):
        with jax.set_mesh(role.mesh):  # compile-only devices: nothing may be computed here, only traced
            slots = sum(role.slots.values())
            cache = kv.abstract(role.model, role.mesh, slots, rounded_capacity(role.tokens), role.dtype)
            if role.name == 'policy' or cfg.simulator.kind == 'self':
                generating['policy to generate with'] = size(role.params)
            else:  # a base that both roles share stays in memory during updates
                resident[role.name] = size(role.params)
            (resident if role.name == 'simulator' else generating)[f'{role.name} cache'] = size(cache)
            compiled = shapes(role.mesh, max(role.slots.values()), cache.capacity)
            programs += _generation(role, cache, compiled, cfg)
            engines[role.name], capacity[role.name], meshes[role.name] = role.slots, cache.capacity, role.mesh
            parts = sharding.shard_count('batch', role.mesh)
            extends[role.name] = Extend(parts * compiled.extend[-1][0], compiled.width)
    with jax.set_mesh(mesh):
        if cfg.rl.kl:
            reference = cast(trained, cfg.policy.dtype)
            resident['reference'] = size(reference)
            programs.append(learner.score('reference', reference))
        if cfg.rl.rescores:
            programs.append(learner.score('old log-probs', trained))
        if cfg.reward.information:
            programs.append(learner.score('information', trained))
        programs.append(learner.update(tx, shardings))
        if critic:
            kept, more = learner.critic(*critic)
            resident['critic'] = kept
            programs += more
    return Run(resident, generating, tuple(programs), engines, capacity, extends, meshes, mesh)


def abstract_state(layout: dict, tx, mesh: jax.sharding.Mesh) -> tuple[state.TrainState, state.TrainState]:
    """A training state of this layout as abstract arrays, and its shardings."""
    shardings = state.state_shardings(layout, tx, mesh)
    params = sharding.abstract(layout, mesh)
    shapes = jax.eval_shape(lambda p: state.TrainState(jnp.zeros((), jnp.int32), p, tx.init(p)), params)
    made = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)
    return made, shardings


def size(tree) -> int:
    """Bytes that abstract arrays take on each device; small ones, which come from the host, count 0."""
    placed = (x for x in jax.tree.leaves(tree) if x.sharding is not None)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in placed)


def cast(tree, dtype):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), tree)


# ---------------------------------------------------------------- generation


class _Role(NamedTuple):
    """A model that generates, for one or both roles."""

    name: str
    model: ModelConfig
    mesh: jax.sharding.Mesh
    params: dict
    slots: Mapping[str, int]  # {role: slots}
    tokens: int  # of a slot
    dtype: str
    strings: tuple[str, ...]
    truncation: Truncation


def _roles(cfg: Config, policy: ModelConfig, params: dict, mesh) -> Iterator[_Role]:
    own, sim = cfg.rollout, cfg.simulator
    tokens = {'policy': own.prompt_tokens + own.response_tokens, 'simulator': sim.prompt_tokens + sim.max_tokens}
    shared, trajectories = share_base(cfg), own.questions * own.group

    def role(name: str, model: ModelConfig, place, weights: dict, dtype: str, **more) -> _Role:
        longest = max(tokens.values()) if shared else tokens[name]
        wanted = {'policy': own, 'simulator': sim} if shared else {name: own if name == 'policy' else sim}
        slots = {who: _slots(each, trajectories, model, place, longest, dtype) for who, each in wanted.items()}
        base, adapter = serving.split_adapter(weights)
        count = 1 if sim.kind == 'self' else len(slots)  # of adapters
        made = serving.Weights(model, place, count, dtype).abstract(base, [adapter] * count)
        return _Role(' and '.join(slots), model, place, made, slots, longest, dtype, **more)

    stops = {'strings': protocol.GRAMMARS[own.grammar].stops, 'truncation': Truncation(top_p=own.top_p)}
    place = sharding.regrouped(mesh, own.mesh, 'config.rollout.mesh')
    yield role('policy', policy, place, params, cfg.policy.dtype, **stops)
    if sim.kind == 'model' and not shared:
        model, place = model_config(sim.model), sharding.regrouped(mesh, sim.mesh, 'config.simulator.mesh')
        weights = sharding.abstract(transformer.layout(model), place)
        yield role('simulator', model, place, weights, sim.dtype, strings=(), truncation=FULL_SUPPORT)


def _slots(wanted, most: int, model: ModelConfig, mesh, longest: int, dtype: str) -> int:
    """The configured number of slots, as far as it fits, else `most`; a multiple of the mesh's parts."""
    parts = sharding.shard_count('batch', mesh)
    slots = -(-(wanted.slots or most) // parts) * parts
    if not wanted.cache_gib:
        return slots
    return min(slots, slots_that_fit(int(wanted.cache_gib * 2**30), model, mesh, longest, dtype))


def _generation(role: _Role, cache: kv.KVCache, shapes: Shapes, cfg: Config) -> Iterator[Program]:
    """The largest call of the engine for prefill (of prompts and observations) and for decode."""
    steps, slots = cfg.rollout.decode_steps, sum(role.slots.values())
    stops = stop.compile_table(role.strings, [b''] * role.model.vocab_size)
    sampling = {'steps': steps, 'eos_ids': (0,), 'first_accept': stops.first_accept, 'truncation': role.truncation}
    common = {'cfg': role.model, 'dtype': role.dtype}
    calls = ahead.calls(role.params, cache, stops.table, shapes, slots, role.mesh, common, sampling)
    largest = {call.function: call for call in calls}
    arguments, weights = size(role.params) + size(cache), size({**role.params, 'embed': ()})
    extend, decode = (largest[f].function.trace(*largest[f].arguments, **largest[f].options) for f in GENERATION)
    read = size(cache) * shapes.extend[-1][0] * sharding.shard_count('batch', role.mesh) / slots
    yield Program(f'{role.name}: prefill', extend, arguments, weights + read)
    yield Program(f'{role.name}: decode', decode, arguments, steps * weights, steps, steps * size(cache))


# ---------------------------------------------------------------- learning


class _Learner:
    """The programs that take a step's micro-batches, packed as the learner packs them."""

    def __init__(self, cfg: Config, policy: ModelConfig, trained, frozen, train_state, mesh):
        self._cfg, self._policy, self._mesh = cfg, policy, mesh
        self._trajectories = cfg.rollout.questions * cfg.rollout.group
        _, self._minibatch = cfg.rl.updates(self._trajectories)
        self._trained, self._frozen, self._state = trained, frozen, train_state
        form = attention.choose(policy, cfg.policy.dtype, mesh, cfg.rl.row_length).name
        self._compute = losses.Compute(cfg.policy.dtype, cfg.rl.remat, cfg.rl.chunk, form)
        self._turns = -(-cfg.rl.row_length // cfg.rl.chunk)  # chunks of logits, if every token were sampled
        # read once in the forward pass, and once in the backward pass, or twice if that recomputes the forward pass
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

    def score(self, name: str, params) -> Program:
        batch = self._batch(self._trajectories)
        temperature = self._cfg.rollout.temperature
        traced = step.score.trace(params, self._frozen, batch, temperature, cfg=self._policy, compute=self._compute)
        moved = len_micro(batch) * self._weights
        return Program(name, traced, size(params) + size(self._frozen), moved, self._turns)

    def update(self, tx, shardings) -> Program:
        rl, batch = self._cfg.rl, self._batch(self._minibatch)
        loss = losses.LossConfig(kl=rl.kl, entropy=rl.entropy)
        update = step.make_update(self._policy, tx, shardings, loss, self._compute, self._cfg.rollout.temperature)
        moved = len_micro(batch) * (2 if rl.remat == 'none' else 3) * self._weights + 2 * size(self._state)
        there = size(self._state) + size(self._frozen)
        return Program('update', update.trace(self._state, self._frozen, batch), there, moved, self._turns)

    def critic_state(self, whole):
        """The arguments of `critic`; `whole`: the initial policy. Call it outside the mesh: the optimizer computes."""
        rl, own = self._cfg.rl, self._cfg.critic
        layout, frozen = critics.layout(self._policy), lora.combine(self._frozen, self._trained)
        if own.trunk == 'own':
            rank, frozen = own.lora_rank, whole if own.lora_rank else {}
            layout |= lora.layout(self._policy, rank) if rank else transformer.layout(self._policy)
        tx = state.optimizer(state.OptimizerConfig(own.learning_rate), rl.steps)
        return frozen, tx, *abstract_state(layout, tx, self._mesh)

    def critic(self, frozen, tx, train_state, shardings) -> tuple[int, list[Program]]:
        """Bytes that PPO's critic holds on each device, and its two programs."""
        own = self._cfg.critic
        everything = self._batch(self._trajectories)
        batch = self._batch(self._minibatch)
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
