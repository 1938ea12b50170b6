"""Models that write text on request: one of ours on an engine, or one that somebody serves, behind one interface.

`ask` queues a request, `step` advances the work and returns what has been written since, `active` counts what is under
way. A request that fails says how, as a word, never as text.
"""

import dataclasses
import functools
import os
from collections.abc import Hashable, Iterator
from typing import Any, Protocol

from zerosearch_jax import prng
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.search import journal, outside
from zerosearch_jax.search.outside import RequestFailed
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer

ENDPOINT_KEY = 'ZEROSEARCH_ENDPOINT_KEY'


@dataclasses.dataclass(frozen=True)
class Completion:
    """What came of a request: text without thoughts, or the kind of failure.

    'too_long' prompt; 'empty', where nothing or only thoughts were written; of an endpoint those of RequestFailed.
    """

    handle: Hashable
    text: str = ''
    failure: str = ''
    detail: str = ''  # of a failure: what the other side said


def completion(handle: Hashable, text: str, failure: str = '', detail: str = '') -> Completion:
    """What came of a request, of all that was written: thoughts are dropped, and nothing is a failure."""
    said = protocol.without_thoughts(text)
    if not (said or failure):
        failure, detail = 'empty', 'nothing but thoughts' if text.strip() else 'nothing'
    return Completion(handle, said, failure, detail)


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
      arguments: of its chat template.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, prompt_tokens: int, max_tokens: int, arguments=None):
        self.engine, self._tokenizer, self._arguments = engine, tokenizer, arguments
        self._prompt_tokens, self._max_tokens = prompt_tokens, max_tokens
        self._ready: list[Completion] = []
        self._opened = ''  # what its chat template begins of every text

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...]):
        prompt = tuple(self._tokenizer.chat([{'role': 'user', 'content': message}], arguments=self._arguments))
        if len(prompt) > self._prompt_tokens:
            self._ready.append(Completion(handle, failure='too_long'))
            return
        self._opened = '<think>' if protocol.opens_thought(self._tokenizer.decode_bytes(prompt)) else ''
        self.engine.open(Request(handle, prompt, prng.row_key('simulator', *identity), self._max_tokens))

    @property
    def active(self) -> int:
        return len(self._ready) + self.engine.active

    def step(self) -> list[Completion]:
        done, self._ready = self._ready, []
        for stopped in self.engine.step():
            self.engine.close(stopped.handle)
            done.append(completion(stopped.handle, self._opened + self._tokenizer.decode(stopped.tokens)))
        return done


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """A server that speaks OpenAI's chat-completions protocol, say vLLM, SGLang or a paid one.

    Its key, if it wants one, comes from the environment variable ZEROSEARCH_ENDPOINT_KEY.
    """

    url: str = ''  # e.g. http://localhost:8000/v1
    timeout_s: float = 60.0  # of one attempt, from its start to the last byte
    retries: int = 4  # after the first attempt, with growing pauses
    concurrency: int = 16  # requests at once

    def __post_init__(self):
        outside.check_limits(self, self.url)

    def ask(self, path: str, body: dict | None = None) -> Any:
        """The JSON reply of the server's `path`; raises RequestFailed."""
        base, mark, query = self.url.partition('?')
        url, key = f'{base.rstrip("/")}/{path}{mark}{query}', _key()
        request = functools.partial(outside.request_json, url, body, timeout_s=self.timeout_s, key=key)
        return outside.retry(request, self.retries)

    def chat(self, message: str, options: dict) -> str:
        """What the served model writes after a message, '' included; raises RequestFailed."""
        reply = self.ask('chat/completions', {'messages': [{'role': 'user', 'content': message}], **options})
        try:
            text = reply['choices'][0]['message']['content'] or ''
        except (LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise RequestFailed('invalid', detail=outside.describe_reply(reply, _key()))
        return text


def _key() -> str:
    return os.environ.get(ENDPOINT_KEY, '').strip()


def require_address(cfg: EndpointConfig):
    """Raises ValueError where no address is configured."""
    if not cfg.url:
        raise ValueError('no address of the served model: set config.endpoint.url, e.g. http://localhost:8000/v1')


class EndpointWriter:
    """A model that somebody serves.

    Args:
      cfg: where.
      model: the served model's name.
      max_tokens: of what is written.
      temperature: of the sampling.
      log: of the calls made, see journal.call_once.
      arguments: of its chat template, in the way of vLLM and SGLang.
      keep_failures: whether a failed call is remembered too, as a run does that is to resume as it was.

    Raises:
      ValueError: no address.
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
        arguments: dict[str, Any] | None = None,
    ):
        require_address(cfg)
        self._cfg, self._log, self._keep_failures = cfg, log, keep_failures
        self._options: dict[str, Any] = {'model': model, 'max_tokens': max_tokens, 'temperature': temperature}
        if arguments:  # where vLLM and SGLang look for them
            self._options['chat_template_kwargs'] = arguments
        self._queue: list[tuple[Hashable, str, tuple[int | str, ...]]] = []

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...]):
        self._queue.append((handle, message, identity))

    @property
    def active(self) -> int:
        return len(self._queue)

    def step(self) -> list[Completion]:
        queue, self._queue = self._queue, []

        def ask(positions: list[int]) -> Iterator[tuple[int, tuple[str, str, str], bool]]:
            call = lambda i: self._complete(*queue[i][1:])  # noqa: E731
            for position, value in outside.map_concurrently(call, positions, self._cfg.concurrency):
                yield position, value, not completion(None, *value).failure

        keys = [repr((self._options, message, identity)) for _, message, identity in queue]
        values = journal.call_once(self._log, keys, ask)
        for key, value in zip(keys, values, strict=True):
            if self._keep_failures and self._log.get(key) is None:
                self._log.defer(key, value)
        return [completion(handle, *value) for (handle, _, _), value in zip(queue, values, strict=True)]

    def _complete(self, message: str, identity: tuple[int | str, ...]) -> tuple[str, str, str]:
        """(text, failure, detail) of one call."""
        seed = int.from_bytes(prng.row_key('simulator', *identity).tobytes()[:4], 'little') >> 1
        try:
            return self._cfg.chat(message, self._options | {'seed': seed}), '', ''
        except RequestFailed as error:
            return '', error.kind, error.detail
