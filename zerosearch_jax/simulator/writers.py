"""Models that write text on request: one of ours on an engine, or one that somebody serves, behind one interface.

`ask` queues a request, `step` advances the work and returns what has been written since, `active` counts what is under
way. A request that fails says how, as a word, never as text.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Hashable, Iterator
from typing import Protocol

from zerosearch_jax import prng
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.search import journal
from zerosearch_jax.text.tokenizer import Tokenizer

ENDPOINT_KEY = 'ZEROSEARCH_ENDPOINT_KEY'


@dataclasses.dataclass(frozen=True)
class Completion:
    """What came of a request: text, or the kind of failure.

    'too_long' prompt; of an endpoint 'timeout', 'connection', 'rate_limit', 'status_404', ... or 'invalid' reply.
    """

    handle: Hashable
    text: str = ''
    failure: str = ''


class Writer(Protocol):
    """A model that takes a user message and writes."""

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...]):
        """Queues a message; what is written depends on it and on `identity` alone."""

    @property
    def active(self) -> int: ...

    def step(self) -> list[Completion]: ...


class EngineWriter:
    """A model of ours.

    Args:
      engine: loaded, without stop strings.
      tokenizer: the model's.
      prompt_tokens: of a message with its chat template; longer ones fail.
      max_tokens: of what is written.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, prompt_tokens: int, max_tokens: int):
        self.engine, self._tokenizer = engine, tokenizer
        self._prompt_tokens, self._max_tokens = prompt_tokens, max_tokens
        self._ready: list[Completion] = []

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...]):
        prompt = tuple(self._tokenizer.chat([{'role': 'user', 'content': message}]))
        if len(prompt) > self._prompt_tokens:
            self._ready.append(Completion(handle, failure='too_long'))
            return
        self.engine.open(Request(handle, prompt, prng.row_key('simulator', *identity), self._max_tokens))

    @property
    def active(self) -> int:
        return len(self._ready) + self.engine.active

    def step(self) -> list[Completion]:
        done, self._ready = self._ready, []
        for stopped in self.engine.step():
            self.engine.close(stopped.handle)
            done.append(Completion(stopped.handle, self._tokenizer.decode(stopped.tokens)))
        return done


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """A server that speaks OpenAI's chat-completions protocol, say vLLM, SGLang or a paid one.

    Its key, if it wants one, comes from the environment variable ZEROSEARCH_ENDPOINT_KEY.
    """

    url: str = ''  # e.g. http://localhost:8000/v1
    timeout_s: float = 60.0  # of one attempt
    retries: int = 4  # after the first attempt, with growing pauses
    concurrency: int = 16  # requests at once


class EndpointWriter:
    """A model that somebody serves.

    Args:
      cfg: where.
      model: the served model's name.
      max_tokens: of what is written.
      temperature: of the sampling.
      log: of the calls made, see journal.call_once.
      keep_failures: whether a failed call is remembered too, as a run does that is to resume as it was.

    Raises:
      ValueError: no address, or the package `openai` is missing.
    """

    def __init__(
        self,
        cfg: EndpointConfig,
        model: str,
        *,
        max_tokens: int,
        temperature: float,
        log: journal.Journal,
        keep_failures: bool = False,
    ):
        if not cfg.url:
            raise ValueError('no address of the served model: set config.endpoint.url, e.g. http://localhost:8000/v1')
        try:
            import openai
        except ImportError as error:
            raise ValueError("a served model needs the package openai: pip install -e '.[endpoint]'") from error
        self._openai, self._cfg, self._log, self._keep_failures = openai, cfg, log, keep_failures
        self._options = {'model': model, 'max_tokens': max_tokens, 'temperature': temperature}
        self._client = openai.OpenAI(
            base_url=cfg.url,
            api_key=os.environ.get(ENDPOINT_KEY, 'none'),
            timeout=cfg.timeout_s,
            max_retries=cfg.retries,
        )
        self._queue: list[tuple[Hashable, str, tuple[int | str, ...]]] = []

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...]):
        self._queue.append((handle, message, identity))

    @property
    def active(self) -> int:
        return len(self._queue)

    def step(self) -> list[Completion]:
        queue, self._queue = self._queue, []

        def ask(positions: list[int]) -> Iterator[tuple[int, tuple[str, str], bool]]:
            with concurrent.futures.ThreadPoolExecutor(self._cfg.concurrency) as pool:
                calls = {pool.submit(self._complete, *queue[i][1:]): i for i in positions}
                for call in concurrent.futures.as_completed(calls):
                    text, failure = call.result()
                    yield calls[call], (text, failure), not failure or self._keep_failures

        keys = [repr((self._options, message, identity)) for _, message, identity in queue]
        values = journal.call_once(self._log, keys, ask)
        return [Completion(handle, *value) for (handle, _, _), value in zip(queue, values, strict=True)]

    def _complete(self, message: str, identity: tuple[int | str, ...]) -> tuple[str, str]:
        """(text, failure) of one call; the client repeats what may pass by itself."""
        openai = self._openai
        seed = int.from_bytes(prng.row_key('simulator', *identity).tobytes()[:4], 'little') >> 1
        try:
            reply = self._client.chat.completions.create(
                messages=[{'role': 'user', 'content': message}], seed=seed, **self._options
            )
            text = reply.choices[0].message.content or ''
            return (text, '') if isinstance(text, str) else ('', 'invalid')
        except openai.APITimeoutError:
            return '', 'timeout'
        except openai.APIConnectionError:
            return '', 'connection'
        except openai.RateLimitError:
            return '', 'rate_limit'
        except openai.APIStatusError as error:
            return '', f'status_{error.status_code}'
        except (openai.APIError, ValueError, AttributeError, IndexError, TypeError):  # not what the protocol says
            return '', 'invalid'
