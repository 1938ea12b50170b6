"""Which answers the documents of a query are to hold or to withhold, and whether they do."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from zerosearch_jax.data.rows import Question, holds_answer, normalize_answer
from zerosearch_jax.search.search import Query

FUNCTION_WORDS = """a an and are as at be by did do does for from had has have how in is it its many much of on or s
that the their this to was were what when where which who whom whose why will with"""


class Answers(NamedTuple):
    """Of a query: the answer that its requests tell, and those that useful documents hold and noisy ones do not."""

    told: str  # '': none
    useful: tuple[str, ...]  # (): nothing that can be checked
    noisy: tuple[str, ...]

    def agree(self, documents: Sequence[str], noisy: bool) -> bool | None:
        """Whether one of useful documents holds an answer, or none of noisy ones does; None: that cannot be checked."""
        wanted = self.noisy if noisy else self.useful
        return any(holds_answer(document, wanted) for document in documents) != noisy if wanted else None


def answers_of(query: Query, tell: str) -> Answers:
    """The answers of a query: its question's or, with `tell` 'hop', those of the hop that it asks for.

    The hops are in `metadata['decomposition']`: each a `query` (built-in worlds) or `question` (MuSiQue, where '#1' is
    the first hop's answer) and an `answer`; without them 'hop' is as 'final'. A query asks for the hop with whose query
    it shares the most content words, of several the one nearest to its turn. Noisy documents hold neither the hop's
    answer nor the question's, but for what the query says: nobody can withhold that. Yes and no cannot be checked.
    """
    own = golds = query.question.golden_answers
    if tell == 'hop' and (hops := hops_of(query.question)):
        shared = [len(content_words(query.text) & content_words(asked)) for asked, _ in hops]
        own = (hops[max(range(len(hops)), key=lambda i: (shared[i], -abs(i - query.turn)))][1],)
        own += golds if normalize_answer(own[0]) in map(normalize_answer, golds) else ()
    withheld = dict.fromkeys((*_checkable(own), *_checkable(golds)))
    noisy = tuple(answer for answer in withheld if not holds_answer(query.text, [answer]))
    return Answers(own[0] if own and tell != 'none' else '', _checkable(own), noisy)


def content_words(text: str) -> set[str]:
    """The words of a text, in lower case, that say what it is about."""
    return {*re.findall(r'\w+', text.lower())} - {*FUNCTION_WORDS.split()}


def hops_of(question: Question) -> list[tuple[str, str]]:
    """(query, answer) of every hop; [] where the question does not tell them all."""
    hops: list[tuple[str, str]] = []
    try:
        for step in question.metadata['decomposition']:
            asked, answer = step.get('query') or step['question'], step['answer'].strip()
            for number, (_, found) in enumerate(hops, start=1):
                asked = asked.replace(f'#{number}', found)
            hops.append((asked, answer))
    except (LookupError, TypeError, AttributeError):
        return []
    return hops


def _checkable(answers: tuple[str, ...]) -> tuple[str, ...]:
    return () if {'', 'yes', 'no'} & {*map(normalize_answer, answers)} else answers
