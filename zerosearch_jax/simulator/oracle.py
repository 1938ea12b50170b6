"""Simulated search without a model: gold passages of a corpus are the useful documents, distractors the noisy ones.

It is an upper bound of what a simulator can do, at no cost. A question names its gold passages (`supporting_ids`, or
the passages of its `decomposition`). If it names none, or none of this corpus, gold passages are those that the engine
finds and that hold an answer.
"""

from collections.abc import Callable, Sequence

from zerosearch_jax.data.rows import Passage, Question, holds_answer
from zerosearch_jax.search.search import Document, DocumentSearch, Query
from zerosearch_jax.simulator.verify import checkable

CANDIDATES = 30  # results of the engine from which useful and noisy documents are chosen


def gold_ids(question: Question) -> tuple[str, ...]:
    """Ids of the passages that the question's fields name."""
    named = question.metadata.get('supporting_ids') or ()
    steps = question.metadata.get('decomposition') or ()
    ids = [*named, *(s.get('passage') or s.get('pid') for s in steps if isinstance(s, dict))]
    return tuple(dict.fromkeys(str(i) for i in ids if i not in (None, '')))


class Oracle:
    """Finds useful and noisy documents.

    Args:
      search: the engine, which takes (queries, k) and returns documents.
      passages: of its corpus.
    """

    def __init__(self, search: Callable[[Sequence[str], int], list[list[Document]]], passages: Sequence[Passage]):
        self._search = search
        self._passages = {p.id: Document(p.title, p.text, p.id) for p in passages}

    def find(self, queries: Sequence[Query], labels: Sequence[tuple[bool, ...]]) -> list[list[str]]:
        """The texts of the documents of every query; fewer than labels if the corpus has no more."""
        found = self._search([query.text for query in queries], CANDIDATES)
        return [self._choose(*each) for each in zip(queries, found, labels, strict=True)]

    def _choose(self, query: Query, hits: list[Document], labels: tuple[bool, ...]) -> list[str]:
        answers = checkable(query.question.golden_answers)  # yes and no are in any passage
        named = [i for i in gold_ids(query.question) if i in self._passages]  # they may be of another corpus
        gold = [d for d in hits if (d.id in named if named else holds_answer(d.as_text, answers))]
        gold = gold or [self._passages[i] for i in sorted(named)]
        others = [d for d in hits if d.id not in named and not holds_answer(d.as_text, answers)]
        useful, noisy = labels.count(False), labels.count(True)
        fill = others[noisy : noisy + max(useful - len(gold), 0)]  # more useful documents than gold passages
        parts = {False: iter([*gold[:useful], *fill]), True: iter(others[:noisy])}
        return [document.as_text for label in labels if (document := next(parts[label], None))]


def oracle_search(oracle: Oracle, labels: Callable[[Query], tuple[bool, ...]]) -> DocumentSearch:
    """The oracle as a source of search results; `labels` draws which documents of a query should be noisy."""
    return DocumentSearch(oracle.find, labels)
