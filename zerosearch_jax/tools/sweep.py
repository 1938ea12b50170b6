"""Ablations: named variants of one experiment, several seeds of each, and one report of how they differ.

    WORKDIR/VARIANT/seed_N/     a run of launch.train, which continues where it was
    WORKDIR/report.{md,json,png}

The comparison is paired: the same held-out questions, the same seeds.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from zerosearch_jax import evaluate as ev
from zerosearch_jax import experiment, metrics, progress, report, settings, train_rl

SCORES = {'em': 'EM', 'f1': 'F1', 'cover_em': 'cover-EM'}
LAST = 0.2  # share of the steps at the end over which the training reward is averaged


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study: `base` is a configuration of launch.train, `variants` what each changes of it.

    The first variant is the baseline that the others are compared with.
    """

    base: ConfigDict
    variants: dict[str, dict]
    seeds: tuple[int, ...]

    def runs(self) -> list[tuple[str, int]]:
        """All (variant, seed), seed by seed, so that every variant has its first run before any has its second."""
        return [(name, seed) for seed in self.seeds for name in self.variants]

    def config(self, variant: str, seed: int) -> ConfigDict:
        made = copy.deepcopy(self.base)
        made.seed = seed
        made.update(self.variants[variant])  # section by section
        return made


def parse(config) -> Study:
    """Checks the configuration of every variant.

    Raises:
      ValueError: with the variant's name and what is wrong.
    """
    if config.variants and config.baseline not in config.variants:
        raise ValueError(f'the baseline {config.baseline!r} is none of the variants {", ".join(config.variants)}')
    names = sorted(config.variants, key=lambda name: name != config.baseline)
    variants = {name: _plain(config.variants[name]) for name in names}
    study = Study(config.base, variants, tuple(config.seeds))
    if not variants or not study.seeds:
        raise ValueError('a study needs variants and seeds')
    for name in variants:
        try:
            experiment.parse(study.config(name, study.seeds[0]))
        except (KeyError, ValueError) as error:
            raise ValueError(f'variant {name!r}: {error.args[0]}') from error
    return study


def _plain(values) -> dict:
    return {k: _plain(v) if isinstance(v, Mapping | ConfigDict) else v for k, v in values.items()}


def sweep(study: Study, workdir: pathlib.Path, part: int = 0, parts: int = 1) -> str:
    """Runs what is unfinished of one of `parts` equal parts; returns the report of all that is done.

    Args:
      study: the variants and seeds.
      workdir: of the study.
      part: from 0; several processes or the tasks of a SLURM array take one each.
      parts: how many there are.
    """
    runs = study.runs()[part::parts]
    for number, (variant, seed) in enumerate(runs, start=1):
        config, here = study.config(variant, seed), run_directory(workdir, variant, seed)
        resolved = settings.to_json(config)
        if not finished(here, resolved):
            progress.say(f'run {number}/{len(runs)}: {variant}, seed {seed}')
            cfg = experiment.parse(config)
            train_rl.train(cfg, here, resolved)
            (here / 'finished').write_text('')
        write_report(study, workdir)
    return write_report(study, workdir)


def run_directory(workdir: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
    return workdir / variant / f'seed_{seed}'


def finished(here: pathlib.Path, resolved: str) -> bool:
    """Whether this run, of this configuration, came to its end."""
    return (here / 'finished').exists() and (here / 'config.json').read_text() == resolved


# ---------------------------------------------------------------- report


def write_report(study: Study, workdir: pathlib.Path) -> str:
    """Writes report.md, report.json and report.png of the finished runs; returns the text."""
    found = {}
    for variant in study.variants:
        seeds = [
            seed
            for seed in study.seeds
            if finished(run_directory(workdir, variant, seed), settings.to_json(study.config(variant, seed)))
        ]
        if seeds:
            found[variant] = _measure(workdir, variant, seeds)
    baseline = next(iter(study.variants))
    if baseline in found:
        for variant, figures in found.items():
            figures['differences'] = {} if variant == baseline else _differences(figures, found[baseline])
    text = _table(study, found, baseline)
    told = {name: {k: v for k, v in f.items() if not k.startswith('_')} for name, f in found.items()}
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'report.json').write_text(json.dumps(told, indent=2) + '\n')
    (workdir / 'report.md').write_text(text + '\n')
    if found:
        _plot(found, workdir / 'report.png')
    return text


def _measure(workdir: pathlib.Path, variant: str, seeds: list[int]) -> dict:
    """Scores of the last evaluation [questions, seeds], curves [steps, seeds], and their means."""
    scores, rewards, seconds = {}, {}, []
    for seed in seeds:
        here = run_directory(workdir, variant, seed)
        evaluated = report.evaluations(here)
        if evaluated:
            scores[seed] = {row['id']: row for row in evaluated[max(evaluated)]}
        rows = [row for row in metrics.read_jsonl(here / 'metrics.jsonl') if 'reward/mean' in row]
        rewards[seed] = np.array([row['reward/mean'] for row in rows])
        seconds += [row['speed/rollout_seconds'] + row['speed/update_seconds'] for row in rows]
    count = min(map(len, rewards.values()))
    curves = np.stack([r[:count] for r in rewards.values()], axis=1)
    late = curves[-max(int(LAST * count), 1) :].mean(0)
    figures = {'seeds': seeds, '_curves': curves, '_scores': scores, '_late': dict(zip(seeds, late, strict=True))}
    figures['reward'] = {'mean': float(late.mean()), 'seeds': late.tolist()}
    figures['seconds'] = float(np.median(seconds))
    for name in SCORES:
        values = _matrix(scores, seeds, name)
        if values.size:
            figures[name] = {'mean': float(values.mean()), 'interval': ev.bootstrap_interval(values)}
    return figures


def _matrix(scores: dict, seeds: list[int], name: str) -> np.ndarray:
    """[questions, seeds] of the questions that all of these seeds were asked."""
    if not all(seed in scores for seed in seeds):
        return np.zeros((0, 0))
    asked = sorted(set.intersection(*(set(scores[seed]) for seed in seeds)))
    return np.array([[scores[seed][i][name] for seed in seeds] for i in asked])


def _differences(figures: dict, baseline: dict) -> dict:
    """Of each score to the baseline, over common seeds and questions, with a paired bootstrap of both."""
    seeds = [seed for seed in figures['seeds'] if seed in baseline['seeds']]
    found = {}
    for name in SCORES:
        mine, theirs = (_matrix(f['_scores'], seeds, name) for f in (figures, baseline))
        if seeds and mine.size and mine.shape == theirs.shape:
            found[name] = {'mean': float((mine - theirs).mean()), 'interval': ev.bootstrap_interval(mine - theirs)}
    if seeds:
        gaps = np.array([figures['_late'][s] - baseline['_late'][s] for s in seeds])
        found['reward'] = {'mean': float(gaps.mean()), 'interval': ev.bootstrap_interval(gaps)}
    return found


def _table(study: Study, found: dict[str, dict], baseline: str) -> str:
    shown = [name for name in SCORES if any(name in figures for figures in found.values())]
    titles = [f'{SCORES[name]} | Δ {SCORES[name]}' for name in shown]
    lines = [
        f'| variant | seeds | {"".join(title + " | " for title in titles)}training reward, last fifth | Δ reward '
        '| s a step |',
        f'|---|---|{"---|---|" * len(shown)}---|---|---|',
    ]
    for variant in study.variants:
        if variant not in found:
            lines.append(f'| {variant} | not run |{" | |" * len(shown)} | | |')
            continue
        figures = found[variant]
        cells = [str(len(figures['seeds']))]
        gaps = figures.get('differences', {})
        for name in shown:
            cells += [_shown(figures.get(name)), _signed(gaps.get(name))]
        seeds = ', '.join(f'{value:.3f}' for value in figures['reward']['seeds'])
        cells += [f'{figures["reward"]["mean"]:.3f} ({seeds})', _signed(gaps.get('reward'))]
        cells.append(f'{figures["seconds"]:.1f}')
        lines.append(f'| {variant} | {" | ".join(cells)} |')
    note = (
        f'Δ: to {baseline}, paired by question and seed; 95 % bootstrap intervals over both (of rewards: over seeds). '
        'Seconds: the median.'
    )
    return '\n'.join([*lines, '', note])


def _shown(value: dict | None) -> str:
    return '' if value is None else f'{value["mean"]:.3f} [{value["interval"][0]:.3f}, {value["interval"][1]:.3f}]'


def _signed(value: dict | None) -> str:
    return '' if value is None else f'{value["mean"]:+.3f} [{value["interval"][0]:+.3f}, {value["interval"][1]:+.3f}]'


def _plot(found: dict[str, dict], path: pathlib.Path):
    """Training reward by step: a line a variant, the mean over seeds, in the band of their extremes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout='constrained', dpi=120)
    axes = figure.subplots()
    for number, (variant, figures) in enumerate(found.items()):
        curves = figures['_curves']
        steps, color = np.arange(1, len(curves) + 1), f'C{number % 10}'
        style = '-' if number < 10 else '--'
        axes.plot(steps, curves.mean(1), label=variant, color=color, linestyle=style, linewidth=1.4)
        axes.fill_between(steps, curves.min(1), curves.max(1), color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel('step')
    axes.set_ylabel('mean reward in training')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)
