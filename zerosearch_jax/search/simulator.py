"""Where search results come from: a language model playing the engine, or a real engine, behind one small interface.

Both take queries with `submit`, and return results with `step`, in an order that depends on nothing but the queries.
Each query carries its own question and gold answers. A search that fails is a typed result, never a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Literal

from zerosearch_jax import prng
from zerosearch_jax.data.rows import Question
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.search import prompts
from zerosearch_jax.search.curriculum import is_noisy
from zerosearch_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Query:
    """One search of one trajectory."""

    handle: Hashable  # the trajectory that waits for the result
    question: Question
    sample: int
    turn: int  # number of searches that the trajectory made before
    text: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What came back: documents, or the kind of failure ('malformed' output, 'too_long' prompt)."""

    query: Query
    documents: tuple[str, ...] = ()
    noisy: bool = False
    failure: str = ''
    attempts: int = 1


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
    """Which model plays the search engine, and how it is asked and read."""

    model: str = 'smollm2-135m-instruct'  # as config.policy.model
    adapter: str = ''  # as config.policy.adapter
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    documents: int = 3  # documents a search
    words: int = 30  # words a document, as asked for
    prompt_tokens: int = 320  # tokens of one request: template, question, answer and query
    max_tokens: int = 160  # tokens of one output
    temperature: float = 0.8
    attempts: int = 3  # generations at most before the search counts as failed
    slots: int = 16
    cache_gib: float = 0.0  # as config.rollout.cache_gib


class SimulatedSearch:
    """A language model that writes useful or noisy documents on demand, for one training step.

    Args:
      engine: the simulator's engine, loaded.
      tokenizer: the simulator's.
      cfg: wording and limits.
      seed: run seed.
      step: training step; with the seed, question, sample and turn it decides every draw.
      noise: probability that a query gets noisy documents (the curriculum's value at this step).
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, cfg: SimulatorConfig, *, seed: int, step: int, noise: float
    ):
        self.noise = noise
        self._engine, self._tokenizer, self._cfg = engine, tokenizer, cfg
        self._identity = (seed, step)
        self._pending: dict[Hashable, Result] = {}
        self._ready: list[Result] = []

    def submit(self, query: Query):
        """Queues a query; its result comes out of a later `step`."""
        draw = prng.uniform('curriculum', *self._identity, query.question.id, query.sample, query.turn)
        self._ask(Result(query, noisy=is_noisy(draw, self.noise)))

    @property
    def active(self) -> int:
        """Searches under way."""
        return len(self._ready) + self._engine.active

    def step(self) -> list[Result]:
        """Advances the simulator by one engine step; returns the finished searches."""
        done, self._ready = self._ready, []
        for stopped in self._engine.step():
            self._engine.close(stopped.handle)
            asked = self._pending.pop(stopped.handle)
            text = prompts.neutralize(self._tokenizer.decode(stopped.tokens))
            documents = prompts.parse_documents(text, self._cfg.documents)
            if documents:
                done.append(dataclasses.replace(asked, documents=tuple(documents)))
            elif asked.attempts < self._cfg.attempts:
                self._ask(dataclasses.replace(asked, attempts=asked.attempts + 1))
            else:
                done.append(dataclasses.replace(asked, failure='malformed'))
        return done

    def _ask(self, asked: Result):
        query, cfg = asked.query, self._cfg
        text = prompts.simulator_prompt(
            query.text,
            query.question.question,
            query.question.golden_answers,
            noisy=asked.noisy,
            count=cfg.documents,
            words=cfg.words,
        )
        prompt = tuple(self._tokenizer.chat([{'role': 'user', 'content': text}]))
        if len(prompt) > cfg.prompt_tokens:
            self._ready.append(dataclasses.replace(asked, failure='too_long'))
            return
        identity = (*self._identity, query.question.id, query.sample, query.turn, asked.attempts)
        self._pending[query.handle] = asked
        self._engine.open(Request(query.handle, prompt, prng.row_key('simulator', *identity), cfg.max_tokens))


class EngineSearch:
    """A real search engine behind the same interface; queries of one step are searched together.

    Args:
      search: function of (queries, k) to documents for each query, e.g. BM25(...).search.
      documents: documents a search.
    """

    def __init__(self, search: Callable, documents: int):
        self.noise = 0.0
        self._search, self._documents = search, documents
        self._queue: list[Query] = []

    def submit(self, query: Query):
        self._queue.append(query)

    @property
    def active(self) -> int:
        return len(self._queue)

    def step(self) -> list[Result]:
        queue, self._queue = self._queue, []
        found = self._search([query.text for query in queue], self._documents) if queue else []
        return [
            Result(query, tuple(prompts.neutralize(f'{d.title}. {d.text}') for d in documents))
            for query, documents in zip(queue, found, strict=True)
        ]
