"""The interface of all sources of search results: `submit` takes a query, `step` returns results.

The order of results depends on the queries alone. Each query carries its own question and golden answers. A failed
search is a typed result, never a text. Sources are a real engine or an oracle (`DocumentSearch`), a model that plays
the engine (simulator/simulator.py), and a filter of another source (evaluate/refine.py).
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from zerosearch_jax.data.rows import Question
from zerosearch_jax.text import protocol


@dataclasses.dataclass(frozen=True)
class Query:
    """One search of one trajectory."""

    handle: Hashable  # identifies the trajectory that waits for the result
    question: Question
    sample: int
    turn: int  # number of earlier searches of the trajectory
    text: str
    policy_text: str = ''  # what the policy has written so far, this query included


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a query: documents, or the kind of failure (of writers.Completion or prompts.parse_documents)."""

    query: Query
    documents: tuple[str, ...] = ()
    labels: tuple[bool, ...] = ()  # of a simulated search: which documents were requested as noisy
    failure: str = ''
    attempts: int = 1
    detail: str = ''  # of a failure: the server's message, redacted and short; shown to users, never to a model
    mislabelled: bool | None = None  # whether a simulator's documents contradict their labels; None: cannot be checked

    @property
    def noisy(self) -> bool:
        """Whether any of its documents was requested as noisy."""
        return any(self.labels)


@dataclasses.dataclass(frozen=True)
class Document:
    """A search result."""

    title: str
    text: str
    id: str = ''
    score: float = dataclasses.field(default=0.0, compare=False)

    @property
    def as_text(self) -> str:
        """Title and text, as the prompt has them."""
        return '. '.join(filter(None, (self.title, self.text)))


@dataclasses.dataclass(frozen=True)
class SearchFailed:
    """Replaces a query's documents if the engine failed: the kind of failure, and its message as `detail`."""

    kind: str
    detail: str = ''


class OutsideFailed(OSError):
    """A remote service cannot be used; the error names the service and its message."""


OUTAGE = 0.9  # share of failed requests from which on nothing can be learned or measured
FEWEST = 4  # failures that an outage needs: one or two may be caused by the queries themselves


def refuse_outage(what: str, failures: Sequence, asked: int, fewest: float = FEWEST):
    """Raises OutsideFailed, with the server's message, if (nearly) all requests failed.

    Args:
      what: kind of request, for the message.
      failures: objects with `failure` and `detail`.
      asked: number of requests, the failures included.
      fewest: the least failures that count as an outage.
    """
    if len(failures) < max(OUTAGE * asked, fewest, 1):
        return
    kinds = collections.Counter(f.failure for f in failures).most_common()
    said = next((f'; the other side says: {f.detail}' for f in failures if f.detail), '')
    counts = ', '.join(f'{count} {kind}' for kind, count in kinds)
    raise OutsideFailed(f'{what}: {len(failures)} of {asked} failed ({counts}){said}')


class SearchSource(Protocol):
    """The one interface."""

    def submit(self, query: Query): ...

    @property
    def active(self) -> int:
        """Number of queries that are being answered or whose results are ready."""

    def step(self) -> list[Result]:
        """Advances the work; returns the results that are new since the last call."""


class DocumentSearch:
    """A real search engine or an oracle, which answers at once. Queries of one step are answered together.

    Args:
      find: takes the queries and, for each of their documents, whether it should be noisy; returns for each query the
        texts of its documents, or SearchFailed.
      labels: takes a query and returns these labels; None: a real engine, which has none.
    """

    def __init__(
        self,
        find: Callable[[Sequence[Query], Sequence[tuple[bool, ...]]], list[list[str] | SearchFailed]],
        labels: Callable[[Query], tuple[bool, ...]] = lambda query: (),
    ):
        self._find, self._labels = find, labels
        self._queue: list[Query] = []

    def submit(self, query: Query):
        self._queue.append(query)

    @property
    def active(self) -> int:
        return len(self._queue)

    def step(self) -> list[Result]:
        queue, self._queue = self._queue, []
        labels = [self._labels(query) for query in queue]
        found = self._find(queue, labels) if queue else []
        return [
            Result(query, labels=label, failure=texts.kind, detail=texts.detail)
            if isinstance(texts, SearchFailed)
            else Result(query, tuple(map(protocol.neutralize, texts)), label)
            for query, texts, label in zip(queue, found, labels, strict=True)
        ]


def engine_search(search: Callable, documents: int) -> DocumentSearch:
    """A real search engine: `search` takes (queries, k) and returns documents, for example BM25(...).search."""

    def find(queries: Sequence[Query], labels) -> list[list[str] | SearchFailed]:
        return [
            found if isinstance(found, SearchFailed) else [d.as_text for d in found]
            for found in search([query.text for query in queries], documents)
        ]

    return DocumentSearch(find)
