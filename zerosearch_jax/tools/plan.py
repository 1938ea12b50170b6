"""The planner: what a run of reinforcement learning takes of every device, known before it is started.

The run's own jitted programs are lowered on abstract arrays and compiled for the target, by its own compiler where that
is installed; nothing is loaded and nothing runs. Memory is the compiler's: what a program holds at its peak, and what
lies beside it meanwhile. Times are limits (a roofline), which no program reaches.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import sharding, state
from zerosearch_jax.experiment import Config
from zerosearch_jax.generate import engine as engines
from zerosearch_jax.generate import step as generation
from zerosearch_jax.generate.sampling import Truncation
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
      ValueError: it is not known; a name of models.config.PRESETS can be given instead.
    """
    name = reference.split('/')[-1].lower()
    for preset in sorted(PRESETS, key=len, reverse=True):
        if name.startswith(preset) or name.replace('-', '').startswith(preset.replace('-', '')):
            return PRESETS[preset]
    size = re.search(r'(?<![\d.])(\d+(?:\.\d+)?)b(?![a-z])', name)
    if 'simulation' in name and size and f'qwen2.5-{size[1]}b' in PRESETS:  # the published simulators
        return PRESETS[f'qwen2.5-{size[1]}b']
    raise ValueError(f'{reference}: sizes unknown; name one of {", ".join(PRESETS)} with --policy or --simulator')


def plan(cfg: Config, hardware: Hardware, found: list, compiler: str) -> Plan:
    """Compiles the run's programs for devices `found`, and adds up."""
    mesh = sharding.make_mesh(cfg.mesh, found)
    policy = model_config(cfg.policy.model)
    with jax.set_mesh(mesh):
        whole = sharding.abstract(transformer.layout(policy), mesh)
        layout = lora.layout(policy, cfg.policy.lora_rank) if cfg.policy.lora_rank else transformer.layout(policy)
        trained = sharding.abstract(layout, mesh)
        frozen = whole if cfg.policy.lora_rank else {}
        tx = state.optimizer(cfg.optimizer, cfg.rl.steps)
        places = state.state_shardings(layout, tx, mesh)
        abstract_state = jax.tree.map(
            _with_sharding,
            jax.eval_shape(lambda p: state.TrainState(jnp.zeros((), jnp.int32), p, tx.init(p)), trained),
            places,
        )
        resident = {
            'policy': size(whole) + (size(trained) if cfg.policy.lora_rank else 0),
            'optimizer': size(abstract_state.opt_state),
            'reference': size(trained) if cfg.rl.kl else 0,
        }
        longest = cfg.rollout.prompt_tokens + cfg.rollout.response_tokens
        needs, caches = [], {}
        roles = {'policy': (policy, lora.combine(frozen, trained), cfg.rollout.slots, longest, cfg.policy.dtype)}
        if cfg.simulator.kind == 'model':
            simulator = model_config(cfg.simulator.model)
            weights = sharding.abstract(transformer.layout(simulator), mesh)
            shared = frozen and cfg.simulator.model == cfg.policy.model  # then the base is in memory once
            resident['simulator'] = 0 if shared else size(weights)
            most = cfg.simulator.prompt_tokens + cfg.simulator.max_tokens
            roles['simulator'] = simulator, weights, cfg.simulator.slots, most, cfg.simulator.dtype
        for role, (model, params, slots, tokens, dtype) in roles.items():
            cache = abstract_cache(model, mesh, slots, tokens, dtype)
            caches[role] = size(cache)
            resident[f'{role} cache'] = caches[role]
            strings = prompts.STOP_STRINGS if role == 'policy' else ()
            for name, lowered in _generation(role, model, params, cache, strings, cfg, dtype, mesh):
                needs.append((_compiled(name, lowered), size(params) + caches[role]))
        update = _update(cfg, policy, tx, places, mesh)
        lowered = update.lower(abstract_state, frozen, _batch(cfg, mesh))
        needs.append((_compiled('update', lowered), size(abstract_state) + size(frozen)))
    total = sum(resident.values())
    beside = tuple((need, max(total - arguments, 0)) for need, arguments in needs)
    return Plan(resident, beside, compiler, int(hardware.chip.memory_gib * 2**30))


def size(tree) -> int:
    """Bytes of each device that abstract arrays take there."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _with_sharding(x, place):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def abstract_cache(model: ModelConfig, mesh, slots: int, tokens: int, dtype: str) -> kv.KVCache:
    capacity = -(-tokens // engines.SPAN_STEP) * engines.SPAN_STEP
    place = sharding.named(mesh, *kv.axes(model, mesh))

    def layers(*shape):
        one = jax.ShapeDtypeStruct((slots, model.num_kv_heads, *shape), jnp.dtype(dtype), sharding=place)
        return (one,) * model.num_layers

    return kv.KVCache(layers(model.head_dim, capacity), layers(capacity, model.head_dim))


def _generation(role: str, model: ModelConfig, params, cache: kv.KVCache, strings, cfg: Config, dtype: str, mesh):
    """(name, lowered program) of writing given tokens, and of decoding in all slots."""

    def array(shape, kind=np.int32):
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding.named(mesh))

    rows = engines.EXTEND_ROWS[-1]
    yield (
        f'{role}: prompts and observations',
        generation.extend.lower(
            params,
            cache,
            array((rows,)),
            array((rows, engines.EXTEND_WIDTH)),
            array((rows,)),
            array((rows,)),
            cfg=model,
            dtype=dtype,
        ),
    )
    table = stop.compile_table(strings, [b''] * model.vocab_size)
    yield (
        f'{role}: decoding',
        generation.decode.lower(
            params,
            cache,
            jax.tree.map(lambda x: array(x.shape, x.dtype), generation.idle_rows(cache.k[0].shape[0])),
            None,
            array(table.table.shape, table.table.dtype),
            array((), np.float32),
            cfg=model,
            dtype=dtype,
            steps=cfg.rollout.decode_steps,
            span=cache.capacity,
            eos_ids=(0,),
            first_accept=table.first_accept,
            truncation=Truncation(top_p=cfg.rollout.top_p if role == 'policy' else 1.0),
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


def _compiled(name: str, lowered) -> Need:
    memory = lowered.compile().memory_analysis()
    own = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Need(name, memory.argument_size_in_bytes, own)


# ---------------------------------------------------------------- for people


def table(made: Plan, hardware: Hardware, cfg: Config) -> str:
    """The plan as Markdown, with its verdict."""

    def gib(count: int) -> str:
        return f'{count / 2**30:.2f}'

    shape = 'x'.join(map(str, cfg.mesh))
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
    need = max(made.needs, key=lambda pair: pair[0].peak(pair[1]))[0]
    if need.name == 'update' and need.own > made.resident['optimizer'] / 2 and cfg.rl.remat != 'full':
        yield 'rl.remat=full'
    if need.name == 'update' and cfg.rl.rows_per_micro > cfg.mesh[0] * cfg.mesh[1] > 0:
        yield f'rl.rows_per_micro={cfg.mesh[0] * cfg.mesh[1]}'
    caches = sum(count for name, count in made.resident.items() if name.endswith('cache'))
    if caches > made.memory / 5:
        yield 'fewer rollout.slots or simulator.slots'
    if not cfg.policy.lora_rank:
        yield 'policy.lora_rank=32'
    yield f'more devices (mesh={cfg.mesh[0]},{2 * cfg.mesh[1]},{cfg.mesh[2]})'
