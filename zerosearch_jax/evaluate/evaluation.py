"""Evaluation: methods x data sets with a real engine, every episode on disk, and tables with intervals.

    WORKDIR/results.jsonl                 one episode in each row, appended when it ends
    WORKDIR/table.{md,tex,png}            the scores of all episodes

The same command continues where the last one stopped; other methods, data sets or trained weights are added.
"""

import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import jax

from zerosearch_jax import pretrained, progress, settings, sharding
from zerosearch_jax.data import benchmarks, rows, sources
from zerosearch_jax.data.rows import Question
from zerosearch_jax.evaluate import refine, results, tables
from zerosearch_jax.evaluate.methods import METHODS, answer_questions, wording
from zerosearch_jax.evaluate.scores import as_row
from zerosearch_jax.evaluate.sources import open_source
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.policy import PolicyConfig, open_policy, policy_params
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import fitting
from zerosearch_jax.rollout.rollout import Trajectory, check_searches
from zerosearch_jax.run import cost, jsonl, preflight, trained
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.search.remote import EngineConfig
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.writers import EndpointConfig, EngineWriter
from zerosearch_jax.text.tokenizer import template_arguments


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which methods are asked which questions, and where their searches are answered."""

    methods: str = 'direct,cot,rag,agent,search_o1'  # names in methods.METHODS; differences are to the first one
    datasets: str = 'world'  # names (data/benchmarks.py; 'seven': all seven) and sources (data/sources.py)
    questions: int = 500  # the most of each data set, chosen by a hash of their ids; 0: all
    questions_of: Literal['set', 'source'] = 'set'  # 'source': the most of each file or name, as in a training
    corpus: str = 'world'  # passages of the engine 'bm25'
    unscorable: rows.Choice = 'skip'  # what to do with questions whose answers are only punctuation and articles
    too_long: rows.Choice = 'refuse'  # what to do with questions whose prompt is too long for one of the methods
    documents: int = 5  # of a real engine for a search; for launch.ask also 0: as many as in the policy's training
    temperature: float = 0.0  # 0: greedy
    whole_batches_of: int = 1  # leave out the questions beyond the last whole batch of this size (difference D6: 64)
    simulated: bool = False  # config.simulator answers the searches, without noise, in place of config.engine
    refine_tokens: int = 128  # the most tokens of search_o1's summary of the documents


@dataclasses.dataclass(frozen=True)
class TrainedConfig:
    """Weights of the trained methods (run/trained.py); adapters are put on their own base; '': not run."""

    r1: str = ''
    search_r1: str = ''
    zerosearch: str = ''


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass for each section."""

    seed: int
    mesh: tuple[int, int, int]
    policy: PolicyConfig
    trained: TrainedConfig
    evaluation: EvaluationConfig
    engine: EngineConfig
    simulator: SimulatorConfig
    endpoint: EndpointConfig
    rollout: RolloutConfig
    prices: cost.PricesConfig

    def __post_init__(self):
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown:
            raise ValueError(f'config.evaluation.methods: {unknown[0]!r} is none of {", ".join(METHODS)}')
        if not self.methods or not self.datasets:
            raise ValueError('config.evaluation needs at least one of methods and one of datasets')
        if self.evaluation.simulated and self.simulator.kind == 'none':
            raise ValueError("config.evaluation.simulated needs a simulator: config.simulator.kind is 'none'")

    @property
    def methods(self) -> list[str]:
        return _names(self.evaluation.methods)

    @property
    def datasets(self) -> list[str]:
        names = _names(self.evaluation.datasets)
        return list(dict.fromkeys(n for part in names for n in (benchmarks.SEVEN if part == 'seven' else (part,))))

    def weights(self, method: str, given: Collection[str] = ()) -> str:
        """A method's weights with a hash of local files, wordings included, and what `given` changes; '' if none."""
        asked = trained.wordings(self.rollout.prompt, self.simulator.template)
        if not METHODS[method].trained:
            models = [trained.marked(path) for path in (self.policy.model, self.policy.adapter) if path]
            return ' + '.join([*models, *asked])
        if not (reference := getattr(self.trained, method)):
            return ''
        changed = trained.find(reference).asked_otherwise(self.rollout, self.evaluation.documents, given)
        return ', '.join(filter(None, (trained.marked(reference), changed, *asked)))


FREE = (*settings.MAY_CHANGE, 'evaluation.methods', 'evaluation.datasets', 'trained')  # may differ within one table


def parse(config: Mapping, given: Collection[str] = ()) -> Config:
    """The checked configuration; a simulator writes the `documents` of its own section.

    Raises:
      ValueError: as settings.build, or `given`, the fields that were set explicitly, has a field without effect.
    """
    cfg = settings.build(Config, config)
    if not cfg.evaluation.simulated:
        return cfg
    if 'evaluation.documents' in given:
        raise ValueError('evaluation.documents is of real engines; with simulated set config.simulator.documents')
    return dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, documents=cfg.simulator.documents))


def name_run(config, arguments: Sequence[str], given: Collection[str] = ()):
    """Sets a run given on the command line as the weights of the one method that is evaluated, and its base.

    Raises:
      ValueError: an argument is no run, or `given`, the fields that were set explicitly, has other methods or weights.
    """
    if not arguments:
        return
    if len(arguments) > 1 or not (pathlib.Path(arguments[0]) / 'config.json').is_file():
        raise ValueError(f'unexpected argument {arguments[-1]!r}: one run, by its directory, may be named')
    if clash := [name for name in given if name == 'evaluation.methods' or name.partition('.')[0] == 'trained']:
        raise ValueError(f'{arguments[0]} is evaluated alone, as what it was trained as: leave out config.{min(clash)}')
    run = settings.read_json(pathlib.Path(arguments[0]) / 'config.json')
    method = {'none': 'r1', 'engine': 'search_r1'}.get(run.get('simulator', {}).get('kind'), 'zerosearch')
    config.trained[method] = arguments[0]
    config.evaluation.methods = method
    if 'policy.model' not in given:
        config.policy.model = trained.base_of(run) or config.policy.model


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (part.strip() for part in text.split(',')))))


def evaluate(
    cfg: Config, workdir: pathlib.Path, config_json: str, given: Collection[str] = (), step: int | None = None
) -> str:
    """Runs the episodes that are missing; returns the tables of all results in `workdir`.

    Args:
      cfg: checked configuration.
      workdir: directory of the results.
      config_json: the configuration as JSON text.
      given: fields that were set explicitly: trained weights are asked as in their training except for these.
      step: the checkpoint of the runs in config.trained; None: as in trained.find.
    """
    settings.require_positive(cfg.evaluation, 'documents', 'whole_batches_of')
    if step is not None and not any(getattr(cfg.trained, name, '') for name in cfg.methods):
        raise ValueError(f'--step={step}: no run is evaluated; name one as an argument, or in config.trained')
    if cfg.evaluation.simulated:
        given = {*given, 'evaluation.documents'}  # those of config.simulator, whatever the training had
    with claim(workdir, Config, config_json, ('results.jsonl',), FREE):
        found = {name: ref and trained.find(ref, step).reference for name, ref in vars(cfg.trained).items()}
        cfg = dataclasses.replace(trained.resolved(cfg, 'policy', 'simulator'), trained=TrainedConfig(**found))
        return _evaluate(cfg, workdir, given)


def _evaluate(cfg: Config, workdir: pathlib.Path, given: Collection[str]) -> str:
    weights = {method: cfg.weights(method, given) for method in cfg.methods}  # a wrong path is reported now
    if not any(weights.values()):
        raise ValueError(f'nothing to run: config.trained names no weights of {", ".join(cfg.methods) or "any method"}')
    questions = load_questions(cfg)
    path = workdir / 'results.jsonl'
    missing = results.missing(weights, path, questions)
    fit = _fitting(cfg, missing, given)
    jobs = [(m, name, [q for q in part if q in fit]) for m, parts in missing.items() for name, part in parts.items()]
    if any(asked for _, _, asked in jobs):
        _check(cfg, missing)
        evaluator = Evaluator(cfg, weights, workdir, given)
        try:
            with progress.bar(sum(len(asked) for *_, asked in jobs), 'evaluation', 'question', leave=True) as bar:
                for method, dataset, asked in jobs:
                    bar.set_postfix_str(f'{method}, {dataset}')
                    made = evaluator.run(method, dataset, asked, bar.update)
                    before = len(questions[dataset]) - len(missing[method][dataset])
                    check_searches(made, f'{method}, {dataset}', before)
                    if bar.disable:
                        progress.log(f'{method}, {dataset}: {len(asked)} questions')
        finally:
            if jax.process_index() == 0:
                results.latest(path)
    if jax.process_index():
        return ''
    return tables.report(workdir, cfg.methods, weights, cfg.prices)


def _check(cfg: Config, methods: Collection[str]):
    """Checks what can be checked before anything is loaded, for the methods that have something to run."""
    simulated, searches = cfg.evaluation.simulated, any(METHODS[m].prompt in ('search', 'documents') for m in methods)
    preflight.check(
        cfg.mesh,
        {'policy': cfg.policy},
        rollout_mesh=cfg.rollout.mesh,
        engine=cfg.engine if searches and not simulated else None,
        simulator=cfg.simulator if searches and simulated else None,
        endpoint=cfg.endpoint,
        corpus=cfg.evaluation.corpus,
    )


def load_questions(cfg: Config) -> dict[str, list[Question]]:
    """The chosen questions by data set: the `dataset` of a question or, if it has none, its source."""
    found: dict[str, list[Question]] = {}
    asked = cfg.evaluation
    local = cfg.simulator.kind == 'oracle' if asked.simulated else cfg.engine.kind == 'bm25'
    for source in cfg.datasets:
        if local and any(METHODS[method].prompt in ('documents', 'search') for method in cfg.methods):
            sources.check_corpus(source, asked.corpus)
        given = sources.load_questions(source, 'test', asked.unscorable)
        if asked.questions_of == 'source':
            given = rows.whole_batches({source: _at_most(asked.questions, given)}, asked.whole_batches_of)[source]
        sets = collections.defaultdict(list)
        for question in given:
            sets[question.dataset or pathlib.Path(source).stem].append(question)
        for name in sets.keys() & found.keys():
            raise ValueError(f'{source} has questions of {name!r}, as another of config.evaluation.datasets does')
        found |= sets
    chosen = {name: _at_most(asked.questions, each) for name, each in found.items()}
    return rows.whole_batches(chosen, asked.whole_batches_of)


def _at_most(count: int, questions: list[Question]) -> list[Question]:
    """All questions in their order, or else `count` of them."""
    return rows.subset(questions, count) if 0 < count < len(questions) else questions


def _fitting(cfg: Config, missing: dict[str, dict[str, list[Question]]], given: Collection[str]) -> set[Question]:
    """The questions whose prompts, without documents, fit every method that has to answer them."""
    questions = [*dict.fromkeys(q for parts in missing.values() for part in parts.values() for q in part)]
    tokenizer_of = functools.cache(lambda model: pretrained.open_model(model).tokenizer)
    for method in missing:
        model, size = cfg.policy.model, cfg.rollout
        if METHODS[method].trained:
            found = trained.find(getattr(cfg.trained, method))
            model, size = found.policy_config(cfg.policy, given).model, found.rollout_config(size, given)
        size = dataclasses.replace(size, prompt=wording(METHODS[method], size))  # documents have a budget of their own
        questions = fitting(questions, tokenizer_of(model), size, cfg.evaluation.too_long)
    return {*questions}


class Evaluator:
    """Owns the engines of one evaluation: the search engine, and the model of the current method."""

    def __init__(self, cfg: Config, weights: dict[str, str], workdir: pathlib.Path, given: Collection[str] = ()):
        self._cfg, self._weights, self._workdir, self._given = cfg, weights, workdir, given
        self._mesh = sharding.make_mesh(cfg.mesh)
        self._search, self._simulator_engine = open_source(cfg, self._mesh, workdir / 'searches.log')
        self._trained: str | None = None
        self._refiner: EngineWriter | None = None
        self._loaded: tuple[str, pretrained.Model] | None = None
        self._opened: RolloutConfig | None = None

    def run(
        self, method: str, dataset: str, questions: Sequence[Question], update: Callable[[int], None]
    ) -> list[Trajectory]:
        """Asks the questions of one data set; every episode is written to disk when it ends."""
        cfg, kind = self._cfg, METHODS[method]
        self._use(getattr(cfg.trained, method) if kind.trained else '')
        if kind.refine and self._refiner is None:
            self._refiner = self._open_refiner()
        refiner = self._refiner if kind.refine else None
        engines = [e for e in (self._policy, refiner and refiner.engine, self._simulator_engine) if e]
        mark = [time.perf_counter(), sum(e.decoded_tokens for e in engines)]

        def finished(trajectory: Trajectory):
            now = [time.perf_counter(), sum(e.decoded_tokens for e in engines)]
            seconds, tokens = now[0] - mark[0], now[1] - mark[1]
            mark[:] = now
            row = as_row(trajectory, self._model.tokenizer, seconds=seconds, tokens=tokens)
            about = {'method': method, 'weights': self._weights[method], 'dataset': dataset}
            if jax.process_index() == 0:
                device = {'device': jax.devices()[0].device_kind, 'devices': self._mesh.size}
                jsonl.append_jsonl(self._workdir / 'results.jsonl', [row | about | device])
            update(1)

        return answer_questions(
            kind,
            questions,
            self._policy,
            functools.partial(self._search, self._documents),
            refiner,
            self._model.tokenizer,
            self._size,
            seed=cfg.seed,
            on_finished=finished,
        )

    def _use(self, given: str):
        """Loads trained weights, or those of config.policy, unless they are loaded already."""
        if given == self._trained:
            return
        cfg = self._cfg
        policy, self._size, self._documents = cfg.policy, cfg.rollout, cfg.evaluation.documents
        if given:
            found = trained.find(given)
            policy, self._size = found.policy_config(policy, self._given), found.rollout_config(self._size, self._given)
            self._documents = found.documents(self._documents, self._given)
            progress.log(f'{given} is asked as in its training: {trained.asked_line(self._size, self._documents)}')
            preflight.check_adapter('trained', policy)
        if self._loaded is None or self._loaded[0] != policy.model:
            self._loaded, self._opened = (policy.model, pretrained.load_model(policy.model, self._mesh)), None
        if self._opened != self._size:
            self._policy = open_policy(self._model, self._size, self._mesh, dtype=cfg.policy.dtype)
            self._opened = self._size
        self._trained, self._refiner = given, None
        self._params = policy_params(self._model, policy, self._mesh)
        self._policy.load(self._params, temperature=cfg.evaluation.temperature)

    @property
    def _model(self) -> pretrained.Model:
        return self._loaded[1]

    def _open_refiner(self) -> EngineWriter:
        """An engine of the same weights without stop strings, which summarizes documents."""
        cfg, size = self._cfg, self._cfg.rollout
        most = size.prompt_tokens + size.response_tokens + cfg.evaluation.documents * refine.TOKENS
        (engine,) = pretrained.open_engines(
            self._model,
            sharding.regrouped(self._mesh, size.mesh, 'config.rollout.mesh'),
            (Role(size.slots or size.episodes),),
            cache_gib=size.cache_gib,
            capacity=most + cfg.evaluation.refine_tokens,
            decode_steps=size.decode_steps,
            dtype=cfg.policy.dtype,
        )
        engine.load(self._params, temperature=cfg.evaluation.temperature)
        budgets = {'prompt_tokens': most, 'max_tokens': cfg.evaluation.refine_tokens}
        arguments = template_arguments(size.template_arguments)
        return EngineWriter(engine, self._model.tokenizer, **budgets, arguments=arguments)
