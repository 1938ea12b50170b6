"""Studies: named variants of one experiment, several seeds of each, and one report of how they differ.

    WORKDIR/VARIANT/seed_N/     a run of launch.train, which continues where it was
    RESULTS/VARIANT/seed_N/     what the report is made of, written when a run is done: small enough for a repository
    RESULTS/report.{md,json,png}

A run whose results are there is not made again, wherever its working directory has gone.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from zerosearch_jax import progress, settings, sharding
from zerosearch_jax.run import preemption
from zerosearch_jax.study import report
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study: `base` is a configuration of launch.train, `variants` what each changes of it.

    The first variant is the baseline; `pairs` are the variants whose difference is told, of each the second less the
    first.
    """

    base: ConfigDict
    variants: dict[str, dict]
    seeds: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]

    def runs(self) -> list[tuple[str, int]]:
        """One (variant, seed) for each place, seed by seed: every variant has a first run before any has its second."""
        places: dict[pathlib.Path, tuple[str, int]] = {}
        for seed in self.seeds:
            for name in self.variants:
                places.setdefault(self.place(pathlib.Path(), name, seed), (name, seed))
        return list(places.values())

    def config(self, variant: str, seed: int) -> ConfigDict:
        made = copy.deepcopy(self.base)
        made.seed = seed
        made.update(self.variants[variant])  # section by section
        return made

    def place(self, root: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
        """The directory of a run; a variant that sets its own seed has one run for all of the study's."""
        return root / variant / f'seed_{self.config(variant, seed).seed}'


def parse(config) -> Study:
    """Checks the configuration of every variant.

    Raises:
      ValueError: with the variant's name and what is wrong.
    """
    if missing := [name for name in ('base', 'baseline', 'variants', 'seeds') if name not in config]:
        raise ValueError(f'this configuration has no {missing[0]!r}, it is no study: give it to launch.train')
    if config.variants and config.baseline not in config.variants:
        raise ValueError(f'the baseline {config.baseline!r} is none of the variants {", ".join(config.variants)}')
    names = sorted(config.variants, key=lambda name: name != config.baseline)
    variants = {name: _plain(config.variants[name]) for name in names}
    pairs = tuple(map(tuple, config.get('pairs', ()))) or tuple((names[0], name) for name in names[1:])
    study = Study(config.base, variants, tuple(config.seeds), pairs)
    if not variants or not study.seeds:
        raise ValueError('a study needs variants and seeds')
    for name in (name for pair in pairs for name in pair if name not in variants):
        raise ValueError(f'config.pairs: {name!r} is none of the variants {", ".join(variants)}')
    for name in variants:
        try:
            train_config.parse(study.config(name, study.seeds[0]))
        except (KeyError, ValueError) as error:
            raise ValueError(f'variant {name!r}: {error.args[0]}') from error
    return study


def _plain(values) -> dict:
    return {k: _plain(v) if isinstance(v, Mapping | ConfigDict) else v for k, v in values.items()}


def sweep(study: Study, workdir: pathlib.Path, results: pathlib.Path, part: int = 0, parts: int = 1) -> str:
    """Runs what is unfinished of one of `parts` equal parts; returns the report of all that is done.

    Args:
      study: the variants and seeds.
      workdir: of the runs.
      results: of what is kept of them, and of the report.
      part: from 0; several processes or the tasks of a SLURM array take one each.
      parts: how many there are.
    """
    runs = study.runs()[part::parts]
    with preemption.Watch() as watch:
        for number, (variant, seed) in enumerate(runs, start=1):
            config, kept = study.config(variant, seed), study.place(results, variant, seed)
            config_json = settings.to_json(config)
            if sharding.from_first_process(report.is_finished(kept, config_json)):
                continue
            progress.log(f'run {number}/{len(runs)}: {variant}, seed {config.seed}')
            here = study.place(workdir, variant, seed)
            done = rl.train(train_config.parse(config), here, config_json) is not None
            if done and jax.process_index() == 0:
                report.save_results(here, kept, config_json)
                write_report(study, results)
            if watch.stop_requested():
                break
    return '' if jax.process_index() else write_report(study, results)


def write_report(study: Study, results: pathlib.Path) -> str:
    """Writes the report of all runs whose results are there; returns its text."""
    found = {}
    for variant in study.variants:
        places = {seed: study.place(results, variant, seed) for seed in study.seeds}
        done = {
            seed: place
            for seed, place in places.items()
            if report.is_finished(place, settings.to_json(study.config(variant, seed)))
        }
        if done:
            found[variant] = report.read_runs(done)
    return report.write(results, tuple(study.variants), found, study.pairs)
