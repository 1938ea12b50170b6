"""Models that write text on request, behind one interface: one of ours on an engine, or a served model.

`ask` queues a request, `step` advances the work and returns what is complete, `active` counts the open requests. A
failed request has a kind of failure, never a text.
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
from zerosearch_jax.text.tokenizer import Tokenizer, conversation

ENDPOINT_KEY = 'ZEROSEARCH_ENDPOINT_KEY'


@dataclasses.dataclass(frozen=True)
class Completion:
    """The result of a request: text without thoughts, or the kind of failure.

    These are 'too_long' for the prompt, 'empty' if nothing or only thoughts were written, and, for an endpoint, those
    of RequestFailed.
    """

    handle: Hashable
    text: str = ''
    failure: str = ''
    detail: str = ''  # of a failure: the server's message


def completion(handle: Hashable, text: str, failure: str = '', detail: str = '') -> Completion:
    """The result of a request: thoughts are removed from the text, and an empty text is a failure."""
    said = protocol.without_thoughts(text)
    if not (said or failure):
        failure, detail = 'empty', 'nothing but thoughts' if text.strip() else 'nothing'
    return Completion(handle, said, failure, detail)


class Writer(Protocol):
    """A model that answers a user message with text."""

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...], system: str | None = None):
        """Queues a message, after a system message if given; the text depends on these and on `identity` alone."""

    @property
    def active(self) -> int: ...

    def step(self) -> list[Completion]: ...


class EngineWriter:
    """A model of ours.

    Args:
      engine: loaded, without stop strings.
      tokenizer: the model's.
      prompt_tokens: the most tokens of a message with its chat template; longer ones fail.
      max_tokens: the most tokens of the text.
      temperature: of the sampling; None: the engine's.
      arguments: of the chat template.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        prompt_tokens: int,
        max_tokens: int,
        temperature: float | None = None,
        arguments: dict[str, Any] | None = None,
    ):
        self.engine, self._tokenizer, self._arguments = engine, tokenizer, arguments
        self._prompt_tokens, self._max_tokens, self._temperature = prompt_tokens, max_tokens, temperature
        self._ready: list[Completion] = []
        self._opened = ''  # the beginning of every text that the chat template writes

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...], system: str | None = None):
        prompt = tuple(self._tokenizer.chat(conversation(message, system), arguments=self._arguments))
        if len(prompt) > self._prompt_tokens:
            self._ready.append(Completion(handle, failure='too_long'))
            return
        self._opened = '<think>' if protocol.opens_thought(self._tokenizer.decode_bytes(prompt)) else ''
        key = prng.row_key('simulator', *identity)
        self.engine.open(Request(handle, prompt, key, self._max_tokens, self._temperature))

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
    """A server with OpenAI's chat-completions protocol, for example vLLM, SGLang or a paid service.

    Its key, if it needs one, comes from the environment variable ZEROSEARCH_ENDPOINT_KEY.
    """

    url: str = ''  # address of the server, e.g. http://localhost:8000/v1
    timeout_s: float = 60.0  # limit of one attempt, from its start to the last byte
    retries: int = 4  # further attempts after the first one, with growing pauses
    concurrency: int = 16  # requests at once

    def __post_init__(self):
        outside.check_limits(self, self.url)

    def ask(self, path: str, body: dict | None = None) -> Any:
        """The JSON reply of the server's `path`; raises RequestFailed."""
        base, mark, query = self.url.partition('?')
        url, key = f'{base.rstrip("/")}/{path}{mark}{query}', _key()
        request = functools.partial(outside.request_json, url, body, timeout_s=self.timeout_s, key=key)
        return outside.retry(request, self.retries)

    def chat(self, message: str, options: dict, system: str | None = None) -> str:
        """The served model's reply to a message, which may be ''; raises RequestFailed."""
        reply = self.ask('chat/completions', {'messages': conversation(message, system), **options})
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
    """Raises ValueError if no address is configured."""
    if not cfg.url:
        raise ValueError('no address of the served model: set config.endpoint.url, e.g. http://localhost:8000/v1')


class EndpointWriter:
    """A served model.

    Args:
      cfg: the server.
      model: the served model's name.
      max_tokens: the most tokens of the text.
      temperature: of sampling.
      log: of the calls, see journal.call_once.
      arguments: of the chat template, as vLLM and SGLang take them.
      keep_failures: whether failed calls are remembered too, so that a resumed run sees them again.

    Raises:
      ValueError: no address is configured.
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
        if arguments:  # the field of vLLM and SGLang
            self._options['chat_template_kwargs'] = arguments
        self._queue: list[tuple[Hashable, tuple]] = []  # handle; message, identity and, if there is one, system

    def ask(self, handle: Hashable, message: str, identity: tuple[int | str, ...], system: str | None = None):
        self._queue.append((handle, (message, identity) if system is None else (message, identity, system)))

    @property
    def active(self) -> int:
        return len(self._queue)

    def step(self) -> list[Completion]:
        queue, self._queue = self._queue, []

        def ask(positions: list[int]) -> Iterator[tuple[int, tuple[str, str, str], bool]]:
            call = lambda i: self._complete(*queue[i][1])  # noqa: E731
            for position, value in outside.map_concurrently(call, positions, self._cfg.concurrency):
                yield position, value, not completion(None, *value).failure

        keys = [repr((self._options, *asked)) for _, asked in queue]
        values = journal.call_once(self._log, keys, ask)
        for key, value in zip(keys, values, strict=True):
            if self._keep_failures and self._log.get(key) is None:
                self._log.defer(key, value)
        return [completion(handle, *value) for (handle, _), value in zip(queue, values, strict=True)]

    def _complete(
        self, message: str, identity: tuple[int | str, ...], system: str | None = None
    ) -> tuple[str, str, str]:
        """(text, failure, detail) of one call."""
        seed = int.from_bytes(prng.row_key('simulator', *identity).tobytes()[:4], 'little') >> 1
        try:
            return self._cfg.chat(message, self._options | {'seed': seed}, system), '', ''
        except RequestFailed as error:
            return '', error.kind, error.detail
