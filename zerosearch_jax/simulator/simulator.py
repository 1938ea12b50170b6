"""The simulator: a model that plays the search engine, and writes useful or noisy documents on demand."""

import dataclasses
import hashlib
import json
from collections.abc import Hashable, Sequence

from zerosearch_jax import prng
from zerosearch_jax.data.rows import Question
from zerosearch_jax.search import outside
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.search import Query, Result
from zerosearch_jax.simulator import prompts
from zerosearch_jax.simulator.config import WRITER_FIELDS, SimulatorConfig
from zerosearch_jax.simulator.curriculum import is_noisy
from zerosearch_jax.simulator.verify import Answers, answers_of
from zerosearch_jax.simulator.writers import Writer


def draw_labels(query: Query, cfg: SimulatorConfig, identity: tuple[int, int], noise: float) -> tuple[bool, ...]:
    """Which documents should be noisy: one draw for the search, or one for each document. identity: (seed, step)."""
    who = (*identity, query.question.id, query.sample, query.turn)
    if cfg.noise_per == 'search':
        return (is_noisy(prng.uniform('curriculum', *who), noise),) * cfg.documents
    return tuple(is_noisy(prng.uniform('curriculum', *who, i), noise) for i in range(cfg.documents))


@dataclasses.dataclass
class _Search:
    """A search that is not finished: its useful and noisy documents so far, and the attempts for each."""

    query: Query
    labels: tuple[bool, ...]
    answers: Answers
    found: dict[bool, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    spare: dict[bool, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # the last that could be parsed
    attempts: int = 1
    failure: str = ''
    detail: str = ''

    def take(self, noisy: bool, *, documents: Sequence[str] = (), failure: str = '', detail: str = '', attempts: int):
        self.found[noisy], self.attempts = tuple(documents), max(self.attempts, attempts)
        if failure:
            self.failure, self.detail = failure, detail

    @property
    def complete(self) -> bool:
        return self.found.keys() == set(self.labels)

    def result(self) -> Result:
        parts = {noisy: iter(documents) for noisy, documents in self.found.items()}
        documents = tuple(next(parts[noisy]) for noisy in self.labels) if self.complete and not self.failure else ()
        checks = {self.answers.agree(part, noisy) for noisy, part in self.found.items()} - {None}
        mislabelled = False in checks if checks and documents else None
        return Result(self.query, documents, self.labels, self.failure, self.attempts, self.detail, mislabelled)


class SimulatedSearch:
    """A model that writes useful or noisy documents on demand, for one training step.

    Args:
      writer: the model.
      cfg: wording and limits.
      seed: run seed.
      step: training step; with the seed, question, sample and turn it determines every draw.
      noise: probability that a query (or a document) is noisy: the curriculum's value at this step.
      memory: journal of documents, by all that they depend on and the seed; None: nothing is remembered.
      failures: with a memory, the run's own journal, for failures of a step's searches (not of step 0).
      weights: identifies the writer's weights among others of the same name.
    """

    def __init__(
        self,
        writer: Writer,
        cfg: SimulatorConfig,
        *,
        seed: int,
        step: int,
        noise: float,
        memory: Journal | None = None,
        failures: Journal | None = None,
        weights: str = '',
    ):
        self._writer, self._cfg, self._noise, self._memory, self._failures = writer, cfg, noise, memory, failures
        self._template = prompts.simulator_template(cfg.template)
        self._identity, self._weights = (seed, step), weights
        self._searches: dict[Hashable, _Search] = {}
        self._ready: list[Result] = []

    def submit(self, query: Query):
        """Queues a query; a later `step` returns its result."""
        labels = draw_labels(query, self._cfg, self._identity, self._noise)
        search = _Search(query, labels, answers_of(query, self._cfg.tell))
        self._searches[query.handle] = search
        for noisy in sorted(set(search.labels)):
            if self._memory and (known := self._known(search, noisy)):
                search.take(noisy, **known)
            else:
                self._ask(search, noisy, 1)
        self._finish(search)

    @property
    def active(self) -> int:
        """Number of open requests."""
        return len(self._ready) + self._writer.active

    def step(self) -> list[Result]:
        """Advances the simulator by one engine step; returns the finished searches."""
        for written in self._writer.step() if self._writer.active else ():
            handle, noisy, attempt = written.handle
            search, failure, detail = self._searches[handle], written.failure, written.detail
            again = failure in ('', 'empty')
            if not failure:
                count = search.labels.count(noisy)
                documents, failure = prompts.parse_documents(written.text, count, self._cfg.words)
                detail = outside.safe_message(written.text)
            if not failure:
                search.spare[noisy] = documents
                again = self._cfg.verify and search.answers.agree(documents, noisy) is False
            if again and attempt < self._cfg.attempts:
                self._ask(search, noisy, attempt + 1)
                continue
            if again and noisy in search.spare:
                documents, failure = search.spare[noisy], ''
            if failure:
                value = {'failure': failure, 'detail': detail, 'attempts': attempt}
            else:
                value = {'documents': documents, 'attempts': attempt}
            search.take(noisy, **value)
            if self._memory and not failure:
                self._memory.put(self._key(search, noisy), value)
            elif self._memory and self._identity[1]:
                self._failures.defer(self._failure_key(search, noisy), value)
            self._finish(search)
        done, self._ready = self._ready, []
        return done

    def _finish(self, search: _Search):
        if search.complete:
            self._ready.append(self._searches.pop(search.query.handle).result())

    def _ask(self, search: _Search, noisy: bool, attempt: int):
        query, search.attempts = search.query, max(search.attempts, attempt)
        message = self._message(search, noisy)
        if self._memory:
            identity = (self._key(search, noisy), attempt)
        else:
            identity = (*self._identity, query.question.id, query.sample, query.turn, attempt)
            if self._cfg.noise_per == 'document':
                identity += (int(noisy),)
        self._writer.ask((query.handle, noisy, attempt), message, identity, self._template.system)

    def _message(self, search: _Search, noisy: bool) -> str:
        return prompts.request(search.query, self._cfg, self._template, noisy, search.labels.count(noisy))

    def _key(self, search: _Search, noisy: bool) -> str:
        query, count = search.query, search.labels.count(noisy)
        writer = (*(getattr(self._cfg, name) for name in WRITER_FIELDS), self._weights)
        who = (writer, self._identity[0], query.text, query.question.question, noisy, count)
        who += (search.answers, self._cfg.attempts) if self._cfg.verify else ()
        who += () if self._template.system is None else (self._template.system,)
        return hashlib.sha256(repr((*who, self._message(search, noisy))).encode('utf-8', 'replace')).hexdigest()

    def _failure_key(self, search: _Search, noisy: bool) -> str:
        """The key of a failure of this search in this step, which a resumed run sees again."""
        query = search.query
        where = json.dumps([self._identity[1], query.question.id, query.sample, query.turn])
        return f'{self._key(search, noisy)} {where}'

    def _known(self, search: _Search, noisy: bool) -> dict | None:
        return self._failures.get(self._failure_key(search, noisy)) or self._memory.get(self._key(search, noisy))


class CompactedQuestions:
    """The published system's difference D1, for studies of its effect: a query carries another trajectory's question.

    The trajectories that search in a turn are renumbered, and each takes the question and answers of the trajectory
    with this number in the whole batch. A turn waits until none writes or waits, so that all that search are known.

    Args:
      source: of the results.
      policy: the policy's engine.
      questions: of the step, in order.
      group: trajectories of a question.
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
        return self._source.active or (0 if self._policy.active else len(self._queue))

    def step(self) -> list[Result]:
        if self._queue and not self._policy.active and not self._source.active:
            turn = sorted(self._queue, key=lambda q: self._place[q.question.id, q.sample])
            for query, (question, sample) in zip(turn, self._batch, strict=False):
                self._asked[query.handle] = query
                self._source.submit(dataclasses.replace(query, question=question, sample=sample))
            self._queue = []
        found = self._source.step() if self._source.active else []
        return [dataclasses.replace(result, query=self._asked.pop(result.query.handle)) for result in found]
