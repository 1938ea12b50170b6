"""Studies: named variants of one experiment, several seeds of each, and one report of how they differ.

    WORKDIR/VARIANT/seed_N/     a run of launch.train, which can be resumed
    RESULTS/VARIANT/seed_N/     files for the report, written when a run is done, small enough for a repository
    RESULTS/report.{md,json,png}

A run whose results are there is not run again, even if its working directory is gone. If answers failed, and the run's
checkpoints are still there, they are asked again. A variant that sets `evaluation.methods` is a run of launch.evaluate
in place of launch.train, with the base's questions and engine.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from zerosearch_jax import progress, settings, sharding
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.evaluate.scores import counted
from zerosearch_jax.run import jsonl, preemption
from zerosearch_jax.run.checkpoint import complete_steps
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.study import report
from zerosearch_jax.study.published import Published
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study: `base` is a configuration of launch.train, `variants` the changes that each variant makes.

    The first variant is the baseline; `pairs` are the variants whose difference is reported: the second minus the
    first. `published` has the scores that others published of the variants.
    """

    base: ConfigDict
    variants: dict[str, dict]
    seeds: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]
    published: Published | None = None

    def runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of every run, seed by seed: every variant has a first run before any has its second."""
        places: dict[pathlib.Path, tuple[str, int]] = {}
        for seed in self.seeds:
            for name in self.variants:
                places.setdefault(self.place(pathlib.Path(), name, seed), (name, seed))
        return list(places.values())

    def is_evaluation(self, variant: str) -> bool:
        """Whether a variant is a run of launch.evaluate: it names the methods."""
        return 'methods' in self.variants[variant].get('evaluation', {})

    def parse(self, variant: str, seed: int) -> train_config.Config | evaluation.Config:
        """The checked configuration of a run.

        Raises:
          ValueError: a section refuses a value.
        """
        return (evaluation if self.is_evaluation(variant) else train_config).parse(self.config(variant, seed))

    def config(self, variant: str, seed: int) -> ConfigDict:
        made = _as_evaluation(self.base) if self.is_evaluation(variant) else copy.deepcopy(self.base)
        made.seed = seed
        made.update(self.variants[variant])  # section by section
        return made

    def place(self, root: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
        """The directory of a run; a variant that sets its own seed has one run for all seeds of the study."""
        return root / variant / f'seed_{self.config(variant, seed).seed}'


def parse(config) -> Study:
    """Checks the configuration of every variant.

    Raises:
      ValueError: with the variant's name and what is wrong.
    """
    if missing := [name for name in ('base', 'baseline', 'variants', 'seeds') if name not in config]:
        raise ValueError(f'this configuration has no {missing[0]!r}, so it is no study: give it to launch.train')
    if config.variants and config.baseline not in config.variants:
        raise ValueError(f'the baseline {config.baseline!r} is none of the variants {", ".join(config.variants)}')
    names = sorted(config.variants, key=lambda name: name != config.baseline)
    plain = _plain(config.variants)
    variants = {name: plain[name] for name in names}
    pairs = tuple(map(tuple, config.get('pairs', ()))) or tuple((names[0], name) for name in names[1:])
    published = config.get('published') and settings.section(Published, config.published, 'config.published')
    study = Study(config.base, variants, tuple(config.seeds), pairs, published)
    if not variants or not study.seeds:
        raise ValueError('a study needs variants and seeds')
    for name in (name for pair in pairs for name in pair if name not in variants):
        raise ValueError(f'config.pairs: {name!r} is none of the variants {", ".join(variants)}')
    for name in variants:
        try:
            _check_sections(variants[name], config.base)
            cfg, *_ = [study.parse(name, seed) for seed in study.seeds]
        except (KeyError, TypeError, ValueError) as error:  # a ConfigDict raises TypeError for a value of another type
            raise ValueError(f'variant {name!r}: {error.args[0]}') from error
        if study.is_evaluation(name) and len(cfg.methods) > 1:
            raise ValueError(f'variant {name!r}: evaluation.methods must be one method, got {", ".join(cfg.methods)}')
        if study.is_evaluation(name) and not cfg.evaluation.questions:  # 0: none in a training, all in an evaluation
            raise ValueError(f'variant {name!r} is an evaluation: set evaluation.questions, how many it asks')
    return study


def _check_sections(changes: dict, base: ConfigDict):
    """Raises ValueError if changes have a value in the place of a section's fields."""
    if not isinstance(changes, dict):
        raise ValueError(f'it must have sections with the fields that it changes, got {changes!r}')
    for name, value in changes.items():
        if isinstance(base.get(name), ConfigDict) and not isinstance(value, dict):
            raise ValueError(f'config.{name} must be a section, got {value!r}')


def _as_evaluation(base: ConfigDict) -> ConfigDict:
    """The configuration of launch.evaluate with the questions, engine and sampling of a training's evaluations."""
    given = dataclasses.asdict(train_config.parse(base))
    made = {field.name: given[field.name] for field in dataclasses.fields(evaluation.Config) if field.name in given}
    asked, known = dataclasses.asdict(evaluation.EvaluationConfig()), given['data'] | given['evaluation']
    asked |= {name: known[name] for name in asked.keys() & known.keys()}
    asked |= {'datasets': given['data']['test'], 'questions_of': 'source'}
    return ConfigDict(made | {'evaluation': asked})


def _plain(values) -> dict:
    return {k: _plain(v) if isinstance(v, Mapping | ConfigDict) else v for k, v in values.items()}


def sweep(study: Study, workdir: pathlib.Path, results: pathlib.Path, part: int = 0, parts: int = 1) -> str:
    """Runs the unfinished runs of one of `parts` equal parts; returns the report of all finished runs.

    Args:
      study: the variants and seeds.
      workdir: directory of the runs.
      results: directory of the report and of its files.
      part: number of this part, from 0; several processes or the tasks of a SLURM array take one each.
      parts: number of parts.

    Raises:
      ValueError: the two directories are the same.
    """
    if workdir.resolve() == results.resolve():
        raise ValueError(f'{results} is the directory of the runs; choose another directory for the results')
    runs = study.runs()[part::parts]
    with preemption.Watch() as watch:
        for number, (variant, seed) in enumerate(runs, start=1):
            cfg, kept = study.parse(variant, seed), study.place(results, variant, seed)
            config_json = settings.to_json(study.config(variant, seed))
            here = study.place(workdir, variant, seed)
            if sharding.from_first_process(_is_done(here, kept, config_json)):
                continue
            progress.log(f'run {number}/{len(runs)}: {variant}, seed {cfg.seed}')
            run = _evaluate if study.is_evaluation(variant) else rl.train
            done = run(cfg, here, config_json) is not None
            if done and jax.process_index() == 0:
                report.save_results(here, kept, config_json)
                write_report(study, results)
            if watch.stop_requested():
                break
    return '' if jax.process_index() else write_report(study, results)


def _is_done(here: pathlib.Path, kept: pathlib.Path, config_json: str) -> bool:
    """Whether a run is finished and has no failed answers that it could ask again."""
    if not report.is_finished(kept, config_json):
        return False
    answers = jsonl.read_jsonl(kept / 'answers.jsonl')
    there = (here / 'results.jsonl').exists() or complete_steps(here / 'checkpoints')  # else it would be made anew
    return len(counted(answers)) == len(answers) or not there


def _evaluate(cfg: evaluation.Config, here: pathlib.Path, config_json: str) -> str:
    """As evaluation.evaluate, which would add to the results of other methods and data sets: that is refused here."""
    with claim(here, evaluation.Config, config_json, ('results.jsonl',)):
        pass
    return evaluation.evaluate(cfg, here, config_json)


def write_report(study: Study, results: pathlib.Path) -> str:
    """Writes the report of all finished runs; returns its text."""
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
    return report.write(results, tuple(study.variants), found, study.pairs, study.published)
