"""The planner: what a run of reinforcement learning takes of every device, known before it is started.

Its programs (plan/programs.py) are compiled for the target, by its own compiler where that is installed
(plan/compiled.py). Memory is the compiler's figure: what a program needs at its peak, and what lies beside it
meanwhile. The least times are limits, which no program reaches: arithmetic at the chip's peak, bytes that must move at
its bandwidths, whichever takes longest. The expected ones are of what the compiled program does: its kernels' bytes,
their number, its collectives, at what a chip was seen to reach (plan/hardware.py), called as often as a schedule
played with the workload calls it (plan/schedule.py).
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
from zerosearch_jax.train.config import Config
from zerosearch_jax.weights import download

RESERVE = 0.08  # of a device's memory, for what no program accounts for: the runtime, fragments, collectives' buffers


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """One compiled program: bytes of each device, and seconds of one run of it."""

    name: str
    arguments: int
    small: int  # of its arguments, those that the plan counts nowhere else
    own: int  # temporaries and results
    refused: bool
    seconds: Mapping[str, float]  # 'arithmetic', 'memory', 'links': each at the data sheet's limit
    expected: Mapping[str, float]  # of these what no other hides, and 'launches' and 'collectives'; they add up
    received: Mapping[str, float]  # from other devices, by mesh axes

    @property
    def min_seconds(self) -> float:
        return max(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs of each device, and how long a step takes at least."""

    resident: Mapping[str, int]  # bytes that are there all the time
    generating: Mapping[str, int]  # bytes that are there as long as policy and simulator generate
    needs: tuple[ProgramCost, ...]
    slots: Mapping[str, int]
    loads: Mapping[str, Mapping[str, int]]  # of the engines: schedule.play
    trajectories: int  # of a step
    times: Mapping[str, float]  # that a step runs each program
    mesh: tuple[int, ...]  # data, fsdp, tensor
    compiler: str
    memory: int  # of a device

    def beside(self, need: ProgramCost) -> int:
        """What is in memory while a program runs, and none of its arguments."""
        generates = need.name.split(':')[0] in self.slots
        there = sum(self.resident.values()) + sum(self.generating.values()) * generates
        return max(there - (need.arguments - need.small), 0)

    def peak_of(self, need: ProgramCost) -> int:
        """Bytes of a device while a program runs."""
        return self.beside(need) + need.arguments + need.own

    @property
    def peak(self) -> int:
        return max(map(self.peak_of, self.needs))

    @property
    def spare(self) -> int:
        """What is left below the reserve; negative: so much is missing."""
        return self.usable - self.peak

    @property
    def usable(self) -> int:
        return int(self.memory * (1 - RESERVE))

    def slots_that_fit(self, engine: str) -> int:
        """Slots of one engine, were its cache all that could be larger; equally many on each part of the mesh."""
        parts, name = self.mesh[0] * self.mesh[1], f'{engine} cache'
        beside = [need for need in self.needs if name in self.resident or need.name.split(':')[0] in self.slots]
        room = self.usable - max(map(self.peak_of, beside))
        share = room / (self.resident | self.generating)[name]
        return max(int(self.slots[engine] * (1 + share)) // parts * parts, 0)

    def useful_slots(self, engine: str) -> int:
        """As many as fit, and as all trajectories in all of its roles can use."""
        parts = self.mesh[0] * self.mesh[1]
        return min(self.slots_that_fit(engine), -(-self.trajectories // parts) * parts * len(engine.split(' and ')))

    @property
    def fits(self) -> bool:
        return self.spare >= 0 and not any(need.refused for need in self.needs)

    def seconds(self, part: str = '') -> float:
        """The least of a step, or of those of its programs whose name holds `part`."""
        return sum(need.min_seconds * self.times[need.name] for need in self.needs if part in need.name)


def plan(cfg: Config, hardware: Hardware, devices: list, compiler: str, work: Workload | None = None) -> Plan:
    """Compiles the run's programs for these devices, and adds up."""
    run = programs.run_programs(cfg, sharding.make_mesh(cfg.mesh, devices))
    work = work or Workload.of(cfg)
    loads = _loads(cfg, run, work)
    needs, cache = [], download.cache_dir() / 'plans'
    with jax.set_mesh(run.mesh):
        for program in run.programs:
            progress.log(f'compiling {program.name}')
            lowered = program.traced.lower()
            made = compiled.measure(lowered, run.mesh, f'{compiler} {hardware}', cache, program.turns)
            arguments = max(made.arguments, program.arguments)  # a refused one names none
            engine = program.name.split(':')[0]
            read = _written(loads[engine], run, engine) if engine in loads else 1.0
            seconds = _least(program, made, read, hardware, run.mesh.size)
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
        compiler,
        hardware.memory,
    )


def _loads(cfg: Config, run: programs.Run, work: Workload) -> dict[str, Mapping[str, int]]:
    """How often the run's engines are called in a step, and how full they are (schedule.play)."""
    trajectories = schedule.episodes(cfg, work)
    others = {'search': {'simulator': len(trajectories)}}  # who has no engine answers at once

    def extends(name: str, tokens: list[int]) -> int:
        one = run.extends.get(name, programs.Extend(1, 1))
        return -(-sum(-(-count // one.width) for count in tokens) // one.rows)

    modelled = {role for roles in run.engines.values() for role in roles}
    engines = dict(run.engines) if 'simulator' in modelled else {**run.engines, **others}
    counts = schedule.play(trajectories, engines, cfg.rollout.decode_steps, extends)
    return {name: counts[name] for name in run.engines}


def _written(load: Mapping[str, int], run: programs.Run, engine: str) -> float:
    """The share of an engine's cache that a call of `decode` finds written by rows that decode."""
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
        'links': sum(made.received.values()) / (chip.links_gbs / 2 * 1e9),  # in, while as much goes out
    }


def _expected(
    made: compiled.Compiled, unread: float, least: Mapping[str, float], hardware: Hardware, standin: bool
) -> dict[str, float]:
    """Products of matrices take the longer of arithmetic and bytes, other kernels their bytes, all kernels their start.

    What moves between devices does so meanwhile. A stand-in's bytes are not the target's: then the least are taken.
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
    """How often a step runs each program; of learning, as many whole batches as its tokens fill."""
    rl, own = cfg.rl, cfg.rollout
    new = min(work.sampled + work.searches * own.observation_tokens, own.response_tokens)
    share = min(max((rl.row_length - own.prompt_tokens) / max(new, 1), 1), own.group)  # samples beside one prompt
    longest = own.prompt_tokens + own.response_tokens
    rows = (own.prompt_tokens / share + new) / rl.row_length  # of a trajectory, packed
    used = min(rows * (rl.row_length // longest), 1.0)  # empty micro-batches are skipped
    updates = rl.epochs * -(-own.questions * own.group // programs.minibatch(cfg))
    times = dict.fromkeys(('reference', 'old log-probs', 'critic: values'), used)
    times |= dict.fromkeys(('update', 'critic: update'), used * updates)
    for engine, load in loads.items():
        times[f'{engine}: prompts and observations'] = load['extends']
        times[f'{engine}: decoding'] = load['decodes']
    return times


# ---------------------------------------------------------------- suggestions


def suggest(
    cfg: Config, hardware: Hardware, devices: list, compiler: str, work: Workload
) -> Iterator[tuple[Config, Plan]]:
    """Plans on other meshes, with fewer rows a micro-batch and a slot for every trajectory: those that fit, as found.

    The weights are split over all devices, `tensor` of them at a time along heads and vocabulary.
    """
    policy, most = programs.model_config(cfg.policy.model), cfg.rollout.questions * cfg.rollout.group
    for tensor, remat in itertools.product((1, 2, 4, 8), dict.fromkeys((cfg.rl.remat, 'full'))):
        fsdp = hardware.count // tensor
        if hardware.count % tensor or policy.num_heads % tensor or policy.hidden_size % fsdp:
            continue
        for slots in dict.fromkeys(((most, most), (cfg.rollout.slots, cfg.simulator.slots))):
            changed = _on_mesh(cfg, (1, fsdp, tensor), slots, rows_per_micro=fsdp, remat=remat)
            made = plan(changed, hardware, devices, compiler, work)
            if made.fits:
                yield changed, made
                break


def fitted(cfg: Config, hardware: Hardware) -> Config:
    """`cfg` on a mesh of all devices of the target: `fsdp` takes as many as divide the models, `data` the rest."""
    if -1 in cfg.mesh or math.prod(cfg.mesh) == hardware.count:
        return cfg
    names = {cfg.policy.model} | ({cfg.simulator.model} if cfg.simulator.kind == 'model' else set())
    tensor = math.gcd(cfg.mesh[2], hardware.count)
    fsdp = math.gcd(hardware.count // tensor, *(programs.model_config(name).hidden_size for name in names))
    data = hardware.count // tensor // fsdp
    rows = max(-(-cfg.rl.rows_per_micro // (data * fsdp)), 1) * data * fsdp
    return _on_mesh(cfg, (data, fsdp, tensor), (cfg.rollout.slots, cfg.simulator.slots), rows_per_micro=rows)


def _on_mesh(cfg: Config, mesh: tuple[int, int, int], slots: tuple[int, int], **rl) -> Config:
    parts = mesh[0] * mesh[1]
    policy, simulator = (max(count // parts, 1) * parts if count else 0 for count in slots)
    return dataclasses.replace(
        cfg,
        mesh=mesh,
        rl=dataclasses.replace(cfg.rl, **rl),
        rollout=dataclasses.replace(cfg.rollout, slots=policy),
        simulator=dataclasses.replace(cfg.simulator, slots=simulator),
    )


def options(changed: Config, cfg: Config) -> str:
    """The command line that turns `cfg` into `changed`."""
    said = ['--config.mesh=' + ','.join(map(str, changed.mesh))]
    for section, name in (('rl', 'rows_per_micro'), ('rl', 'remat'), ('rollout', 'slots'), ('simulator', 'slots')):
        new, old = (getattr(getattr(c, section), name) for c in (changed, cfg))
        if new != old:
            said.append(f'--config.{section}.{name}={new}')
    return ' '.join(said)


# ---------------------------------------------------------------- hours and prices


def expected_seconds(made: Plan, part: str = '') -> float:
    """Seconds of a step, or of those of its programs whose name holds `part`."""
    return sum(sum(need.expected.values()) * made.times[need.name] for need in made.needs if part in need.name)


def dollars(seconds: float, hardware: Hardware, cfg: Config) -> float:
    return seconds / 3600 * hardware.count * getattr(cfg.prices, hardware.chip.price)
