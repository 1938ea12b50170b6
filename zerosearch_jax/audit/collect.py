"""Collection: a policy searches with a real engine, and the results are recorded and labelled useful or noisy.

trajectories.jsonl   every episode, appended when its batch is done
verdicts.log         verdicts of a judge
pairs.jsonl          prompt, completion and label of every labelled search, for launch.sft
"""

import collections
import dataclasses
import functools
import pathlib
from typing import Literal

import jax

from zerosearch_jax import pretrained, progress, settings, sharding
from zerosearch_jax.data import pairs, rows, sources
from zerosearch_jax.data.rows import Passage, Question
from zerosearch_jax.evaluate.scores import as_row
from zerosearch_jax.policy import PolicyConfig, open_policy, policy_params
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import fitting
from zerosearch_jax.rollout.rollout import rollout
from zerosearch_jax.run import jsonl, preflight, trained
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.search import Query, engine_search
from zerosearch_jax.simulator import prompts
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.judge import JudgeConfig, judge
from zerosearch_jax.simulator.load import open_writer, probe
from zerosearch_jax.simulator.prompts import request
from zerosearch_jax.simulator.writers import EndpointConfig
from zerosearch_jax.text import protocol
from zerosearch_jax.train import demonstrations


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Which questions are searched for, and how the searches are labelled."""

    questions_from: str = 'world'  # source of training questions (data/sources.py)
    corpus: str = 'world'
    questions: int = 64  # 0: all
    documents: int = 5  # documents of a search with the engine
    label: Literal['answer', 'judge'] = 'answer'  # useful: if the episode's answer is right, or if config.judge says so


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass for each section."""

    seed: int
    mesh: tuple[int, int, int]
    policy: PolicyConfig
    collect: CollectConfig
    rollout: RolloutConfig  # config.rollout.group episodes for each question
    simulator: SimulatorConfig  # how the simulator will be asked: template, documents, words, ...
    judge: JudgeConfig
    endpoint: EndpointConfig


parse = functools.partial(settings.build, Config)


def collect(cfg: Config, workdir: pathlib.Path, config_json: str) -> str:
    """Runs or resumes a collection in `workdir`; returns one line about its content."""
    cfg, config_json = trained.with_files(cfg, config_json, workdir, ('policy', 'judge'))
    with claim(workdir, Config, config_json, ('trajectories.jsonl',)):
        return _collect(cfg, workdir)


def _collect(cfg: Config, workdir: pathlib.Path) -> str:
    sources.check_corpus(cfg.collect.questions_from, cfg.collect.corpus)
    rows.require_source(cfg.collect.corpus)
    prompts.simulator_template(cfg.simulator.template)
    questions = sources.load_questions(cfg.collect.questions_from, 'train')
    chosen = [questions[i] for i in rows.permutation(len(questions), cfg.seed, 0)[: cfg.collect.questions or None]]
    mesh = sharding.make_mesh(cfg.mesh)
    written = _explore(cfg, workdir, chosen, mesh)
    labels = _labels(cfg, workdir, written, mesh)
    made = [_pair(cfg, row, turn, labels[row['id'], row['sample'], turn]) for row, turn in _searches(written)]
    kept = [pair for pair in made if pair is not None]
    if jax.process_index() == 0:
        jsonl.write_jsonl(workdir / 'pairs.jsonl', kept)
    counts = collections.Counter(labels.values())
    counted = ', '.join(f'{count} {label}' for label, count in sorted(counts.items()))
    final = (*pairs.LABELS, 'unclear', 'too_long')  # a retry would give the same
    again = '; run the same command again to judge those that failed' if counts.keys() - set(final) else ''
    again += f'; {counts["too_long"]} exceed config.judge.prompt_tokens' if counts['too_long'] else ''
    return f'{len(kept)} pairs in {workdir / "pairs.jsonl"} from {sum(counts.values())} searches ({counted}){again}'


def _explore(cfg: Config, workdir: pathlib.Path, questions: list[Question], mesh) -> list[dict]:
    """Rows of episodes with the real engine; those that are on disk are not run again."""
    path = workdir / 'trajectories.jsonl'
    found = jsonl.shared_jsonl(path)
    counts = collections.Counter(row['id'] for row in found)
    done = {name for name, count in counts.items() if count == cfg.rollout.group}
    written = [row for row in found if row['id'] in done]
    if len(written) < len(found) and jax.process_index() == 0:  # incomplete groups are run again
        jsonl.write_jsonl(path, written)
    missing = [question for question in questions if question.id not in done]
    if missing:
        judged = cfg.collect.label == 'judge' and cfg.judge.kind == 'model'
        models = {'policy': cfg.policy} | ({'judge': cfg.judge} if judged else {})
        preflight.check(cfg.mesh, models, rollout_mesh=cfg.rollout.mesh)
        if cfg.collect.label == 'judge':
            probe(cfg.judge, cfg.endpoint)  # now, not after hours of episodes
        model = pretrained.load_model(cfg.policy.model, mesh)
        missing = fitting(missing, model.tokenizer, cfg.rollout, 'skip')
        engine = open_policy(model, cfg.rollout, mesh, dtype=cfg.policy.dtype)
        engine.load(policy_params(model, cfg.policy, mesh), temperature=cfg.rollout.temperature)
        search = BM25(sources.load_passages(cfg.collect.corpus)).search
        size = max((cfg.rollout.slots or cfg.rollout.episodes) // cfg.rollout.group, 1)
        with progress.bar(len(missing) * cfg.rollout.group, 'episodes', 'episode') as bar:
            for start in range(0, len(missing), size):
                episodes = rollout(
                    missing[start : start + size],
                    cfg.rollout.group,
                    engine,
                    engine_search(search, cfg.collect.documents),
                    model.tokenizer,
                    cfg.rollout,
                    identity=(cfg.seed, 0),
                    on_finished=lambda _: bar.update(),
                )
                made = [as_row(t, model.tokenizer) for t in episodes]
                written += made
                if jax.process_index() == 0:
                    jsonl.append_jsonl(path, made)
    return written


def _searches(written: list[dict]):
    """(trajectory row, turn) of every search that returned documents."""
    for row in written:
        for turn, search in enumerate(row['searches']):
            if search['documents']:
                yield row, turn


def _labels(cfg: Config, workdir: pathlib.Path, written: list[dict], mesh) -> dict[tuple, str]:
    found = list(_searches(written))
    names = [(row['id'], row['sample'], turn) for row, turn in found]
    if cfg.collect.label == 'answer':
        return {name: 'useful' if row['em'] else 'noisy' for name, (row, _) in zip(names, found, strict=True)}
    writer = open_writer(
        cfg.judge, cfg.endpoint, mesh=mesh, decode_steps=cfg.judge.max_tokens, log=Journal(workdir / 'calls.log')
    )
    texts = [(row['searches'][turn]['query'], row['searches'][turn]['documents']) for row, turn in found]
    log, name = Journal(workdir / 'verdicts.log'), _judge_name(cfg.judge)
    with progress.bar(len(texts), 'judging', 'search') as bar:
        labels = judge(texts, writer, log, name=name, progress=bar.update)
    return dict(zip(names, labels, strict=True))


def _judge_name(cfg: JudgeConfig) -> str:
    """The identity of a judge, which is part of the key of its verdicts."""
    return ' '.join(filter(None, (cfg.model, cfg.adapter, cfg.template_arguments)))


def _pair(cfg: Config, row: dict, turn: int, label: str) -> dict | None:
    """The request and the documents of one search as a row for launch.sft; None if it has no label."""
    if label not in pairs.LABELS:
        return None
    search = row['searches'][turn]
    question = Question(row['id'], row['question'], tuple(row['golden_answers']))
    passages = tuple(Passage(str(i), '', text) for i, text in enumerate(search['documents']))
    name = f'{row["id"]}-{row["sample"]}-{turn}'
    recorded = pairs.RecordedSearch(name, question, search['query'], passages, label)
    size = cfg.simulator.documents, cfg.simulator.words
    cut = demonstrations.recorded_search(recorded, *size, checked=False)
    if cut is None:
        return None
    query = Query(None, cut.question, row['sample'], turn, search['query'])  # its first answer is in the documents
    template = prompts.simulator_template(cfg.simulator.template)
    return {
        'id': name,
        'prompt': request(query, cfg.simulator, template, label == 'noisy', len(cut.passages)),
        'completion': protocol.render_documents([p.text for p in cut.passages]),
        'label': label,
        'query': search['query'],
        'question': row['question'],
        'golden_answers': row['golden_answers'],
    }
