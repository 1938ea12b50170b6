"""The published experiments, planned: policies x simulators on some hardware, as rows of Markdown (docs/plans.md)."""

import dataclasses
import itertools

import jax

from zerosearch_jax.plan import hardware, planner, report
from zerosearch_jax.plan.hardware import Hardware
from zerosearch_jax.train.config import Config

POLICIES = ('qwen2.5-3b', 'qwen2.5-7b', 'llama3.2-3b')
SIMULATORS = ('qwen2.5-3b', 'qwen2.5-7b', 'qwen2.5-14b')
SEARCHES, GPUS, HOURS, PRICE = 64_000, 4, 12, 70.80  # of the 14B simulator: arXiv 2505.04588, appendix D


def table(cfg: Config, target: Hardware, work: planner.Workload) -> str:
    """A row for every policy and simulator, weights split over all devices; on A100s the published cost beside ours."""
    found, compiler = hardware.devices(target)
    made = plans(cfg, target, found, compiler, work)
    lines = [f'## {target}', '', f'By {compiler}, jax {jax.__version__}.', '', HEAD]
    lines += [_row(each, target, experiment(cfg, *models, target.count)) for models, each in made.items()]
    if target == hardware.parse(f'a100-80gb:{GPUS}'):
        models = POLICIES[-1], SIMULATORS[-1]
        lines += ['', _searches(made[models], target, experiment(cfg, *models, GPUS), work)]
    return '\n'.join(lines)


def plans(
    cfg: Config, target: Hardware, found: list, compiler: str, work: planner.Workload
) -> dict[tuple[str, str], planner.Plan]:
    """The plan of every (policy, simulator): a program is compiled for its own model alone, so for each model once."""
    made = [
        planner.plan(experiment(cfg, *models, target.count), target, found, compiler, work)
        for models in zip(POLICIES, SIMULATORS, strict=True)
    ]
    alone, simulators = dict(zip(POLICIES, made, strict=True)), dict(zip(SIMULATORS, made, strict=True))
    return {
        (policy, name): combined(alone[policy], simulators[name])
        for policy, name in itertools.product(alone, simulators)
    }


def experiment(cfg: Config, policy: str, simulator: str, count: int) -> Config:
    """The published experiment with these models, on so many devices."""
    cfg = _sized(cfg, count)
    return dataclasses.replace(
        cfg,
        policy=dataclasses.replace(cfg.policy, model=policy),
        simulator=dataclasses.replace(cfg.simulator, model=simulator),
    )


def _sized(cfg: Config, count: int) -> Config:
    return dataclasses.replace(
        cfg,
        mesh=(1, count, 1),
        rl=dataclasses.replace(cfg.rl, rows_per_micro=count),
        rollout=dataclasses.replace(cfg.rollout, slots=cfg.rollout.slots and max(cfg.rollout.slots, count)),
        simulator=dataclasses.replace(cfg.simulator, slots=cfg.simulator.slots and max(cfg.simulator.slots, count)),
    )


def combined(policy: planner.Plan, simulator: planner.Plan) -> planner.Plan:
    """The policy of one plan with the simulator of another."""

    def both(name: str) -> dict:
        own, other = getattr(policy, name), getattr(simulator, name)
        return {k: v for k, v in own.items() if 'simulator' not in k} | {
            k: v for k, v in other.items() if 'simulator' in k
        }

    needs = [need for need in policy.needs if 'simulator' not in need.name]
    needs += [need for need in simulator.needs if 'simulator' in need.name]
    return dataclasses.replace(
        policy, needs=tuple(needs), **{name: both(name) for name in ('resident', 'slots', 'times')}
    )


def _row(made: planner.Plan, target: Hardware, cfg: Config) -> str:
    largest = max(made.needs, key=made.peak_of).name
    verdict = 'fits'
    if not made.fits:
        verdict = f'**short by {max(-made.spare, 0) / 2**30:.1f}**; try {", ".join(report.advice(made, cfg))}'
    seconds = planner.expected_seconds(made) * cfg.rl.steps
    price = planner.dollars(seconds, target, cfg)
    cells = (
        cfg.policy.model,
        cfg.simulator.model,
        f'{made.peak / 2**30:.1f} of {made.memory / 2**30:.0f}',
        largest,
        verdict,
        f'{made.seconds():.0f}',
        f'{seconds / 3600:.1f}',
        f'${price:.0f}' if price else '-',
    )
    return f'| {" | ".join(cells)} |'


HEAD = (
    '| policy | simulator | GiB at the peak | of which program | verdict | at least s a step | h of the run | price |\n'
    '|---|---|---|---|---|---|---|---|'
)


def _searches(made: planner.Plan, target: Hardware, cfg: Config, work: planner.Workload) -> str:
    """The published cost of 64,000 searches by the 14B simulator beside that of our programs on the same GPUs."""
    steps = SEARCHES / (cfg.rollout.questions * cfg.rollout.group * work.searches)
    at_least = made.seconds('simulator') * steps
    likely = planner.expected_seconds(made, 'simulator') * steps
    prices = (planner.dollars(seconds, target, cfg) for seconds in (at_least, likely))
    return (
        f'{SEARCHES:,} searches by {SIMULATORS[-1]} on {target}, {work.written:g} tokens each: published {HOURS} h and '
        f'${PRICE:.2f}; of our programs {at_least / 3600:.1f} h and ${next(prices):.2f} at the limits of the chip, '
        f'{likely / 3600:.1f} h and ${next(prices):.2f} expected; '
        f'a search API: ${SEARCHES * cfg.prices.search_query:.2f}.'
    )
