"""The one interface to every source of search results: a query goes in with `submit`, its result comes out of `step`.

The order of results depends on nothing but the queries. Each query carries its own question and gold answers. A search
that fails is a typed result, never a text. Sources: a real engine or an oracle (`DocumentSearch`), a model that plays
the engine (simulator/simulator.py), and what stands between (evaluate/refine.py).
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

    handle: Hashable  # the trajectory that waits for the result
    question: Question
    sample: int
    turn: int  # number of searches that the trajectory made before
    text: str
    policy_text: str = ''  # what the policy wrote so far, this query included


@dataclasses.dataclass(frozen=True)
class Result:
    """What came back: documents, or the kind of failure (of writers.Completion, or of prompts.parse_documents)."""

    query: Query
    documents: tuple[str, ...] = ()
    labels: tuple[bool, ...] = ()  # of a simulated search: which of the documents were asked to be noisy
    failure: str = ''
    attempts: int = 1
    detail: str = ''  # of a failure: what the other side said, redacted and short; for people, never for a model
    mislabelled: bool | None = None  # whether a simulator's documents belie their labels; None: that cannot be checked

    @property
    def noisy(self) -> bool:
        """Whether any of its documents was asked to be noisy."""
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
        """Title and text as a model reads them."""
        return '. '.join(filter(None, (self.title, self.text)))


@dataclasses.dataclass(frozen=True)
class SearchFailed:
    """Takes the place of a query's documents where the engine could not answer: `kind`, and `detail` in its words."""

    kind: str
    detail: str = ''


class OutsideFailed(OSError):
    """A service of the outside cannot be used; the message says which, and what it said."""


OUTAGE = 0.9  # share of what is asked: where so much fails, nothing can be learned or measured
FEWEST = 4  # failures that make an outage: one or two queries may be at fault themselves


def refuse_outage(what: str, failures: Sequence, asked: int, fewest: float = FEWEST):
    """Raises OutsideFailed, with the words of the other side, where (nearly) all failed.

    Args:
      what: was asked.
      failures: whatever has `failure` and `detail`.
      asked: how many, the failures included.
      fewest: failures that are enough.
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
        """Queries under way, and results that are ready."""

    def step(self) -> list[Result]:
        """Advances the work; returns what has been answered since."""


class DocumentSearch:
    """Documents that are at hand: a real search engine, or an oracle. Queries of one step are answered together.

    Args:
      find: function of the queries and, for each of their documents, whether it is to be noisy, to the documents'
        texts or SearchFailed.
      labels: function of a query to these labels; None: a real engine, which has none.
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
    """A real search engine: `search` is a function of (queries, k) to documents, e.g. BM25(...).search."""

    def find(queries: Sequence[Query], labels) -> list[list[str] | SearchFailed]:
        return [
            found if isinstance(found, SearchFailed) else [d.as_text for d in found]
            for found in search([query.text for query in queries], documents)
        ]

    return DocumentSearch(find)
