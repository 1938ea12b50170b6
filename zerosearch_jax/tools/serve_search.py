"""A server of Search-R1's retriever protocol: it searches a corpus with BM25, or a simulator writes the documents.

    POST /retrieve   {"queries": ["who wrote hamlet"], "topk": 3, "return_scores": true}
                ->   {"result": [[{"document": {"id": "p1", "contents": "\\"Hamlet\\"\\n..."}, "score": 7.1}, ...]]}

Without scores the inner list holds the documents themselves. For a simulator a request may have more fields, with one
value for each query:

    "question": [text], "golden_answers": [[text, ...]], "id": [text or number];  "noise": 0.25 or "step": 30, "seed": 0

The last three may also be in the address, /retrieve?noise=0.25. Documents are a function of the seed, the step, the
query, its id and these fields.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zerosearch_jax import progress, settings, sharding
from zerosearch_jax.data import sources
from zerosearch_jax.data.rows import Question
from zerosearch_jax.run import preflight, trained
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.search import Document, OutsideFailed, Query, Result, SearchSource, refuse_outage
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.curriculum import Curriculum, noise_probability
from zerosearch_jax.simulator.load import open_writer
from zerosearch_jax.simulator.oracle import Oracle, oracle_search
from zerosearch_jax.simulator.simulator import SimulatedSearch, draw_labels
from zerosearch_jax.simulator.writers import EndpointConfig
from zerosearch_jax.tools import server

# queries of a request, and documents of its reply, at most: Search-R1's training asks for a whole batch at once
MOST_QUERIES, MOST_DOCUMENTS = 4096, 12288
LONGEST_QUERY = 10_000  # characters: all answers of a query are looked for in it
DECODE_STEPS = 16  # tokens that one call of the engine decodes


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What is served, and where."""

    corpus: str = 'world'  # source (data/sources.py) for the engine and for the simulator 'oracle'
    index: str = ''  # directory in which the index of the corpus is saved; '': the index is in memory only
    host: str = '127.0.0.1'
    port: int = 8000  # 0: any free port
    documents: int = 3  # default for requests without `topk`
    steps: int = 203  # steps of the training whose requests have a `step`, for config.curriculum
    slots: int = 16  # requests that the simulator answers at once, if config.simulator.slots is 0
    timeout_s: float = 600.0  # limit of a request to the simulator, from its arrival to its answer

    def __post_init__(self):
        settings.require_positive(self, 'documents', 'steps', 'slots')
        server.require_port(self.port)


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration."""

    seed: int
    mesh: tuple[int, int, int]
    serve: ServeConfig
    simulator: SimulatorConfig  # 'engine': BM25 over config.serve.corpus
    endpoint: EndpointConfig
    curriculum: Curriculum  # its noise; 'constant': `start`

    def __post_init__(self):
        if self.simulator.kind == 'none':
            raise ValueError("config.simulator.kind = 'none' finds nothing; choose another kind")
        if self.simulator.remember:
            raise ValueError('config.simulator.remember is for trainings; leave it empty')
        if self.curriculum.kind == 'adaptive':
            raise ValueError(
                "config.curriculum.kind = 'adaptive' needs rewards, which requests do not have; choose another"
            )


parse = functools.partial(settings.build, Config)


class Moment(NamedTuple):
    """The settings that all queries of a request share, and all queries that are answered together."""

    seed: int
    step: int
    noise: float
    documents: int


class _Asked(server.Job):
    """A request to the simulator: its unanswered queries, and its results so far by position."""

    def __init__(self, timeout_s: float, queries: Sequence[Query], moment: Moment):
        super().__init__(timeout_s)
        self.left, self.moment, self._results, self._count = collections.deque(queries), moment, {}, len(queries)

    def take(self, place: int, result: Result):
        self._results[place] = result
        if len(self._results) == self._count:
            self.pieces.put([self._results[i] for i in range(self._count)])


class Simulated(server.Worker):
    """Answers requests with a simulator: those of one moment together, others in turn.

    Args:
      cfg: seed, curriculum and limits.
      open_source: takes config.simulator and a moment, and returns the source of results.
      room: the most searches at once.
    """

    def __init__(self, cfg: Config, open_source: Callable[[SimulatorConfig, Moment], SearchSource], room: int):
        super().__init__(server.MOST_CONNECTIONS)
        self._cfg, self._open_source, self._room, self._numbers = cfg, open_source, room, itertools.count()
        self._moment, self._source = None, None
        self._asked: dict[Any, _Asked] = {}

    @property
    def busy(self) -> int:
        return len({id(job) for job in self._asked.values()})

    def job(self, told: dict, queries: Sequence[str], k: int) -> _Asked:
        """The job of a request. Raises ValueError if its fields are wrong."""
        ids = _each(told, 'id', len(queries), lambda v: type(v) in (str, int), 'texts or numbers')
        questions = _each(told, 'question', len(queries), lambda v: isinstance(v, str), 'texts')
        answers = _each(told, 'golden_answers', len(queries), _are_texts, 'lists of texts')
        number, asked = next(self._numbers), []
        for i, (text, name, question, golden) in enumerate(zip(queries, ids, questions, answers, strict=True)):
            about = Question(repr((name, text)), question or text, tuple(golden or ()))
            asked.append(Query((number, i), about, 0, 0, text))
        return _Asked(self._cfg.serve.timeout_s, asked, self._moment_of(told, k))

    def _moment_of(self, told: dict, k: int) -> Moment:
        cfg, (seed, step, noise) = self._cfg, (told.get(name) for name in ('seed', 'step', 'noise'))
        if k > cfg.simulator.documents:
            raise ValueError(f'"topk" may be {cfg.simulator.documents} at most, config.simulator.documents, got {k}')
        if noise is None and step is None and cfg.curriculum.kind != 'constant':
            raise ValueError(f'"step" or "noise" is missing: config.curriculum.kind = {cfg.curriculum.kind!r} needs it')
        seed, step = cfg.seed if seed is None else seed, step or 0
        if any(type(value) is not int or not 0 <= value < 2**32 for value in (seed, step)):
            raise ValueError('"seed" and "step" must be whole numbers that are not negative')
        if noise is None:
            noise = noise_probability(cfg.curriculum, step, cfg.serve.steps, seed=seed)
        if type(noise) not in (int, float) or not 0 <= noise <= 1:
            raise ValueError('"noise" must be a probability in [0, 1]')
        return Moment(seed, step, float(noise), k)

    def advance(self):
        with self._changed:
            while self._waiting and len(self._asked) < self._room:
                job = self._waiting[0]
                if job.over or not job.left:
                    self._waiting.popleft()
                    continue
                if job.moment != self._moment:
                    if self.busy:
                        break
                    cfg = dataclasses.replace(self._cfg.simulator, documents=job.moment.documents)
                    self._moment, self._source = job.moment, self._open_source(cfg, job.moment)
                query = job.left.popleft()
                self._asked[query.handle] = job
                self._source.submit(query)
        for result in self._source.step() if self.busy else ():
            self._asked.pop(result.query.handle).take(result.query.handle[1], result)


def _each(told: dict, name: str, count: int, fits: Callable[[Any], bool], what: str) -> list:
    """The values of a field of a request, one for every query, None if there is none."""
    values = [None] * count if told.get(name) is None else told[name]
    if not isinstance(values, list) or len(values) != count or not all(v is None or fits(v) for v in values):
        raise ValueError(f'"{name}" must be a list of {what} or nulls, one for each of {count} queries')
    return values


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def open_server(cfg: Config) -> 'Server':
    """Loads the engine or the simulator, and binds the address.

    Raises:
      ValueError, OSError: one line says what is wrong and what to set.
    """
    passages = functools.cache(lambda: sources.load_passages(cfg.serve.corpus))
    engine = lambda: BM25.open(passages(), cfg.serve.index) if cfg.serve.index else BM25(passages())  # noqa: E731
    if cfg.simulator.kind == 'engine':
        return Server(cfg.serve, engine().search)
    cfg = trained.resolved(cfg, 'simulator')
    preflight.check(cfg.mesh, {}, simulator=cfg.simulator, endpoint=cfg.endpoint, corpus=cfg.serve.corpus)
    if cfg.simulator.kind == 'oracle':
        oracle = Oracle(engine().search, passages())

        def source(size: SimulatorConfig, at: Moment) -> SearchSource:
            return oracle_search(oracle, lambda query: draw_labels(query, size, at[:2], at.noise))

        return Server(cfg.serve, worker=Simulated(cfg, source, MOST_QUERIES))
    simulator = dataclasses.replace(cfg.simulator, slots=cfg.simulator.slots or cfg.serve.slots)
    mesh = sharding.make_mesh(cfg.mesh)
    writer = open_writer(simulator, cfg.endpoint, mesh=mesh, decode_steps=DECODE_STEPS, log=Journal())
    source = lambda size, at: SimulatedSearch(writer, size, seed=at.seed, step=at.step, noise=at.noise)  # noqa: E731
    room = writer.engine.slots if simulator.kind == 'model' else MOST_QUERIES
    return Server(cfg.serve, worker=Simulated(cfg, source, room))


# ---------------------------------------------------------------- the protocol


class Server(server.Server):
    """Serves `search`, which takes (queries, k) and returns documents, or the worker's simulator."""

    def __init__(self, cfg: ServeConfig, search: Callable | None = None, worker: Simulated | None = None):
        super().__init__(cfg, Handler, worker)
        self.search = search

    @property
    def url(self) -> str:
        return f'{super().url}/retrieve'


class Handler(server.Handler):
    server: Server

    def answer(self, method: str, path: str, parameters: str = ''):
        if (method, path) != ('POST', '/retrieve'):
            raise self.no_such('POST to /retrieve')
        body = self.body()  # first: what is left unread would be taken for the next request of the connection
        told = _parameters(parameters) | body
        queries, k, scores = self._request(told)
        reply: dict[str, Any] = {}
        if self.server.search:
            found = self.server.search(queries, k)
        else:
            results = self._simulated(told, queries, k)
            found = [[_written(text) for text in result.documents] for result in results]
            reply = {'failures': [result.failure for result in results]}
        self.reply(200, {'result': [[_shown(document, scores) for document in each] for each in found]} | reply)

    def _simulated(self, told: dict, queries: list[str], k: int) -> list[Result]:
        worker = self.server.worker
        job = worker.job(told, queries, k)
        if not queries:
            return []
        with contextlib.closing(self.follow(worker.submit(job))) as pieces:
            results = next(pieces)
        failed = [result for result in results if result.failure]
        try:
            refuse_outage('searches of the simulator', failed, len(results))
        except OutsideFailed as error:
            raise server.Refused(502, str(error)) from error
        if failed:
            progress.log(f'{len(failed)} of {len(results)} searches failed, one of them: {failed[0].failure}')
        return results

    def _request(self, body: dict) -> tuple[list[str], int, bool]:
        queries = body.get('queries')
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise ValueError('"queries" must be a list of texts')
        k = self.server.cfg.documents if body.get('topk') is None else body['topk']
        if type(k) is not int or k < 1:
            raise ValueError('"topk" must be a positive integer or null')
        if len(queries) > MOST_QUERIES:
            raise ValueError(f'"queries" may be {MOST_QUERIES} at most, got {len(queries)}')
        if (longest := max(map(len, queries), default=0)) > LONGEST_QUERY:
            raise ValueError(f'a query may have {LONGEST_QUERY} characters at most, got {longest}')
        if len(queries) * k > MOST_DOCUMENTS:
            raise ValueError(f'"queries" times "topk" may be {MOST_DOCUMENTS} at most, got {len(queries)} x {k}')
        return queries, k, bool(body.get('return_scores', False))

    def told(self, status: int, why: str) -> dict:
        return {'detail': why}


def _parameters(text: str) -> dict:
    """The numbers in the address of a request, for clients that cannot send other fields."""
    given = urllib.parse.parse_qs(text)
    return {name: settings.parse_json(given[name][0]) for name in ('seed', 'step', 'noise') if name in given}


def _written(text: str) -> Document:
    return Document('', text, hashlib.sha256(text.encode()).hexdigest()[:16])


def _shown(document: Document, score: bool) -> dict:
    plain = {'id': document.id, 'contents': f'"{document.title}"\n{document.text}'}
    return {'document': plain, 'score': document.score} if score else plain
