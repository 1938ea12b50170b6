"""The planner: what a run of reinforcement learning takes of every device, known before it is started.

Its programs (plan/programs.py) are compiled for the target, by its own compiler where that is installed
(plan/compiled.py). Memory is the compiler's figure: what a program needs at its peak, and what lies beside it
meanwhile. Times are limits, which no program reaches: arithmetic at the chip's peak, bytes that must move at its
bandwidths, whichever takes longest.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import jax

from zerosearch_jax import progress, sharding
from zerosearch_jax.plan import compiled, programs
from zerosearch_jax.plan.hardware import Hardware
from zerosearch_jax.train.config import Config
from zerosearch_jax.weights import download

RESERVE = 0.08  # of a device's memory, for what no program accounts for: the runtime, fragments, collectives' buffers
# what programs reach of these limits, by their names: on an H100, with a model of 1.5B (docs/measurements.md)
REACHED = {'prompts': 0.27, 'decoding': 0.36, 'learning': 0.35}
REACHED_SAID = f'an H100 reached ({", ".join(f"{kind} {share:.0%}" for kind, share in REACHED.items())})'


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a trajectory does, on average; nobody knows it before the run."""

    searches: float = 1.0  # in the published run 64,000 searches in 200 steps of 320 trajectories
    sampled: float = 400.0  # tokens that the policy samples
    written: float = 0.0  # tokens that the simulator writes a search; 0: all that it may

    def __post_init__(self):
        if min(self.searches, self.sampled, self.written) < 0:
            raise ValueError('searches, sampled and written tokens must not be negative')

    @classmethod
    def of(cls, cfg: Config, **given) -> 'Workload':
        work = cls(**{name: value for name, value in given.items() if value is not None})
        return dataclasses.replace(work, written=work.written or float(cfg.simulator.max_tokens))


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """One compiled program: bytes of each device, and the least seconds of one run of it (of decoding, one token's)."""

    name: str
    arguments: int
    small: int  # of its arguments, those that the plan counts nowhere else
    own: int  # temporaries and results
    refused: bool
    seconds: Mapping[str, float]  # 'arithmetic', 'memory', 'links'
    received: Mapping[str, float]  # from other devices, by mesh axes

    @property
    def min_seconds(self) -> float:
        return max(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs of each device, and how long a step takes at least."""

    resident: Mapping[str, int]  # bytes that are there all the time
    copy: int  # bytes of the weights that the policy generates with, there as long as policy and simulator generate
    needs: tuple[ProgramCost, ...]
    slots: Mapping[str, int]
    times: Mapping[str, float]  # that a step runs each program
    mesh: tuple[int, ...]  # data, fsdp, tensor
    compiler: str
    memory: int  # of a device

    def beside(self, need: ProgramCost) -> int:
        """What is in memory while a program runs, and none of its arguments."""
        generates = need.name.split(':')[0] in self.slots
        return max(sum(self.resident.values()) + self.copy * generates - (need.arguments - need.small), 0)

    def peak_of(self, need: ProgramCost) -> int:
        """Bytes of a device while a program runs."""
        return self.beside(need) + need.arguments + need.own

    @property
    def peak(self) -> int:
        return max(map(self.peak_of, self.needs))

    @property
    def spare(self) -> int:
        """What is left below the reserve; negative: so much is missing."""
        return int(self.memory * (1 - RESERVE)) - self.peak

    def slots_that_fit(self, role: str) -> int:
        """Slots of one role, were its cache all that could be larger."""
        return max(int(self.slots[role] * (1 + self.spare / self.resident[f'{role} cache'])), 0)

    @property
    def fits(self) -> bool:
        return self.spare >= 0 and not any(need.refused for need in self.needs)

    def seconds(self, part: str = '') -> float:
        """The least of a step, or of those of its programs whose name holds `part`."""
        return sum(need.min_seconds * self.times[need.name] for need in self.needs if part in need.name)


def plan(cfg: Config, hardware: Hardware, devices: list, compiler: str, work: Workload | None = None) -> Plan:
    """Compiles the run's programs for these devices, and adds up."""
    run = programs.run_programs(cfg, sharding.make_mesh(cfg.mesh, devices))
    needs, cache = [], download.cache_dir() / 'plans'
    with jax.set_mesh(run.mesh):
        for program in run.programs:
            progress.log(f'compiling {program.name}')
            made = compiled.measure(program.traced.lower(), run.mesh, f'{compiler} {hardware}', cache)
            arguments = max(made.arguments, program.arguments)  # a refused one names none
            seconds = _seconds(program, made, hardware, run.mesh.size)
            sizes = arguments, arguments - program.arguments, made.own + program.more
            needs.append(ProgramCost(program.name, *sizes, made.refused, seconds, made.received))
    times = _times(cfg, run, work or Workload.of(cfg))
    return Plan(
        run.resident, run.copy, tuple(needs), run.slots, times, run.mesh.devices.shape, compiler, hardware.memory
    )


def _seconds(program: programs.Program, made: compiled.Compiled, hardware: Hardware, count: int) -> dict[str, float]:
    chip = hardware.chip
    return {
        'arithmetic': compiled.flops(program.traced, program.turns) / count / (chip.tflops * 1e12),
        'memory': program.moved / (chip.memory_gbs * 1e9),
        'links': sum(made.received.values()) / (chip.links_gbs / 2 * 1e9),  # in, while as much goes out
    }


def _times(cfg: Config, run: programs.Run, work: Workload) -> dict[str, float]:
    """How often a step runs each program, all its slots and rows in use; of decoding, its tokens a slot."""
    trajectories = cfg.rollout.questions * cfg.rollout.group
    updates = cfg.rl.epochs * -(-trajectories // (cfg.rl.minibatch or trajectories))
    tokens = cfg.rollout.prompt_tokens + work.sampled + work.searches * cfg.rollout.observation_tokens
    used = min(
        tokens / (cfg.rollout.prompt_tokens + cfg.rollout.response_tokens), 1.0
    )  # empty micro-batches are skipped
    times = {'reference': used, 'critic: values': used} | dict.fromkeys(('update', 'critic: update'), used * updates)
    read = {
        'policy': cfg.rollout.prompt_tokens / cfg.rollout.group + work.searches * cfg.rollout.observation_tokens,
        'simulator': work.searches * cfg.simulator.prompt_tokens,
    }
    written = {'policy': work.sampled, 'simulator': work.searches * work.written}
    for role, slots in run.slots.items():
        times[f'{role}: prompts and observations'] = trajectories * read[role] / run.extend_tokens[role]
        times[f'{role}: decoding'] = trajectories * written[role] / slots
    return times


# ---------------------------------------------------------------- suggestions


def suggest(
    cfg: Config, hardware: Hardware, devices: list, compiler: str, work: Workload
) -> Iterator[tuple[Config, Plan]]:
    """Plans on other mesh shapes and with fewer rows a micro-batch, those that fit, as they are found.

    The weights are split over all devices, `tensor` of them at a time along heads and vocabulary.
    """
    policy = programs.model_config(cfg.policy.model)
    for tensor, remat in itertools.product((1, 2, 4, 8), dict.fromkeys((cfg.rl.remat, 'full'))):
        fsdp = hardware.count // tensor
        if hardware.count % tensor or policy.num_heads % tensor or policy.hidden_size % fsdp:
            continue
        changed = _on_mesh(cfg, (1, fsdp, tensor), rows_per_micro=fsdp, remat=remat)
        made = plan(changed, hardware, devices, compiler, work)
        if made.fits:
            yield changed, made


def fitted(cfg: Config, hardware: Hardware) -> Config:
    """`cfg` on a mesh of all devices of the target: `fsdp` takes as many as divide the models, `data` the rest."""
    if -1 in cfg.mesh or math.prod(cfg.mesh) == hardware.count:
        return cfg
    names = {cfg.policy.model} | ({cfg.simulator.model} if cfg.simulator.kind == 'model' else set())
    tensor = math.gcd(cfg.mesh[2], hardware.count)
    fsdp = math.gcd(hardware.count // tensor, *(programs.model_config(name).hidden_size for name in names))
    data = hardware.count // tensor // fsdp
    rows = max(-(-cfg.rl.rows_per_micro // (data * fsdp)), 1) * data * fsdp
    return _on_mesh(cfg, (data, fsdp, tensor), rows_per_micro=rows)


def _on_mesh(cfg: Config, mesh: tuple[int, int, int], **rl) -> Config:
    parts = mesh[0] * mesh[1]
    return dataclasses.replace(
        cfg,
        mesh=mesh,
        rl=dataclasses.replace(cfg.rl, **rl),
        rollout=dataclasses.replace(cfg.rollout, slots=_multiple(cfg.rollout.slots, parts)),
        simulator=dataclasses.replace(cfg.simulator, slots=_multiple(cfg.simulator.slots, parts)),
    )


def _multiple(slots: int, of: int) -> int:
    return max(slots // of, 1) * of


def options(changed: Config, cfg: Config) -> str:
    """The command line that turns `cfg` into `changed`."""
    said = ['--config.mesh=' + ','.join(map(str, changed.mesh))]
    for section, name in (('rl', 'rows_per_micro'), ('rl', 'remat'), ('rollout', 'slots'), ('simulator', 'slots')):
        new, old = (getattr(getattr(c, section), name) for c in (changed, cfg))
        if new != old:
            said.append(f'--config.{section}.{name}={new}')
    return ' '.join(said)


# ---------------------------------------------------------------- for people


def table(made: Plan, hardware: Hardware, cfg: Config, work: Workload) -> str:
    """The plan as Markdown, with its verdict."""
    shape = 'x'.join(map(str, made.mesh))
    lines = [
        f'{cfg.policy.model} on {hardware}, mesh {shape}, by {made.compiler}; GiB of each device',
        '',
        '| there all the time | |',
        '|---|---|',
        *(f'| {name} | {_gib(count)} |' for name, count in made.resident.items()),
        f'| as long as models generate: what the policy does so with | {_gib(made.copy)} |',
        '',
        '| program | arguments | beside them | its own | peak | arithmetic ms | memory ms | links ms | from others |',
        '|---|---|---|---|---|---|---|---|---|',
        *(_row(need, made) for need in made.needs),
        '',
    ]
    return '\n'.join([*lines, *_verdict(made, cfg), '', *_durations(made, hardware, cfg, work)])


def _gib(count: float) -> str:
    return f'{count / 2**30:.2f}'


def _row(need: ProgramCost, made: Plan) -> str:
    memory = map(_gib, (need.arguments, made.beside(need), need.own, made.peak_of(need)))
    times = (f'{1000 * need.seconds[part]:.2f}' for part in ('arithmetic', 'memory', 'links'))
    moved = ', '.join(f'{axes} {_gib(count)}' for axes, count in need.received.items()) or '-'
    return f'| {" | ".join([need.name + " (refused)" * need.refused, *memory, *times, moved])} |'


def _verdict(made: Plan, cfg: Config) -> Iterator[str]:
    spare = f'{_gib(made.peak)} of {_gib(made.memory)} GiB, {RESERVE:.0%} of which are a reserve'
    if made.fits:
        slots = ', '.join(f'{made.slots_that_fit(role)} of {role}' for role in made.slots)
        yield f'It fits: {spare}. Slots that would fit, either of: {slots}.'
    else:
        missing = f'{_gib(max(-made.spare, 0))} GiB are missing; try {", ".join(advice(made, cfg))}'
        yield f'It does not fit: {spare}. {missing}.'


def _durations(made: Plan, hardware: Hardware, cfg: Config, work: Workload) -> Iterator[str]:
    yield (
        f'A step of {cfg.rollout.questions * cfg.rollout.group} trajectories, each with {work.searches:g} searches, '
        f'{work.sampled:g} sampled tokens and {work.written:g} tokens written a search, takes at least '
        f'{made.seconds():.1f} s: policy {made.seconds("policy"):.1f}, simulator {made.seconds("simulator"):.1f}, '
        f'reference {made.seconds("reference"):.1f}, update {made.seconds("update"):.1f}.'
    )
    seconds = expected_seconds(made) * cfg.rl.steps
    searches = work.searches * cfg.rollout.questions * cfg.rollout.group * cfg.rl.steps
    api = searches * cfg.prices.search_query
    price = f'${dollars(seconds, hardware, cfg):.2f}'
    if not getattr(cfg.prices, hardware.chip.price):
        price = f'no price is set (--config.prices.{hardware.chip.price}=DOLLARS)'
    yield (
        f'{cfg.rl.steps} steps: {made.seconds() * cfg.rl.steps / 3600:.1f} h at least; {seconds / 3600:.1f} h at the '
        f'share of the limits that {REACHED_SAID}, {hardware.count * seconds / 3600:.0f} device-hours: {price}. '
        f'{searches:,.0f} searches at a search API: ${api:.2f}.'
    )


def expected_seconds(made: Plan, part: str = '') -> float:
    """Seconds of a step, or of its programs whose name holds `part`, at the share of the limits that was reached."""

    def reached(name: str) -> float:
        return next((share for kind, share in REACHED.items() if kind in name), REACHED['learning'])

    return sum(
        need.min_seconds * made.times[need.name] / reached(need.name) for need in made.needs if part in need.name
    )


def dollars(seconds: float, hardware: Hardware, cfg: Config) -> float:
    return seconds / 3600 * hardware.count * getattr(cfg.prices, hardware.chip.price)


def advice(made: Plan, cfg: Config) -> Iterator[str]:
    """What would lower the need of the program that has the largest."""
    data, fsdp, tensor = made.mesh
    need = max(made.needs, key=made.peak_of)
    learning = need.name.split(':')[0] not in made.slots
    if learning and need.own > made.resident['optimizer'] / 2 and cfg.rl.remat != 'full':
        yield 'rl.remat=full'
    if learning and cfg.rl.rows_per_micro > data * fsdp:
        yield f'rl.rows_per_micro={data * fsdp}'
    if learning and fsdp > 8:  # embedding and head are whole on every device that has the whole vocabulary
        yield f'mesh={data},{fsdp // 4},{4 * tensor}'
    caches = sum(count for name, count in made.resident.items() if name.endswith('cache'))
    if caches > made.memory / 5:
        yield 'fewer rollout.slots or simulator.slots'
    if not cfg.policy.lora_rank:
        yield 'policy.lora_rank=32'
    yield f'more devices (mesh={data},{2 * fsdp},{tensor})'
