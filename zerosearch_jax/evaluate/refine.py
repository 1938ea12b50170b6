"""Search-o1's refinement: before the policy reads documents, a model summarizes what they say about the query.

    query --> engine --> documents --> "what helps?" --> a sentence or two --> the policy

Li et al., arXiv 2501.05366, §3.3 (reason in documents); the wording is REFINE_PROMPT.
"""

import dataclasses
from collections.abc import Hashable

from zerosearch_jax.search.search import DocumentSearch, Query, Result
from zerosearch_jax.simulator.writers import Writer
from zerosearch_jax.text import protocol

REMEMBERED = 200  # words of the policy's last thoughts in the request
WORDS = 120  # the most words of a document in the request ...
TOKENS = 240  # ... and the most tokens that are expected for them


class RefinedSearch:
    """A source of search results in which a model summarizes the documents of another source.

    Args:
      source: of the documents.
      writer: the model.
      seed: of its samples.
    """

    def __init__(self, source: DocumentSearch, writer: Writer, seed: int):
        self._source, self._writer, self._seed = source, writer, seed
        self._waiting: dict[Hashable, Result] = {}

    def submit(self, query: Query):
        self._source.submit(query)

    @property
    def active(self) -> int:
        return self._source.active + self._writer.active

    def step(self) -> list[Result]:
        """Advances both; searches that failed or found nothing are returned unchanged."""
        done = []
        for result in self._source.step() if self._source.active else ():
            if result.documents:
                self._ask(result)
            else:
                done.append(result)
        for written in self._writer.step() if self._writer.active else ():
            result = self._waiting.pop(written.handle)
            if written.failure in ('too_long', 'empty'):  # the model's: the policy then reads the documents themselves
                done.append(result)
                continue
            text = ' '.join(protocol.neutralize(written.text).split())
            about = {'failure': written.failure, 'detail': written.detail}
            done.append(dataclasses.replace(result, documents=(text,) if text else (), **about))
        return done

    def _ask(self, result: Result):
        query = result.query
        message = protocol.fill(
            REFINE_PROMPT,
            question=query.question.question,
            written=' '.join(query.policy_text.split()[-REMEMBERED:]),
            query=query.text,
            documents=protocol.render_documents([' '.join(d.split()[:WORDS]) for d in result.documents]),
        )
        self._waiting[query.handle] = result
        self._writer.ask(query.handle, message, ('refine', self._seed, query.question.id, query.sample, query.turn))


REFINE_PROMPT = (
    'Somebody answers a question and searches for what they lack. Say in one or two sentences what the documents tell '
    'that helps with the query; say that they tell nothing helpful where that is so.\nQuestion: {question}\n'
    'Thoughts so far: {written}\nQuery: {query}\n{documents}\nWhat helps:'
)
