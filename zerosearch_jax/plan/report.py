"""Prints a plan: a table of its programs, whether it fits, how long it takes, what limits it and what to change."""

import math
from collections.abc import Iterator

from zerosearch_jax.plan.hardware import Hardware
from zerosearch_jax.plan.planner import RESERVE, Plan, ProgramCost, dollars, expected_seconds, generation_meshes, listed
from zerosearch_jax.plan.schedule import Workload
from zerosearch_jax.train.config import Config


def table(made: Plan, hardware: Hardware, cfg: Config, work: Workload) -> str:
    """The plan as Markdown, with its verdict."""
    shape, *others = ('x'.join(map(str, mesh)) for mesh in (made.mesh, *made.meshes.values()))
    apart = [f'{engine} on {other}' for engine, other in zip(made.meshes, others, strict=True) if other != shape]
    shape += f' ({", ".join(apart)})' * bool(apart)
    lines = [
        f'{cfg.policy.model} on {hardware}, mesh {shape}, by {made.compiler}; GiB of each device',
        '',
        '| always in memory | GiB |',
        '|---|---|',
        *(f'| {name} | {_gib(count)} |' for name, count in made.resident.items()),
        *(f'| {name}, while models generate | {_gib(count)} |' for name, count in made.generating.items()),
        '',
        '| program | arguments | else in memory | temporaries, results | peak | arithmetic ms | memory ms | links ms | '
        'expected ms | of which launches of kernels, of collectives | calls | received |',
        f'{"|---" * 12}|',
        *(_row(need, made) for need in made.needs),
        '',
    ]
    said = (*_durations(made, hardware, cfg, work), *_dtypes(hardware, cfg), binding(made, cfg))
    return '\n'.join([*lines, *_verdict(made, cfg), '', *said])


def _gib(count: float) -> str:
    return f'{count / 2**30:.2f}'


def _row(need: ProgramCost, made: Plan) -> str:
    memory = map(_gib, (need.arguments, made.beside(need), need.own, made.peak_of(need)))
    times = (f'{1000 * need.seconds[part]:.2f}' for part in ('arithmetic', 'memory', 'links'))
    starts = ', '.join(f'{1000 * need.expected[part]:.2f}' for part in ('launches', 'collectives'))
    expected = f'{1000 * sum(need.expected.values()):.2f}', starts, f'{made.times[need.name]:.3g}'
    moved = ', '.join(f'{axes} {_gib(count)}' for axes, count in need.received.items()) or '-'
    return f'| {" | ".join([need.name + " (refused)" * need.refused, *memory, *times, *expected, moved])} |'


def _verdict(made: Plan, cfg: Config) -> Iterator[str]:
    spare = f'{_gib(made.peak)} of {_gib(made.memory)} GiB, {RESERVE:.0%} of which are a reserve'
    if made.fits:
        slots = ', '.join(f'{made.slots_that_fit(role)} of {role}' for role in made.slots)
        yield f'It fits: {spare}. The most slots that fit: {slots} (one of these); trajectories: {made.trajectories}.'
    else:
        missing = f'{_gib(max(-made.spare, 0))} GiB are missing; try {", ".join(advice(made, cfg))}'
        yield f'It does not fit: {spare}. {missing}.'


def _durations(made: Plan, hardware: Hardware, cfg: Config, work: Workload) -> Iterator[str]:
    parts = dict.fromkeys(need.name.split(':')[0] for need in made.needs)
    yield (
        f'A step of {made.trajectories} trajectories, each with {work.searches:g} searches, {work.sampled:g} sampled '
        f'tokens and {work.written:g} tokens written a search, takes at least {made.seconds():.1f} s; expected are '
        f'{expected_seconds(made):.1f} s: {", ".join(f"{x} {expected_seconds(made, x):.1f}" for x in parts)}.'
    )
    seconds = expected_seconds(made) * cfg.rl.steps
    searches = work.searches * cfg.rollout.questions * cfg.rollout.group * cfg.rl.steps
    api = searches * cfg.prices.search_query
    price = f'${dollars(seconds, hardware, cfg):.2f}'
    if not getattr(cfg.prices, hardware.chip.price):
        price = f'no price is set (--config.prices.{hardware.chip.price}=DOLLARS)'
    yield (
        f'{cfg.rl.steps} steps: {made.seconds() * cfg.rl.steps / 3600:.1f} h at least, {seconds / 3600:.1f} h '
        f'expected, {hardware.count * seconds / 3600:.0f} device-hours: {price}. '
        f'{searches:,.0f} searches at a search API: ${api:.2f}.'
    )


def _dtypes(hardware: Hardware, cfg: Config) -> Iterator[str]:
    """What to change if the configuration asks for bfloat16 and the chip has none."""
    sections = {'policy': cfg.policy} | ({'simulator': cfg.simulator} if cfg.simulator.kind == 'model' else {})
    asked = [name for name, section in sections.items() if section.dtype == 'bfloat16']
    if asked and not hardware.chip.bfloat16:
        yield (
            f'{hardware.name} has no bfloat16: products are computed in float32, which is counted here, after '
            'conversions, which are not counted; set '
            f'{" and ".join(f"{name}.dtype=float32" for name in asked)}, or use a chip that has bfloat16.'
        )


def advice(made: Plan, cfg: Config) -> Iterator[str]:
    """Changes that lower the memory of the program with the largest peak."""
    data, fsdp, tensor = made.mesh
    need = max(made.needs, key=made.peak_of)
    learning = need.name.split(':')[0] not in made.slots
    if learning and need.own > made.resident['optimizer'] / 2 and cfg.rl.remats[0] != 'full':
        yield 'rl.remat=full'
    if learning and cfg.rl.rows_per_micro > data * fsdp:
        yield f'rl.rows_per_micro={data * fsdp}'
    if learning and fsdp > 8:  # without `tensor`, embedding and head are whole on every device
        yield f'mesh={data},{fsdp // 4},{4 * tensor}'
    there = made.resident if learning else made.resident | made.generating
    caches = sum(count for name, count in there.items() if name.endswith('cache'))
    if caches > made.memory / 5:
        yield 'fewer rollout.slots or simulator.slots'
    if not cfg.policy.lora_rank:
        yield 'policy.lora_rank=32'
    yield f'more devices (mesh={data},{2 * fsdp},{tensor})'


MOVING = 0.2  # share of a program's time from which another mesh to generate on is proposed
BOUND = {  # parts of ProgramCost.expected
    'arithmetic': 'arithmetic',
    'memory': 'bytes of memory',
    'links': 'bytes between devices',
    'launches': 'kernel launches',
    'collectives': 'launches of collectives',
}


def binding(made: Plan, cfg: Config) -> str:
    """One sentence: which program takes most of a step, what limits it, and what to change."""
    total = {need.name: sum(need.expected.values()) * made.times[need.name] for need in made.needs}
    need = max(made.needs, key=lambda need: total[need.name])
    part = max(need.expected, key=need.expected.get)
    engine, share = need.name.split(':')[0], total[need.name] / sum(total.values())
    return f'{share:.0%} of a step is {need.name}, limited by {BOUND[part]}: {_remedy(made, cfg, engine, need, part)}.'


def _remedy(made: Plan, cfg: Config, engine: str, need: ProgramCost, part: str) -> str:
    if engine in made.slots:
        slots, load, useful = made.slots[engine], made.loads[engine], made.useful_slots(engine)
        rows = load['rows'] / load['decodes']
        said = f'{rows:.0f} of {slots} slots decode in a call'
        if part == 'arithmetic':
            return f'{said}; shorter prompts and observations, or more devices, shorten it'
        if useful > 1.25 * slots:
            sections = [{'policy': 'rollout'}.get(role, role) for role in engine.split(' and ')]
            slots = ' and '.join(f'{section}.slots={useful // len(sections)}' for section in sections)
            return f'{said}; more slots cost little and need fewer calls: set {slots}'
        if rows < slots / 2:
            return f'{said}; a larger rollout.questions costs little more'
        section = 'simulator' if engine == 'simulator' else 'rollout'
        better = generation_meshes(cfg, math.prod(made.mesh))[section == 'simulator']
        moving = sum(need.expected[part] for part in ('links', 'collectives')) / sum(need.expected.values())
        if moving > MOVING and better != made.meshes[engine]:
            return f'{said}; {moving:.0%} of its time is exchange, {section}.mesh={listed(better)} has less, if it fits'
    if part in ('links', 'collectives'):
        return 'a mesh with fewer parts along fsdp and more along data has fewer, if the weights fit'
    if part == 'arithmetic' and cfg.rl.remats[0] != 'none':
        return f'rl.remat={"none" if cfg.rl.remat == "dots" else "dots"} recomputes less, if it fits'
    return 'more devices shorten it'
