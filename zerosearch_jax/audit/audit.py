"""Audit of a simulator: compares what it writes for requests for useful and for noisy documents.

The number that matters is the gap: how much more often useful documents hold the answer than noisy documents.

    WORKDIR/NAME/answers.jsonl    every request and its result, appended when it is done
    WORKDIR/NAME/figures.json     the measures of these, and of real results of the same queries
    WORKDIR/audit.{json,md,png}   all audits of the directory side by side
"""

import dataclasses
import functools
import json
import pathlib
import re
import time
from collections.abc import Sequence

import jax

from zerosearch_jax import pretrained, prng, progress, settings, sharding
from zerosearch_jax.audit import figures, measures
from zerosearch_jax.data import pairs, rows, sources
from zerosearch_jax.data.rows import Passage, Question
from zerosearch_jax.generate.engine import Request
from zerosearch_jax.policy import PolicyConfig, open_policy, policy_params
from zerosearch_jax.rollout.answers import REWARDS
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import encode_observation, encode_prompt
from zerosearch_jax.run import jsonl, preflight, trained
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.search import Document, OutsideFailed, Query, Result, refuse_outage
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.load import Simulator, open_simulator
from zerosearch_jax.simulator.verify import answers_of, hops_of
from zerosearch_jax.simulator.writers import EndpointConfig
from zerosearch_jax.text import protocol
from zerosearch_jax.train import demonstrations

RANKED_AMONG = 1000  # passages of the corpus, chosen by a hash of their ids


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Which queries are asked, and what is measured."""

    name: str = 'simulator'  # name of the audit in the table
    source: str = 'world'  # built-in held-out questions, or recorded searches (data/pairs.py; separated by commas)
    corpus: str = 'world'  # passages of real results and of recorded searches; '': no comparison with real results
    label: str = 'label'  # as in config.demos.label
    folds: tuple[int, ...] = ()  # rows of the source; (): all
    queries: int = 400  # number of queries; 0: all
    hop: int = 0  # which step of the questions' decompositions is asked for; 0: recorded searches, built-in the first
    trained_folds: tuple[int, ...] = ()  # folds on which the simulator was trained: copies of them are counted
    read: bool = False  # whether config.reader answers from the documents, and its answers are scored
    gpu_hour_price: float = 0.0  # dollars; 0: no cost is reported

    def __post_init__(self):
        if self.hop < 0:
            raise ValueError(f'hop must not be negative, got {self.hop}')


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass for each section."""

    seed: int
    mesh: tuple[int, int, int]
    simulator: SimulatorConfig
    endpoint: EndpointConfig
    audit: AuditConfig
    reader: PolicyConfig  # a policy that answers from the documents
    rollout: RolloutConfig  # the reader's budgets

    def __post_init__(self):
        if not re.fullmatch(r'[\w.-]+', self.audit.name):
            raise ValueError(f'config.audit.name = {self.audit.name!r} may hold letters, digits, ".", "_" and "-"')


parse = functools.partial(settings.build, Config)


def audit(cfg: Config, workdir: pathlib.Path, config_json: str) -> str:
    """Runs or resumes an audit in `workdir`; returns the table of all audits there, or '' on processes other than 0."""
    here = workdir / cfg.audit.name
    cfg = trained.resolved(cfg, 'simulator', 'reader')
    with claim(here, Config, config_json, ('answers.jsonl',)):
        return _audit(cfg, workdir, here)


def _audit(cfg: Config, workdir: pathlib.Path, here: pathlib.Path) -> str:
    if cfg.audit.corpus:
        sources.check_corpus(cfg.audit.source, cfg.audit.corpus)
        rows.require_source(cfg.audit.corpus)
    mesh = sharding.make_mesh(cfg.mesh)
    _ask(cfg, here, queries(cfg), mesh)
    written = jsonl.shared_jsonl(here / 'answers.jsonl')
    answers = [row for row in written if not _failed_outside(row['failure'])]
    if lost := len(written) - len(answers):
        progress.log(f'{lost} of {len(written)} requests failed outside and are not counted; run again to repeat them')
    if not answers:
        raise OutsideFailed('every request of the audit failed outside; run the same command when the server answers')
    if cfg.audit.read and (unread := [row for row in answers if 'read' not in row]):
        for row, right in zip(unread, read(cfg, unread, mesh), strict=True):
            row['read'] = right
        if jax.process_index() == 0:
            jsonl.write_jsonl(here / 'answers.jsonl', answers)
    if jax.process_index():
        return ''
    found, speed = measures.measure(answers, reference(cfg, answers)), here / 'speed.json'
    found |= {'speed': json.loads(speed.read_text())} if speed.exists() else {}
    (here / 'figures.json').write_text(json.dumps(found, indent=2) + '\n')
    return figures.report(workdir, cfg.audit.gpu_hour_price)


# ---------------------------------------------------------------- queries, and what their answers are compared with


def queries(cfg: Config) -> list[Query]:
    """Distinct queries, chosen by a hash of their ids, so that the order of the source does not matter."""
    hop = cfg.audit.hop or int(cfg.audit.source in rows.BUILT_IN)
    if hop:
        asked = [(q, steps[hop - 1][0]) for q in _questions(cfg) if hop <= len(steps := hops_of(q))]
    else:
        found = {item.question.question: item for item in _recorded(cfg, cfg.audit.folds)}
        asked = [(item.question, item.query) for item in found.values()]
    if not asked:
        raise ValueError(
            f'{cfg.audit.source}: no search to ask for; an audit needs rows with a query and answers, or, with '
            'config.audit.hop, questions with so many steps'
        )
    text_of = {question.id: text for question, text in asked}
    if len(text_of) < len(asked):
        raise ValueError(f'{cfg.audit.source}: different questions have the same id; give them a field "data_source"')
    chosen = rows.subset([question for question, _ in asked], cfg.audit.queries or len(asked))
    turn = max(hop - 1, 0)
    return [Query((question.id, turn), question, 0, turn, text_of[question.id]) for question in chosen]


def _questions(cfg: Config) -> list[Question]:
    folds = cfg.audit.folds
    if cfg.audit.source in rows.BUILT_IN:
        return rows.in_folds(sources.load_questions(cfg.audit.source, 'test'), folds)
    found = [q for source in _sources(cfg) for q in sources.load_questions(source, 'test')]
    return [q for q in found if not folds or q.metadata.get('fold') in folds]


def _sources(cfg: Config) -> list[str]:
    return [source.strip() for source in cfg.audit.source.split(',')]


def _recorded(cfg: Config, folds: tuple[int, ...]) -> list[pairs.RecordedSearch]:
    corpus = {p.id: p for p in _passages(cfg.audit.corpus)} if cfg.audit.corpus else {}
    options = {'corpus': corpus, 'label': cfg.audit.label, 'folds': folds}
    found = [item for source in _sources(cfg) for item in pairs.load_pairs(source, **options)]
    return [item for item in found if isinstance(item, pairs.RecordedSearch)]


@functools.lru_cache(maxsize=1)
def _passages(corpus: str) -> list[Passage]:
    return sources.load_passages(corpus)


@functools.lru_cache(maxsize=1)
def _engine(corpus: str) -> BM25:
    return BM25(_passages(corpus))


def reference(cfg: Config, answers: Sequence[dict]) -> measures.Reference:
    """Real results of the same queries, cut as for fine-tuning a simulator, and passages of the corpus."""
    if not cfg.audit.corpus:
        return measures.Reference()
    asked = [row for row in answers if not row['noisy']]
    found = _engine(cfg.audit.corpus).search([row['query'] for row in asked], cfg.simulator.documents)

    def cut(document: Document, row: dict) -> Document:
        text = demonstrations.excerpt(document.title, document.text, cfg.simulator.words, measures.wanted(row))
        return dataclasses.replace(document, text=text)

    real = {row['id']: _texts([cut(d, row) for d in documents]) for row, documents in zip(asked, found, strict=True)}
    collection = rows.subset(_passages(cfg.audit.corpus), RANKED_AMONG)
    return measures.Reference(real, _texts(collection), _texts(_trained_on(cfg)))


def _trained_on(cfg: Config) -> list[Passage]:
    """Whole passages of which a simulator saw parts in training: all results of searches of these folds."""
    folds, source = cfg.audit.trained_folds, cfg.audit.source
    if not folds:
        return []
    if source in rows.BUILT_IN:
        searches = demonstrations.world_searches(source, folds, documents=cfg.simulator.documents, seed=0)
    else:
        searches = _recorded(cfg, folds)
    return [*{passage.id: passage for search in searches for passage in search.passages}.values()]


def _texts(passages: Sequence[Passage | Document]) -> list[str]:
    return [Document(p.title, p.text).as_text for p in passages]


# ---------------------------------------------------------------- a simulator answers


def _ask(cfg: Config, here: pathlib.Path, asked: list[Query], mesh):
    """Asks for useful and then for noisy documents, except for those that are on disk already."""
    path = here / 'answers.jsonl'
    written = jsonl.shared_jsonl(path)
    kept = [row for row in written if not _failed_outside(row['failure'])]
    if len(kept) < len(written) and jax.process_index() == 0:  # the others are asked again
        jsonl.write_jsonl(path, kept)
    done = {(row['id'], row['noisy']) for row in kept}
    missing = {n: [q for q in asked if (q.question.id, n) not in done] for n in (False, True)}
    if not any(missing.values()):
        return
    reader = {'reader': cfg.reader} if cfg.audit.read else {}
    checked = {'simulator': cfg.simulator, 'endpoint': cfg.endpoint, 'corpus': cfg.audit.corpus}
    preflight.check(cfg.mesh, reader, rollout_mesh=cfg.rollout.mesh, **checked)
    simulator, failed, answered = _simulator(cfg, mesh), [], 0
    began = time.perf_counter()
    with progress.bar(sum(map(len, missing.values())), f'audit of {cfg.audit.name}', 'query') as bar:
        for noisy, part in missing.items():
            search = simulator.source(seed=cfg.seed, step=int(noisy), noise=float(noisy))
            for query in part:
                search.submit(query)
            while search.active:
                results = search.step()
                if jax.process_index() == 0:
                    jsonl.append_jsonl(path, [_row(result, noisy, cfg.simulator.tell) for result in results])
                bar.update(len(results))
                answered += len(results)
                failed += [result for result in results if _failed_outside(result.failure)]
                refuse_outage('requests of the audit', failed, answered)
    speed = {'queries': sum(map(len, missing.values())), 'seconds': time.perf_counter() - began}
    if simulator.engine:
        speed['tokens'] = simulator.engine.decoded_tokens
    if jax.process_index() == 0:
        (here / 'speed.json').write_text(json.dumps(speed) + '\n')


# failures that a query or what the simulator writes causes; all others come from the outside
OWN_FAILURES = ('too_long', 'empty', 'count', 'length', 'repetition', 'tags')


def _failed_outside(failure: str) -> bool:
    """Whether a served simulator could not be used, which says nothing about what it writes."""
    return bool(failure) and failure not in OWN_FAILURES


def _simulator(cfg: Config, mesh: jax.sharding.Mesh) -> Simulator:
    return open_simulator(
        cfg.simulator,
        cfg.endpoint,
        mesh=mesh,
        decode_steps=cfg.rollout.decode_steps,
        slots=cfg.rollout.slots or cfg.rollout.episodes,
        corpus=lambda: (_engine(cfg.audit.corpus).search, _passages(cfg.audit.corpus)),
        search_engine=lambda: _engine(cfg.audit.corpus),
    )


def _row(result: Result, noisy: bool, tell: str) -> dict:
    query, question = result.query, result.query.question
    asked = {'id': question.id, 'noisy': noisy, 'query': query.text, 'question': question.question}
    asked |= {'golden_answers': question.golden_answers, 'hop_answer': answers_of(query, 'hop').told}
    asked |= {'wanted_answers': answers_of(query, tell).useful}
    kept = [field.name for field in dataclasses.fields(result) if field.name not in ('query', 'labels')]
    return asked | {name: getattr(result, name) for name in kept}


# ---------------------------------------------------------------- a policy reads the documents


def read(cfg: Config, answers: Sequence[dict], mesh) -> list[bool]:
    """Whether config.reader, after one search that returned these documents, gives a right answer (cover-EM)."""
    model = pretrained.load_model(cfg.reader.model, mesh)
    size = cfg.rollout
    longest = size.prompt_tokens + 2 * size.turn_tokens + size.observation_tokens
    engine = open_policy(model, size, mesh, dtype=cfg.reader.dtype, capacity=longest)
    engine.load(policy_params(model, cfg.reader, mesh), temperature=0.0)
    for number, row in enumerate(answers):
        question = Question(row['id'], row['question'], tuple(row['golden_answers']))
        search = protocol.GRAMMARS[size.grammar].search(row['query'])
        action = model.tokenizer.encode(f'<think>I need to look it up.</think>\n{search}')
        prompt = (
            *encode_prompt(model.tokenizer, question, size),
            *action[: size.turn_tokens],
            *encode_observation(model.tokenizer, row['documents'], size),
        )
        engine.open(Request(number, prompt, prng.row_key('evaluation', row['id']), size.turn_tokens))
    right = [False] * len(answers)
    with progress.bar(len(answers), 'reading', 'query') as bar:
        while engine.active:
            for stopped in engine.step():
                engine.close(stopped.handle)
                answer = protocol.extract_answer(model.tokenizer.decode(stopped.tokens))
                golds = answers[stopped.handle]['golden_answers']
                right[stopped.handle] = bool(REWARDS['cover_em'](answer, golds))
                bar.update()
    return right
