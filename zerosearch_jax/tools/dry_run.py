"""The dry run of a study: the memory, disk, time and money that each run needs, and the problems that would stop it.

The planner (plan/planner.py) gives memory and hours; it compiles for hardware that need not be present. Runs share a
plan if they have equal essences. The sizes of models are known from their names, without the network.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from zerosearch_jax import sharding
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.evaluate.methods import METHODS
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.plan import planner, programs
from zerosearch_jax.plan.hardware import Hardware
from zerosearch_jax.plan.planner import Plan, Workload
from zerosearch_jax.run import checkpoint
from zerosearch_jax.simulator.prompts import SIMULATOR_TEMPLATES, simulator_template
from zerosearch_jax.study.sweep import Study
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train.config import Config, with_copy

PAID = 'serpapi'  # the engine with the price config.prices.search_query for a search
HEAD = (
    '| run | policy | simulator | GiB at the peak | disk GiB | h | device-h | $ | real searches | $ for them |\n'
    '|---|---|---|---|---|---|---|---|---|---|'
)
NOTES = """
- Hours are forecasts of the planner, by {compiler}, jax {version}. A trajectory is assumed to search {work.searches:g}
  time and to sample {work.sampled:g} tokens, with {work.written:g} simulator tokens for each search. Time to start and
  to save is not included. An evaluation takes the policy's share of the time of as many trajectories.
- Disk is the maximum of checkpoints and exported weights that are on disk at once, in float32.
- $ uses {hour:g} an hour of {chip} (config.prices; 0: no price is set). A real search costs ${search:g} with the engine
  {paid!r} and nothing with other engines.
- Models are identified by the family and size in their ids; a run that starts checks that the hub has them.
- Published simulators that get requests in our wording, not that of their fine-tuning (simulator.template): {ours}."""


class Forecast(NamedTuple):
    """What a run needs, or several: peak bytes of a device, bytes of disk, time, money, searches of a real engine."""

    peak: int = 0
    disk: int = 0
    seconds: float = 0.0
    dollars: float = 0.0
    searches: float = 0.0
    fees: float = 0.0  # dollars for the searches

    def row(self, count: int, *names: str) -> str:
        hours = self.seconds / 3600
        cells = f'{self.peak / 2**30:.1f}', f'{self.disk / 2**30:.0f}', f'{hours:.1f}', f'{hours * count:.0f}'
        prices = f'{self.dollars:.0f}', f'{self.searches:,.0f}', f'{self.fees:.0f}'
        return f'| {" | ".join([*names, *cells, *prices])} |'


def dry_run(
    study: Study, runs: slice, target: Hardware, devices: list, compiler: str, plan: Callable = planner.plan
) -> tuple[str, list[str]]:
    """The needs of some runs of a study as a Markdown table, and one line for each problem that would stop a run.

    Args:
      study: its variants and seeds.
      runs: the slice of study.runs().
      target: the hardware of each run.
      devices: with `compiler`, the result of hardware.devices.
      plan: a function that plans a configuration.
    """
    planned = functools.cache(lambda cfg: plan(cfg, target, devices, compiler))
    base, found, rows, problems, ours = train_config.parse(study.base), [Forecast()], [], {}, set()
    for variant, seed in study.runs()[runs]:
        cfg = study.parse(variant, seed)
        asked, run = (cfg, _as_training(base, cfg)) if study.is_evaluation(variant) else (None, with_copy(cfg))
        sim, wrong, made = run.simulator, [*_unknown(run)], Forecast()
        if not wrong:
            run = planner.fitted(run, target)
            wrong = [*_misfits(run, devices)]
        if not wrong:
            made, spare = _forecast(planned(planner.essence(run)), run, asked, target)
            wrong = [f'{-spare / 2**30:.1f} GiB are missing on {target}'] * (spare < 0)
        searches = f'asked: {asked.evaluation.methods}' if asked else sim.model if sim.kind == 'model' else sim.kind
        found.append(made)
        rows.append(made.row(target.count, f'{variant} ({cfg.seed})', run.policy.model, searches))
        problems |= dict.fromkeys(f'{variant}: {text}' for text in wrong)
        if sim.kind == 'model' and 'Simulation_LLM' in sim.model and sim.template in SIMULATOR_TEMPLATES:
            ours.add(sim.model)
    total = Forecast(max(one.peak for one in found), *map(sum, list(zip(*found, strict=True))[1:]))
    rows.append(total.row(target.count, f'all {len(rows)}', '', ''))
    notes = NOTES.format(
        compiler=compiler,
        version=jax.__version__,
        work=Workload.of(base),
        hour=getattr(base.prices, target.chip.price),
        chip=target.name,
        search=base.prices.search_query,
        paid=PAID,
        ours=', '.join(sorted(ours)) or 'none',
    )
    return '\n'.join([f'On {target}, one after the other. Nothing was run.\n', HEAD, *rows, notes]), [*problems]


# ---------------------------------------------------------------- what would stop a run


def _unknown(run: Config) -> Iterator[str]:
    """Problems with names: unknown models and templates."""
    sim = run.simulator
    looks = [(programs.preset, run.policy.model)]
    looks += [(programs.preset, sim.model)] * (sim.kind == 'model')
    looks += [(simulator_template, sim.template)] * (sim.kind in ('model', 'endpoint'))
    for look, name in looks:
        try:
            look(name)
        except (ValueError, OSError) as error:
            yield str(error)


def _misfits(run: Config, devices: list) -> Iterator[str]:
    """Problems with sizes and token budgets; a word has at least one token."""
    own, sim = run.rollout, run.simulator
    tokens = {'policy': own.prompt_tokens + own.response_tokens}
    if sim.kind in ('model', 'self'):
        tokens['simulator'] = sim.prompt_tokens + sim.max_tokens
        for field, limit in (('simulator.max', sim.max_tokens), ('rollout.observation', own.observation_tokens)):
            if sim.documents * sim.words > limit:
                yield f'config.{field}_tokens = {limit}, but {sim.documents} documents of {sim.words} words have more'
    if own.max_turns and (least := 2 * own.turn_tokens + own.observation_tokens) > own.response_tokens:
        yield f'config.rollout.response_tokens = {own.response_tokens}, but a search and an answer need up to {least}'
    try:
        whole = sharding.make_mesh(run.mesh, devices)
        meshes = {'policy': (whole, sharding.regrouped(whole, own.mesh, 'config.rollout.mesh'))}
        if sim.kind == 'model':
            meshes['simulator'] = (sharding.regrouped(whole, sim.mesh, 'config.simulator.mesh'),)
    except ValueError as error:
        yield str(error)
        return
    for name, longest in tokens.items():
        model = programs.model_config((run.policy if sim.kind == 'self' else getattr(run, name)).model)
        if longest > model.max_position:
            yield f'config.{name}.model has {model.max_position} positions, but prompt and response may have {longest}'
        for shape in dict.fromkeys(mesh.devices.shape for mesh in meshes.get(name, ())):
            if model.hidden_size % shape[1] or model.num_heads % shape[2]:
                wide = f'{model.hidden_size} wide with {model.num_heads} heads'
                yield f'mesh {shape} does not divide config.{name}.model, {wide}'
    data, fsdp, _ = whole.devices.shape
    if run.rl.rows_per_micro % (data * fsdp):
        yield f'config.rl.rows_per_micro = {run.rl.rows_per_micro} is not a multiple of data x fsdp = {data * fsdp}'


# ---------------------------------------------------------------- what a run needs


def _as_training(base: Config, asked: evaluation.Config) -> Config:
    """A training whose policy generates as in the evaluation `asked`, so that one plan serves both."""
    simulator = dataclasses.replace(base.simulator, kind='engine' if asked.rollout.max_turns else 'none')
    rollout = asked.rollout if asked.rollout.max_turns else dataclasses.replace(asked.rollout, prompt='reason')
    return dataclasses.replace(base, policy=asked.policy, rollout=rollout, simulator=simulator)


def _forecast(made: Plan, run: Config, asked: evaluation.Config | None, target: Hardware) -> tuple[Forecast, int]:
    """The needs of a run, and the bytes of a device that remain free; negative: that many are missing."""
    of_one = planner.expected_seconds(made, 'policy') / made.trajectories
    steps, every = run.rl.steps, run.evaluation.every
    if asked:
        questions, disk = asked.evaluation.questions * len(asked.datasets), 0
        prompts = [METHODS[method].prompt for method in asked.methods]
        searches = questions * (prompts.count('documents') + Workload.of(run).searches * prompts.count('search'))
        seconds = questions * len(prompts) * of_one
        generating = (need.arguments + need.own for need in made.needs if need.name.startswith('policy'))
        peak = made.resident['policy'] + max(generating)
    else:
        times = run.evaluation.before + bool(steps) + (max(steps - 1, 0) // every if every else 0)
        questions, disk, peak = run.evaluation.questions * times, disk_bytes(run), made.peak
        trained = made.trajectories * steps * (run.simulator.kind == 'engine')
        searches = Workload.of(run).searches * (trained + questions * bool(run.rollout.max_turns))
        seconds = planner.expected_seconds(made) * steps + questions * of_one
    spare = made.usable - peak if asked or made.fits else min(made.spare, -1)
    fees = searches * run.prices.search_query * (run.engine.kind == PAID)
    return Forecast(peak, disk, seconds, planner.dollars(seconds, target, run), searches, fees), spare


def disk_bytes(run: Config) -> int:
    """The most bytes that a training's checkpoints and exported weights use at once: float32, with two moments."""
    policy = programs.model_config(run.policy.model)

    def trained(rank: int) -> int:
        layout = lora.layout(policy, rank) if rank else transformer.layout(policy)
        return sum(4 * math.prod(p.shape) for p in jax.tree.leaves(layout, is_leaf=sharding.is_param))

    exported = trained(run.policy.lora_rank)
    critic = trained(run.critic.lora_rank) if run.rl.has_critic and run.critic.trunk == 'own' else 0
    saved = min(checkpoint.most_kept(run.rl.steps, run.run.keep_every), -(-run.rl.steps // run.run.checkpoint_every))
    return saved * 3 * (exported + critic) + exported * bool(run.rl.steps)
