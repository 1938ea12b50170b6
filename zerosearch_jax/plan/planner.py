"""The planner: memory, time and price of a run of reinforcement learning, before it is started.

The run's programs (plan/programs.py) are compiled for the target, by its own compiler if that is installed
(plan/compiled.py). Memory is what the compiler reports for a program, plus what else is in memory while it runs. The
least times are lower limits, which no program reaches: arithmetic at the chip's peak or bytes at its bandwidths,
whichever takes longer. The expected times follow the compiled program: the bytes of its kernels, their number and its
collectives, at rates that were measured on a chip (plan/hardware.py), times the number of calls in a simulated schedule
(plan/schedule.py).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import jax

from zerosearch_jax import progress, sharding
from zerosearch_jax.plan import compiled, programs, schedule
from zerosearch_jax.plan.hardware import REACHED, Hardware
from zerosearch_jax.plan.schedule import Workload
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.train.config import Config, share_base, with_copy
from zerosearch_jax.weights import download

RESERVE = 0.08  # of a device's memory, for what no program accounts for: the runtime, fragments, collectives' buffers


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """One compiled program: bytes on each device, and seconds of one run."""

    name: str
    arguments: int
    small: int  # bytes of the arguments that the plan counts nowhere else
    own: int  # temporaries and results
    refused: bool
    seconds: Mapping[str, float]  # 'arithmetic', 'memory', 'links': each at the data sheet's limit
    expected: Mapping[str, float]  # the same where not overlapped, 'launches' and 'collectives'; the sum is the time
    received: Mapping[str, float]  # bytes from other devices, by mesh axes

    @property
    def min_seconds(self) -> float:
        return max(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs on each device, and the time of a step."""

    resident: Mapping[str, int]  # bytes that are always in memory
    generating: Mapping[str, int]  # bytes that are in memory while policy and simulator generate
    needs: tuple[ProgramCost, ...]
    slots: Mapping[str, int]
    loads: Mapping[str, Mapping[str, int]]  # calls of the engines (schedule.play)
    trajectories: int  # in a step
    times: Mapping[str, float]  # how often a step runs each program
    mesh: tuple[int, ...]  # data, fsdp, tensor
    meshes: Mapping[str, tuple[int, ...]]  # {engine: the same, of the mesh on which it generates}
    compiler: str
    memory: int  # bytes of a device

    def beside(self, need: ProgramCost) -> int:
        """Bytes in memory while a program runs that are not its arguments."""
        generates = need.name.split(':')[0] in self.slots
        there = sum(self.resident.values()) + sum(self.generating.values()) * generates
        return max(there - (need.arguments - need.small), 0)

    def peak_of(self, need: ProgramCost) -> int:
        """Peak bytes of a device while a program runs."""
        return self.beside(need) + need.arguments + need.own

    @property
    def peak(self) -> int:
        return max(map(self.peak_of, self.needs))

    @property
    def spare(self) -> int:
        """Bytes that are left without the reserve; if negative, bytes that are missing."""
        return self.usable - self.peak

    @property
    def usable(self) -> int:
        return int(self.memory * (1 - RESERVE))

    def _parts(self, engine: str) -> int:
        """Parts of the mesh over which an engine's slots are split."""
        return math.prod(self.meshes[engine][:2])

    def slots_that_fit(self, engine: str) -> int:
        """The most slots of one engine if only its cache grows; equally many on each part of the mesh."""
        parts, name = self._parts(engine), f'{engine} cache'
        beside = [need for need in self.needs if name in self.resident or need.name.split(':')[0] in self.slots]
        room = self.usable - max(map(self.peak_of, beside))
        share = room / (self.resident | self.generating)[name]
        return max(int(self.slots[engine] * (1 + share)) // parts * parts, 0)

    def useful_slots(self, engine: str) -> int:
        """The most slots that fit and that all trajectories, in all roles of the engine, can use."""
        parts = self._parts(engine)
        return min(self.slots_that_fit(engine), -(-self.trajectories // parts) * parts * len(engine.split(' and ')))

    @property
    def fits(self) -> bool:
        return self.spare >= 0 and not any(need.refused for need in self.needs)

    def seconds(self, part: str = '') -> float:
        """Least seconds of a step, or of its programs whose name contains `part`."""
        return sum(need.min_seconds * self.times[need.name] for need in self.needs if part in need.name)


def plan(cfg: Config, hardware: Hardware, devices: list, compiler: str, work: Workload | None = None) -> Plan:
    """Compiles the run's programs for these devices, and adds up their memory and time."""
    run = programs.run_programs(cfg, sharding.make_mesh(cfg.mesh, devices))
    work = work or Workload.of(cfg)
    loads = _loads(cfg, run, work)
    needs, cache = [], download.cache_dir() / 'plans'
    for program in run.programs:
        progress.log(f'compiling {program.name}')
        with jax.set_mesh(mesh := run.mesh_of(program)):
            lowered = program.traced.lower()
            made = compiled.measure(lowered, mesh, f'{compiler} {hardware}', cache, program.turns)
        arguments = max(made.arguments, program.arguments)  # of a refused program the compiler reports none
        engine = program.name.split(':')[0]
        read = _written(loads[engine], run, engine) if engine in loads else 1.0
        seconds = _least(program, made, read, hardware, mesh.size)
        expected = _expected(made, program.cached * (1 - read), seconds, hardware, 'stand-in' in compiler)
        sizes = arguments, arguments - program.arguments, made.own
        needs.append(ProgramCost(program.name, *sizes, made.refused, seconds, expected, made.received))
    return Plan(
        run.resident,
        run.generating,
        tuple(needs),
        run.slots,
        loads,
        cfg.rollout.questions * cfg.rollout.group,
        _times(cfg, loads, work),
        run.mesh.devices.shape,
        {name: mesh.devices.shape for name, mesh in run.meshes.items()},
        compiler,
        hardware.memory,
    )


def _loads(cfg: Config, run: programs.Run, work: Workload) -> dict[str, Mapping[str, int]]:
    """How often the run's engines are called in a step, and how many slots decode (schedule.play)."""
    trajectories = schedule.episodes(cfg, work)
    others = {'search': {'simulator': len(trajectories)}}  # a simulator without an engine answers at once

    def extends(name: str, tokens: list[int]) -> int:
        one = run.extends.get(name, programs.Extend(1, 1))
        return -(-sum(-(-count // one.width) for count in tokens) // one.rows)

    modelled = {role for roles in run.engines.values() for role in roles}
    engines = dict(run.engines) if 'simulator' in modelled else {**run.engines, **others}
    counts = schedule.play(trajectories, engines, cfg.rollout.decode_steps, extends)
    return {name: counts[name] for name in run.engines}


def _written(load: Mapping[str, int], run: programs.Run, engine: str) -> float:
    """The share of an engine's cache that holds tokens of decoding slots, on average over calls of `decode`."""
    if not load['decodes']:
        return 0.0
    return load['tokens'] / (load['decodes'] * run.slots[engine] * run.capacity[engine])


def _least(
    program: programs.Program, made: compiled.Compiled, read: float, hardware: Hardware, count: int
) -> dict[str, float]:
    chip = hardware.chip
    return {
        'arithmetic': compiled.flops(program.traced, program.turns, read) / count / (chip.tflops * 1e12),
        'memory': (program.moved + program.cached * read) / (chip.memory_gbs * 1e9),
        'links': sum(made.received.values()) / (chip.links_gbs / 2 * 1e9),  # one direction
    }


def _expected(
    made: compiled.Compiled, unread: float, least: Mapping[str, float], hardware: Hardware, standin: bool
) -> dict[str, float]:
    """Expected seconds of a program, by what limits them.

    Matrix products take the longer of arithmetic and bytes, other kernels their bytes, and each kernel its launch.
    Transfers between devices overlap with these. If the compiler is a stand-in for the target's, its bytes mean
    nothing, and the least bytes are used.
    """
    chip, found = hardware.chip, {part: seconds / REACHED[part] for part, seconds in least.items()}
    second = chip.memory_gbs * 1e9 * REACHED['memory']
    products = found['memory'] if standin else max((made.products - unread) / second, 0.0)
    others = 0.0 if standin else made.others / second
    arithmetic = found['arithmetic'] if found['arithmetic'] > products else 0.0
    memory = others + (0.0 if arithmetic else products)
    return {
        'arithmetic': arithmetic,
        'memory': memory,
        'links': max(found['links'] - arithmetic - memory, 0.0),
        'launches': made.kernels * chip.launch,
        'collectives': made.collectives * chip.collective,
    }


def _times(cfg: Config, loads: Mapping[str, Mapping[str, int]], work: Workload) -> dict[str, float]:
    """How often a step runs each program; an update counts by the share of the batch that its tokens fill."""
    rl, own = cfg.rl, cfg.rollout
    new = min(work.sampled + work.searches * own.observation_tokens, own.response_tokens)
    share = min(max((rl.row_length - own.prompt_tokens) / max(new, 1), 1), own.group)  # samples beside one prompt
    longest = own.prompt_tokens + own.response_tokens
    rows = (own.prompt_tokens / share + new) / rl.row_length  # rows that a packed trajectory takes
    used = min(rows * (rl.row_length // longest), 1.0)  # empty micro-batches are skipped
    updates = rl.epochs * rl.updates(own.questions * own.group)[0]
    times = dict.fromkeys(('reference', 'old log-probs', 'critic: values'), used)
    times |= dict.fromkeys(('update', 'critic: update'), used * updates)
    times['information'] = used * (1 + work.searches)  # a probe before the first search, and one after each
    for engine, load in loads.items():
        times[f'{engine}: prefill'] = load['extends']
        times[f'{engine}: decode'] = load['decodes']
    return times


# the fields that a plan depends on, except models, KL and algorithm; it depends on no other section
READ = {
    'policy': ('lora_rank', 'dtype'),
    'simulator': ('kind', 'dtype', 'weights', 'prompt_tokens', 'max_tokens', 'slots', 'mesh', 'cache_gib'),
    # budgets and sampling
    'rollout': ('mesh', *(f.name for f in dataclasses.fields(RolloutConfig) if f.type in (int, float))),
    'rl': (
        *('row_length', 'rows_per_micro', 'remat', 'chunk', 'epochs', 'minibatch', 'deepest'),
        *('entropy', 'old_logprobs', 'importance_cap'),
    ),
    'critic': ('trunk', 'lora_rank'),
    'reward': ('information',),
}


def essence(cfg: Config) -> Config:
    """`cfg` with defaults for all that a plan does not depend on: configurations with equal essences have one plan.

    Raises:
      ValueError: the sizes of a model are not known.
    """

    cfg = with_copy(cfg)

    def section(field: dataclasses.Field):
        values = {name: getattr(getattr(cfg, field.name), name) for name in READ.get(field.name, ())}
        if field.name in ('policy', 'simulator') and (field.name == 'policy' or cfg.simulator.kind == 'model'):
            values['model'] = programs.preset(getattr(cfg, field.name).model)
        if field.name == 'simulator' and values.get('model') == programs.preset(cfg.policy.model):
            # of equal sizes, but no shared base
            values['model'] += '-other' * (cfg.simulator.model != cfg.policy.model)
        if field.name == 'rollout' and not cfg.rollout.max_turns:
            values['prompt'] = 'reason'  # the default asks for searches
        if field.name == 'rl':
            values |= {'kl': abs(cfg.rl.kl), 'algorithm': 'ppo' if cfg.rl.has_critic else 'reinforce'}
        return field.type(**values)

    sections = {f.name: section(f) for f in dataclasses.fields(Config) if f.name not in ('seed', 'mesh')}
    return Config(seed=0, mesh=cfg.mesh, **sections)


# ---------------------------------------------------------------- suggestions


def suggest(
    cfg: Config, hardware: Hardware, devices: list, compiler: str, work: Workload
) -> Iterator[tuple[Config, Plan]]:
    """Plans that fit on other meshes, with fewer rows a micro-batch and, if that fits, a slot for every trajectory.

    The weights are split over all devices, along heads and vocabulary over `tensor` of them; while models generate, in
    the same way, or as `generation_meshes` says.
    """
    policy, most = programs.model_config(cfg.policy.model), cfg.rollout.questions * cfg.rollout.group
    own = cfg.rollout.mesh, cfg.simulator.mesh
    pairs = dict.fromkeys((((), ()), own, *[generation_meshes(cfg, hardware.count)] * (hardware.count > 1)))
    for tensor, remat, pair in itertools.product((1, 2, 4, 8), dict.fromkeys((cfg.rl.remat, 'full')), pairs):
        fsdp = hardware.count // tensor
        if hardware.count % tensor or policy.num_heads % tensor or policy.hidden_size % fsdp:
            continue
        for slots in dict.fromkeys(((most, most), (cfg.rollout.slots, cfg.simulator.slots))):
            changed = _on_mesh(cfg, (1, fsdp, tensor), slots, pair, rows_per_micro=fsdp, remat=remat)
            made = plan(changed, hardware, devices, compiler, work)
            if made.fits:
                yield changed, made
                break


def generation_meshes(cfg: Config, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Meshes for rollout.mesh and simulator.mesh with few collectives: every device has the whole policy for its own
    trajectories, and the simulator is split along its heads."""
    cfg = with_copy(cfg)
    if cfg.simulator.kind != 'model' or share_base(cfg):
        return (count, 1, 1), ()
    tensor = math.gcd(count, programs.model_config(cfg.simulator.model).num_heads)
    return (count, 1, 1), (count // tensor, 1, tensor)


def fitted(cfg: Config, hardware: Hardware) -> Config:
    """`cfg` on a mesh of all devices of the target: `fsdp` is as large as divides the models, `data` takes the rest."""
    if -1 in cfg.mesh or math.prod(cfg.mesh) == hardware.count:
        return cfg
    names = {cfg.policy.model} | ({cfg.simulator.model} if cfg.simulator.kind == 'model' else set())
    tensor = math.gcd(cfg.mesh[2], hardware.count)
    fsdp = math.gcd(hardware.count // tensor, *(programs.model_config(name).hidden_size for name in names))
    data = hardware.count // tensor // fsdp
    rows = max(-(-cfg.rl.rows_per_micro // (data * fsdp)), 1) * data * fsdp
    return _on_mesh(cfg, (data, fsdp, tensor), (cfg.rollout.slots, cfg.simulator.slots), rows_per_micro=rows)


def _on_mesh(cfg: Config, mesh: tuple[int, int, int], slots: tuple[int, int], meshes=((), ()), **rl) -> Config:
    """`cfg` on another mesh, with these slots, and meshes to generate on, of policy and simulator."""
    parts = mesh[0] * mesh[1]
    policy, simulator = (max(count // parts, 1) * parts if count else 0 for count in slots)
    return dataclasses.replace(
        cfg,
        mesh=mesh,
        rl=dataclasses.replace(cfg.rl, **rl),
        rollout=dataclasses.replace(cfg.rollout, slots=policy, mesh=meshes[0]),
        simulator=dataclasses.replace(cfg.simulator, slots=simulator, mesh=meshes[1]),
    )


def options(changed: Config, cfg: Config) -> str:
    """The command line that turns `cfg` into `changed`."""
    said = ['--config.mesh=' + listed(changed.mesh)]
    engines = itertools.product(('rollout', 'simulator'), ('slots', 'mesh'))
    for section, name in (('rl', 'rows_per_micro'), ('rl', 'remat'), *engines):
        new, old = (getattr(getattr(c, section), name) for c in (changed, cfg))
        if new != old:
            said.append(f'--config.{section}.{name}={listed(new) if name == "mesh" else new}')
    return ' '.join(said)


def listed(mesh: tuple[int, ...]) -> str:
    """A mesh as an option's value."""
    return ','.join(map(str, mesh)) or "'()'"


# ---------------------------------------------------------------- hours and prices


def expected_seconds(made: Plan, part: str = '') -> float:
    """Expected seconds of a step, or of its programs whose name contains `part`."""
    return sum(sum(need.expected.values()) * made.times[need.name] for need in made.needs if part in need.name)


def dollars(seconds: float, hardware: Hardware, cfg: Config) -> float:
    return seconds / 3600 * hardware.count * getattr(cfg.prices, hardware.chip.price)
