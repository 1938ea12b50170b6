"""Which answers the documents of a query should hold or withhold, and whether they do."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from zerosearch_jax.data.rows import Question, as_text, holds_answer, normalize_answer
from zerosearch_jax.search.search import Query

FUNCTION_WORDS = """a an and are as at be by did do does for from had has have how in is it its many much of on or s
that the their this to was were what when where which who whom whose why will with"""


class Answers(NamedTuple):
    """For a query: the answer in its requests, the answers for useful documents, and those that noisy ones withhold."""

    told: str  # '': none
    useful: tuple[str, ...]  # (): nothing that can be checked
    noisy: tuple[str, ...]

    def agree(self, documents: Sequence[str], noisy: bool) -> bool | None:
        """Whether a useful document holds an answer, or no noisy document does; None: that cannot be checked."""
        wanted = self.noisy if noisy else self.useful
        return any(holds_answer(document, wanted) for document in documents) != noisy if wanted else None


def answers_of(query: Query, tell: str) -> Answers:
    """The answers of a query: its question's or, with `tell` 'hop', those of the hop that it asks for.

    The hops are in `metadata['decomposition']`: each has a `query` (built-in worlds) or `question` (MuSiQue, where '#1'
    is the first hop's answer) and an `answer`; without them 'hop' is the same as 'final'. A query asks for the hop with
    whose query it shares the most content words; if there are several, for the one nearest to its turn. Noisy documents
    withhold the hop's answer and the question's, except for answers in the query itself. Yes and no cannot be checked.
    """
    own = golds = query.question.golden_answers
    if tell == 'hop' and (hops := hops_of(query.question)):
        shared = [len(content_words(query.text) & content_words(asked)) for asked, _ in hops]
        own = (hops[max(range(len(hops)), key=lambda i: (shared[i], -abs(i - query.turn)))][1],)
        own += golds if normalize_answer(own[0]) in map(normalize_answer, golds) else ()
    withheld = dict.fromkeys((*checkable(own), *checkable(golds)))
    said = f' {normalize_answer(query.text)} '  # once, however many answers there are
    noisy = tuple(answer for answer in withheld if f' {normalize_answer(answer)} ' not in said)
    return Answers(own[0] if own and tell != 'none' else '', checkable(own), noisy)


def content_words(text: str) -> set[str]:
    """The words of a text, in lower case, without function words."""
    return {*re.findall(r'\w+', text.lower())} - {*FUNCTION_WORDS.split()}


def share_held(query: str, documents: Iterable[str]) -> float:
    """Share of a query's distinct content words that occur in any of the documents; 0 if it has none."""
    words = content_words(query)
    return len(words & content_words('\n'.join(documents))) / max(len(words), 1)


def hops_of(question: Question) -> list[tuple[str, str]]:
    """(query, answer) of every hop; [] if the question does not list them all."""
    hops: list[tuple[str, str]] = []
    try:
        for step in question.metadata['decomposition']:
            asked, answer = step.get('query') or step['question'], as_text(step['answer']).strip()
            for number, (_, found) in enumerate(hops, start=1):
                asked = asked.replace(f'#{number}', found)
            hops.append((asked, answer))
    except (LookupError, TypeError, AttributeError):
        return []
    return hops


def checkable(answers: tuple[str, ...]) -> tuple[str, ...]:
    """The answers, or () if they cannot be found in documents because yes or no is among them."""
    return () if {'', 'yes', 'no'} & {*map(normalize_answer, answers)} else answers
