"""The planner: what a run of reinforcement learning takes of every device, known before it is started.

The run's own jitted programs are lowered on abstract arrays and compiled for the target, by its own compiler where that
is installed; nothing is loaded and nothing runs. Memory is the compiler's: what a program holds at its peak, and what
lies beside it meanwhile. Times are limits (a roofline), which no program reaches.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import progress, sharding, state
from zerosearch_jax.experiment import Config
from zerosearch_jax.generate import engine as engines
from zerosearch_jax.generate import step as generation
from zerosearch_jax.generate.sampling import FULL_SUPPORT, Truncation
from zerosearch_jax.models import attention, lora, transformer
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import PRESETS, ModelConfig
from zerosearch_jax.rl import losses, step
from zerosearch_jax.search import prompts
from zerosearch_jax.text import stop
from zerosearch_jax.text.trajectory import Batch
from zerosearch_jax.tools.hardware import Hardware

RESERVE = 0.08  # of a device's memory, for what no program accounts for: the runtime, fragments, collectives' buffers
INTEGERS = ('tokens', 'positions', 'segments', 'prefixes')


@dataclasses.dataclass(frozen=True)
class Need:
    """One compiled program: bytes of each device."""

    name: str
    arguments: int
    own: int  # temporaries and results that take no argument's place

    def peak(self, beside: int) -> int:
        return beside + self.arguments + self.own


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs, bytes of each device."""

    resident: Mapping[str, int]  # what is there all the time
    needs: tuple[tuple[Need, int], ...]  # programs, and what lies beside their arguments
    mesh: tuple[int, ...]  # data, fsdp, tensor
    compiler: str
    memory: int  # of a device

    @property
    def peak(self) -> int:
        return max(need.peak(beside) for need, beside in self.needs)

    @property
    def spare(self) -> int:
        """What is left below the reserve; negative: so much is missing."""
        return int(self.memory * (1 - RESERVE)) - self.peak


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


def plan(cfg: Config, hardware: Hardware, found: list, compiler: str) -> Plan:
    """Compiles the run's programs for devices `found`, and adds up."""
    mesh = sharding.make_mesh(cfg.mesh, found)
    policy = model_config(cfg.policy.model)
    whole = sharding.abstract(transformer.layout(policy), mesh)
    layout = lora.layout(policy, cfg.policy.lora_rank) if cfg.policy.lora_rank else transformer.layout(policy)
    trained, frozen = sharding.abstract(layout, mesh), whole if cfg.policy.lora_rank else {}
    tx = state.optimizer(cfg.optimizer, cfg.rl.steps)
    places = state.state_shardings(layout, tx, mesh)
    shapes = jax.eval_shape(lambda p: state.TrainState(jnp.zeros((), jnp.int32), p, tx.init(p)), trained)
    train_state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)
    resident = {
        'policy': size(trained) + size(frozen),
        'optimizer': size(train_state.opt_state),
        'reference': size(trained) if cfg.rl.kl else 0,
    }
    needs = []
    progress.say('compiling the programs of the run; large models take minutes')
    with jax.set_mesh(mesh):  # compile-only devices: nothing may be computed here, only traced
        for role in _roles(cfg, policy, lora.combine(frozen, trained), mesh):
            cache = abstract_cache(role.model, mesh, role.slots, role.tokens, role.dtype)
            if role.name == 'simulator' and not (frozen and cfg.simulator.model == cfg.policy.model):
                resident['simulator'] = size(role.params)  # else the base is in memory once
            resident[f'{role.name} cache'] = size(cache)
            for name, lowered in _generation(role, cache, cfg, mesh):
                arguments = size(role.params) + size(cache)
                needs.append((_compiled(name, lowered, arguments), arguments))
        update = _update(cfg, policy, tx, places, mesh).lower(train_state, frozen, _batch(cfg, mesh))
        arguments = size(train_state) + size(frozen)
        needs.append((_compiled('update', update, arguments), arguments))
    total = sum(resident.values())
    beside = tuple((need, max(total - arguments, 0)) for need, arguments in needs)
    return Plan(resident, beside, mesh.devices.shape, compiler, int(hardware.chip.memory_gib * 2**30))


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
    size, own = cfg.rollout, Truncation(top_p=cfg.rollout.top_p)
    longest = size.prompt_tokens + size.response_tokens
    yield _Role('policy', policy, params, size.slots, longest, cfg.policy.dtype, prompts.STOP_STRINGS, own)
    if cfg.simulator.kind == 'model':
        sim = cfg.simulator
        model = model_config(sim.model)
        weights = sharding.abstract(transformer.layout(model), mesh)
        most = sim.prompt_tokens + sim.max_tokens
        yield _Role('simulator', model, weights, sim.slots, most, sim.dtype, (), FULL_SUPPORT)


def size(tree) -> int:
    """Bytes of each device that abstract arrays take there."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def abstract_cache(model: ModelConfig, mesh, slots: int, tokens: int, dtype: str) -> kv.KVCache:
    capacity = -(-tokens // engines.SPAN_STEP) * engines.SPAN_STEP
    place = sharding.named(mesh, *kv.axes(model, mesh))

    def layers(*shape):
        one = jax.ShapeDtypeStruct((slots, model.num_kv_heads, *shape), jnp.dtype(dtype), sharding=place)
        return (one,) * model.num_layers

    return kv.KVCache(layers(model.head_dim, capacity), layers(capacity, model.head_dim))


def _generation(role: _Role, cache: kv.KVCache, cfg: Config, mesh):
    """(name, lowered program) of writing given tokens, and of decoding in all slots."""

    def array(shape, kind=np.int32):
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding.named(mesh))

    rows, common = engines.EXTEND_ROWS[-1], {'cfg': role.model, 'dtype': role.dtype}
    each, tokens = array((rows,)), array((rows, engines.EXTEND_WIDTH))
    lowered = generation.extend.lower(role.params, cache, each, tokens, each, each, **common)
    yield f'{role.name}: prompts and observations', lowered
    table = stop.compile_table(role.strings, [b''] * role.model.vocab_size)
    yield (
        f'{role.name}: decoding',
        generation.decode.lower(
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
        ),
    )


def _update(cfg: Config, policy: ModelConfig, tx, places, mesh):
    compute = losses.Compute(
        cfg.policy.dtype, cfg.rl.remat, cfg.rl.chunk, attention.choose(policy, cfg.policy.dtype, mesh).name
    )
    loss = losses.LossConfig(kl=cfg.rl.kl, entropy=cfg.rl.entropy)
    return step.make_update(policy, tx, places, loss, compute, cfg.rollout.temperature)


def _batch(cfg: Config, mesh) -> Batch:
    """A step's micro-batches, as the learner packs them."""
    longest = cfg.rollout.prompt_tokens + cfg.rollout.response_tokens
    trajectories = cfg.rl.minibatch or cfg.rollout.questions * cfg.rollout.group
    rows = -(-trajectories // (cfg.rl.row_length // longest))
    shape = -(-rows // cfg.rl.rows_per_micro), cfg.rl.rows_per_micro, cfg.rl.row_length
    place = sharding.named(mesh)
    return Batch(
        **{
            name: jax.ShapeDtypeStruct(shape, np.int32 if name in INTEGERS else np.float32, sharding=place)
            for name in Batch.__dataclass_fields__
        }
    )


def _compiled(name: str, lowered, arguments: int) -> Need:
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:  # the TPU's compiler refuses what does not fit, and says how much it is
        refused = re.search(r'([\d.]+)G\) exceeds available HBM', str(error))
        if not refused:
            raise
        return Need(f'{name} (refused)', arguments, int(float(refused[1]) * 2**30))
    own = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Need(name, memory.argument_size_in_bytes, own)


# ---------------------------------------------------------------- for people


def table(made: Plan, hardware: Hardware, cfg: Config) -> str:
    """The plan as Markdown, with its verdict."""

    def gib(count: int) -> str:
        return f'{count / 2**30:.2f}'

    shape = 'x'.join(map(str, made.mesh))
    lines = [
        f'{cfg.policy.model} on {hardware}, mesh {shape}, by {made.compiler}; GiB of each device',
        '',
        '| there all the time | |',
        '|---|---|',
        *(f'| {name} | {gib(count)} |' for name, count in made.resident.items()),
        '',
        '| program | its arguments | beside them | its own | peak |',
        '|---|---|---|---|---|',
    ]
    for need, beside in made.needs:
        cells = map(gib, (need.arguments, beside, need.own, need.peak(beside)))
        lines.append(f'| {need.name} | {" | ".join(cells)} |')
    spare = f'{gib(made.peak)} of {gib(made.memory)} GiB, {RESERVE:.0%} of which are a reserve'
    if made.spare >= 0:
        return '\n'.join([*lines, '', f'It fits: {spare}.'])
    advice = ', '.join(_advice(made, cfg))
    return '\n'.join([*lines, '', f'It does not fit: {spare}. {gib(-made.spare)} GiB are missing; try {advice}.'])


def _advice(made: Plan, cfg: Config):
    """What would lower the need of the program that has the largest."""
    data, fsdp, tensor = made.mesh
    need = max(made.needs, key=lambda pair: pair[0].peak(pair[1]))[0]
    if need.name == 'update' and need.own > made.resident['optimizer'] / 2 and cfg.rl.remat != 'full':
        yield 'rl.remat=full'
    if need.name == 'update' and cfg.rl.rows_per_micro > data * fsdp:
        yield f'rl.rows_per_micro={data * fsdp}'
    caches = sum(count for name, count in made.resident.items() if name.endswith('cache'))
    if caches > made.memory / 5:
        yield 'fewer rollout.slots or simulator.slots'
    if not cfg.policy.lora_rank:
        yield 'policy.lora_rank=32'
    yield f'more devices (mesh={data},{2 * fsdp},{tensor})'
