"""The simulator: a model that plays the search engine, and writes useful or noisy documents on demand."""

import dataclasses
import hashlib
from collections.abc import Hashable, Sequence

from zerosearch_jax import prng
from zerosearch_jax.data.rows import Question
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.search import Query, Result
from zerosearch_jax.simulator import prompts
from zerosearch_jax.simulator.config import WRITER_FIELDS, SimulatorConfig
from zerosearch_jax.simulator.curriculum import is_noisy
from zerosearch_jax.simulator.writers import Writer


def draw_labels(query: Query, cfg: SimulatorConfig, identity: tuple[int, int], noise: float) -> tuple[bool, ...]:
    """Which of the documents are to be noisy: one draw a search, or one a document. identity: (seed, step)."""
    who = (*identity, query.question.id, query.sample, query.turn)
    if cfg.noise_per == 'search':
        return (is_noisy(prng.uniform('curriculum', *who), noise),) * cfg.documents
    return tuple(is_noisy(prng.uniform('curriculum', *who, i), noise) for i in range(cfg.documents))


@dataclasses.dataclass
class _Search:
    """A search under way: the documents of each quality that are there, and how many times they were asked for."""

    query: Query
    labels: tuple[bool, ...]
    found: dict[bool, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    attempts: int = 1
    failure: str = ''
    detail: str = ''

    @property
    def complete(self) -> bool:
        return self.found.keys() == set(self.labels)

    def result(self) -> Result:
        parts = {noisy: iter(documents) for noisy, documents in self.found.items()}
        documents = tuple(next(parts[noisy]) for noisy in self.labels) if self.complete and not self.failure else ()
        return Result(self.query, documents, self.labels, self.failure, self.detail, self.attempts)


class SimulatedSearch:
    """A model that writes useful or noisy documents on demand, for one training step.

    Args:
      writer: the model.
      cfg: wording and limits.
      seed: run seed.
      step: training step; with the seed, question, sample and turn it decides every draw.
      noise: probability that a query (or a document) is noisy: the curriculum's value at this step.
      memory: where documents are remembered by (query, question, quality, seed); None: they are not.
    """

    def __init__(
        self, writer: Writer, cfg: SimulatorConfig, *, seed: int, step: int, noise: float, memory: Journal | None = None
    ):
        self._writer, self._cfg, self._noise, self._memory = writer, cfg, noise, memory
        self._template = prompts.simulator_template(cfg.template)
        self._identity = (seed, step)
        self._searches: dict[Hashable, _Search] = {}
        self._ready: list[Result] = []

    def submit(self, query: Query):
        """Queues a query; its result comes out of a later `step`."""
        search = _Search(query, draw_labels(query, self._cfg, self._identity, self._noise))
        self._searches[query.handle] = search
        for noisy in sorted(set(search.labels)):
            known = self._memory.get(self._key(search, noisy)) if self._memory else None
            if known is None:
                self._ask(search, noisy, 1)
            else:
                search.found[noisy] = tuple(known)
        self._finish(search)

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self._ready) + self._writer.active

    def step(self) -> list[Result]:
        """Advances the simulator by one engine step; returns the finished searches."""
        for written in self._writer.step() if self._writer.active else ():
            handle, noisy, attempt = written.handle
            search, failure, detail = self._searches[handle], written.failure, written.detail
            if not failure:
                count = search.labels.count(noisy)
                documents, failure = prompts.parse_documents(written.text, count, self._cfg.words)
            if not failure:
                search.found[noisy] = documents
                if self._memory:
                    self._memory.put(self._key(search, noisy), list(documents))
            elif written.failure not in ('', 'empty') or attempt >= self._cfg.attempts:
                search.failure, search.detail = failure, detail
                search.found.setdefault(noisy, ())
            else:
                self._ask(search, noisy, attempt + 1)
            self._finish(search)
        done, self._ready = self._ready, []
        return done

    def _finish(self, search: _Search):
        if search.complete:
            self._ready.append(self._searches.pop(search.query.handle).result())

    def _ask(self, search: _Search, noisy: bool, attempt: int):
        query, search.attempts = search.query, max(search.attempts, attempt)
        message = prompts.request(query, self._cfg, self._template, noisy, search.labels.count(noisy))
        if self._memory:
            identity = (self._key(search, noisy), attempt)
        else:
            identity = (*self._identity, query.question.id, query.sample, query.turn, attempt)
            if self._cfg.noise_per == 'document':
                identity += (int(noisy),)
        self._writer.ask((query.handle, noisy, attempt), message, identity)

    def _key(self, search: _Search, noisy: bool) -> str:
        query, count = search.query, search.labels.count(noisy)
        writer = tuple(getattr(self._cfg, name) for name in WRITER_FIELDS)
        who = (writer, self._identity[0], query.text, query.question.question, noisy, count)
        return hashlib.sha256(repr(who).encode()).hexdigest()


class CompactedQuestions:
    """The published system's defect D1, to tell what it changes: a query carries another trajectory's question.

    The trajectories that search in a turn are numbered anew, and each takes the question and answers of the trajectory
    that has its new number in the whole batch. To know who searches, a turn waits until no trajectory is writing.

    Args:
      source: of the results.
      policy: the engine that writes.
      questions: of the step, in order.
      group: trajectories each.
    """

    def __init__(self, source, policy, questions: Sequence[Question], group: int):
        self._source, self._policy = source, policy
        self._batch = [(question, sample) for question in questions for sample in range(group)]
        self._place = {(question.id, sample): i for i, (question, sample) in enumerate(self._batch)}
        self._queue: list[Query] = []
        self._asked: dict[Hashable, Query] = {}

    def submit(self, query: Query):
        self._queue.append(query)

    @property
    def active(self) -> int:
        return self._source.active + (0 if self._policy.active else len(self._queue))

    def step(self) -> list[Result]:
        if self._queue and not self._policy.active:
            turn = sorted(self._queue, key=lambda q: self._place[q.question.id, q.sample])
            for query, (question, sample) in zip(turn, self._batch, strict=False):
                self._asked[query.handle] = query
                self._source.submit(dataclasses.replace(query, question=question, sample=sample))
            self._queue = []
        found = self._source.step() if self._source.active else []
        return [dataclasses.replace(result, query=self._asked.pop(result.query.handle)) for result in found]
