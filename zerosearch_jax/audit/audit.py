"""Audit of a simulator: what it writes when asked for useful documents, and what when asked for noisy ones.

The number that matters is the gap: how much more often useful documents hold the answer than noisy ones do.

    WORKDIR/NAME/answers.jsonl    every request and what came of it, appended as it comes
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
from zerosearch_jax.audit import figures
from zerosearch_jax.data import pairs, rows, sources
from zerosearch_jax.data.rows import Question
from zerosearch_jax.generate.engine import Request
from zerosearch_jax.policy import PolicyConfig, open_policy, policy_params
from zerosearch_jax.rollout.answers import REWARDS
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import encode_observation, encode_prompt
from zerosearch_jax.run import jsonl
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.search import Query
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.load import Simulator, open_simulator
from zerosearch_jax.simulator.writers import EndpointConfig
from zerosearch_jax.text import protocol


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Which queries are asked, and what is reported of the answers."""

    name: str = 'simulator'  # row of the table
    source: str = 'world'  # held-out questions of the world, or recorded searches (data/pairs.py; commas between)
    corpus: str = 'world'  # passages that recorded searches name, and those of the oracle
    label: str = 'label'  # as config.demos.label
    folds: tuple[int, ...] = ()  # rows of the source; (): all
    queries: int = 200  # 0: all
    read: bool = False  # whether config.reader answers from the documents
    gpu_hour_price: float = 0.0  # dollars; 0: no cost is reported


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass a section."""

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
    """Runs, or resumes, an audit in `workdir`; returns the table of all audits there, '' on other processes than 0."""
    here = workdir / cfg.audit.name
    with claim(here, Config, config_json, ('answers.jsonl',)):
        return _audit(cfg, workdir, here)


def _audit(cfg: Config, workdir: pathlib.Path, here: pathlib.Path) -> str:
    mesh = sharding.make_mesh(cfg.mesh)
    asked = queries(cfg)
    _ask(cfg, here, asked, mesh)
    answers = jsonl.shared_jsonl(here / 'answers.jsonl')
    if cfg.audit.read and 'read' not in answers[0]:
        readings = read(cfg, answers, mesh)
        answers = [row | {'read': right} for row, right in zip(answers, readings, strict=True)]
        if jax.process_index() == 0:
            jsonl.write_jsonl(here / 'answers.jsonl', answers)
    return '' if jax.process_index() else figures.report(workdir, cfg.audit.gpu_hour_price)


def queries(cfg: Config) -> list[Query]:
    """Distinct queries, chosen by a hash of their ids, so that another source order changes nothing."""
    if cfg.audit.source == 'world':
        questions = sources.load_questions('world', 'test')
        texts = [q.metadata['decomposition'][0]['query'] for q in questions]
    else:
        corpus = {p.id: p for p in sources.load_passages(cfg.audit.corpus)} if cfg.audit.corpus else {}
        found: dict[str, pairs.RecordedSearch] = {}
        for source in cfg.audit.source.split(','):
            read_rows = pairs.load_pairs(source.strip(), corpus=corpus, label=cfg.audit.label, folds=cfg.audit.folds)
            found |= {item.question.question: item for item in read_rows if isinstance(item, pairs.RecordedSearch)}
        questions, texts = [item.question for item in found.values()], [item.query for item in found.values()]
    if not questions:
        raise ValueError(f'{cfg.audit.source}: no search to ask for; an audit needs rows with a query and answers')
    text_of = {q.id: text for q, text in zip(questions, texts, strict=True)}
    if len(text_of) < len(questions):
        raise ValueError(f'{cfg.audit.source}: different questions have the same id; give them a field "data_source"')
    chosen = rows.subset(questions, cfg.audit.queries or len(questions))
    return [Query((question.id, 0), question, 0, 0, text_of[question.id]) for question in chosen]


def _ask(cfg: Config, here: pathlib.Path, asked: list[Query], mesh):
    """Asks for useful, then for noisy documents, what is on disk already excepted."""
    path = here / 'answers.jsonl'
    done = {(row['id'], row['noisy']) for row in jsonl.shared_jsonl(path)}
    missing = {n: [q for q in asked if (q.question.id, n) not in done] for n in (False, True)}
    if not any(missing.values()):
        return
    simulator = _simulator(cfg, mesh)
    began = time.perf_counter()
    with progress.bar(sum(map(len, missing.values())), f'audit of {cfg.audit.name}', 'query') as bar:
        for noisy, part in missing.items():
            search = simulator.source(seed=cfg.seed, step=int(noisy), noise=float(noisy))
            for query in part:
                search.submit(query)
            while search.active:
                results = search.step()
                if jax.process_index() == 0:
                    jsonl.append_jsonl(path, [_row(result, noisy) for result in results])
                bar.update(len(results))
    speed = {'queries': sum(map(len, missing.values())), 'seconds': time.perf_counter() - began}
    if simulator.engine:
        speed['tokens'] = simulator.engine.decoded_tokens
    if jax.process_index() == 0:
        (here / 'speed.json').write_text(json.dumps(speed) + '\n')


def _simulator(cfg: Config, mesh: jax.sharding.Mesh) -> Simulator:
    if cfg.simulator.kind in ('oracle', 'engine'):
        sources.check_corpus(cfg.audit.source, cfg.audit.corpus)

    def corpus():
        passages = sources.load_passages(cfg.audit.corpus)
        return BM25(passages).search, passages

    return open_simulator(
        cfg.simulator,
        cfg.endpoint,
        mesh=mesh,
        decode_steps=cfg.rollout.decode_steps,
        slots=cfg.rollout.slots or cfg.rollout.episodes,
        corpus=corpus,
        search_engine=lambda: BM25(sources.load_passages(cfg.audit.corpus)),
    )


def _row(result, noisy: bool) -> dict:
    question = result.query.question
    return {
        'id': question.id,
        'noisy': noisy,
        'query': result.query.text,
        'question': question.question,
        'golden_answers': list(question.golden_answers),
        'documents': list(result.documents),
        'failure': result.failure,
        'attempts': result.attempts,
    }


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
        action = model.tokenizer.encode(f'<think>I need to look it up.</think>\n<search>{row["query"]}</search>')
        prompt = (
            *encode_prompt(model.tokenizer, question, size),
            *action[: size.turn_tokens],
            *encode_observation(model.tokenizer, row['documents'], size.observation_tokens),
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
