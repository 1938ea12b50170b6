"""All requests to remote services: search engines, served models, judges.

    reply = retry(lambda: request_json(url, {'query': 'who wrote hamlet'}, timeout_s=30), retries=3)

A request has a deadline for all of it and a limit on bytes, and follows no redirect. A failure raises RequestFailed
with the kind of failure and the server's own words, without keys.
"""

import concurrent.futures
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import requests

from zerosearch_jax import settings
from zerosearch_jax.search.search import OutsideFailed

T, R = TypeVar('T'), TypeVar('R')

MOST_BYTES = 32 * 2**20  # of a reply
MOST_CHARACTERS = 200  # of the server's message
LONGEST_PAUSE_S = 60.0  # the longest pause before a retry, even if the server asks for more

# what to check first, by kind of failure
HINTS = {
    'connection': 'is it running, and is that its address?',
    'timeout': 'is it overloaded, or is timeout_s too short?',
    'redirect': 'set the address that it names, if it is to be trusted',
    'rate_limit': 'lower concurrency, or wait',
    'invalid': 'does it speak this protocol?',
    'status_401': 'is the key right?',
}


class RequestFailed(Exception):
    """A request failed.

    Args:
      kind: 'timeout', 'connection', 'address', 'redirect', 'rate_limit', 'status_N', 'too_large', 'invalid', ...
      retryable: whether another attempt may help.
      detail: the server's message, if it sent one.
      wait_s: how long the server asks to wait before a retry.
    """

    def __init__(self, kind: str, retryable: bool = False, detail: str = '', wait_s: float | None = None):
        super().__init__(kind)
        self.kind, self.retryable, self.detail, self.wait_s = kind, retryable, detail, wait_s


def request_json(url: str, body: dict | None = None, *, timeout_s: float, key: str = '') -> Any:
    """The JSON reply to one HTTP request: a POST of `body` as JSON, or a GET without.

    Args:
      url: http or https.
      body: sent as JSON.
      timeout_s: for the whole request, from looking up the host's name to the reply's last byte.
      key: sent as a bearer token; '': none.

    Raises:
      RequestFailed: there is no JSON reply.
    """
    exchange: concurrent.futures.Future = concurrent.futures.Future()

    def work():
        try:
            exchange.set_result(_exchange(url, body, key, time.monotonic() + timeout_s))
        except BaseException as error:
            exchange.set_exception(error)

    # in a thread, since a socket's timeout does not end the reply of a server that sends a byte now and then
    threading.Thread(target=work, daemon=True).start()
    try:
        status, headers, data = exchange.result(timeout_s)
    except concurrent.futures.TimeoutError:
        raise RequestFailed('timeout', True, f'no whole reply within {timeout_s:g} seconds') from None
    said = lambda text: safe_message(text, key, *settings.secrets(url))  # noqa: E731
    if status != 200:
        _refuse(status, headers, data, said)
    try:
        return settings.parse_json(data)
    except ValueError:
        raise RequestFailed('invalid', True, said(data) or 'an empty reply') from None


def _exchange(url: str, body: dict | None, key: str, deadline: float) -> tuple[int, Any, bytes]:
    """Status, headers and body of a reply."""

    def with_key(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers['Authorization'] = f'Bearer {key}'  # a .netrc would replace a plain header
        return request

    options = {'stream': True, 'allow_redirects': False, 'auth': with_key if key else None}
    try:
        # later than the caller's deadline, so that a late reply has one kind of failure
        options['timeout'] = deadline - time.monotonic() + 1
        with requests.request('GET' if body is None else 'POST', url, json=body, **options) as reply:
            data = bytearray()
            for chunk in reply.iter_content(1024):
                data += chunk
                if len(data) > MOST_BYTES:
                    raise RequestFailed('too_large', detail=f'a reply of more than {MOST_BYTES >> 20} MiB')
                if time.monotonic() > deadline:  # the caller has given up
                    raise RequestFailed('timeout', True)
            return reply.status_code, reply.headers, bytes(data)
    except ValueError as error:  # its message may contain the address or the key
        raise RequestFailed('address', detail=type(error).__name__) from None
    except requests.RequestException as error:
        raise RequestFailed('connection', True, _cause(error)) from None  # its message contains the whole address


def _cause(error: BaseException) -> str:
    """The cause of a library's error, for example 'Connection refused'."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, 'strerror', None) or type(error).__name__


def _refuse(status: int, headers: Any, data: bytes, said: Callable[[bytes | str], str]) -> NoReturn:
    if 300 <= status < 400:
        raise RequestFailed('redirect', detail=f'to {said(headers.get("Location", "nowhere"))}')
    if status == 429:
        wait = headers.get('Retry-After', '')
        raise RequestFailed('rate_limit', True, said(data), float(wait) if re.fullmatch(r'[0-9]{1,6}', wait) else None)
    raise RequestFailed(f'status_{status}', status >= 500 or status == 408, said(data))


def safe_message(data: bytes | str, *secrets: str) -> str:
    """A server's message (of JSON its error) on one short line, without control characters, markup and `secrets`."""
    text = data if isinstance(data, str) else data[: 2**20].decode('utf-8', 'replace')
    with contextlib.suppress(ValueError):
        text = _error(settings.parse_json(text)) or text
    text = text[: 2**16]
    for secret in filter(None, secrets):
        text = text.replace(secret, '***')
    text = settings.redacted(text)
    plain = ''.join(c if c.isprintable() else ' ' for c in re.sub(r'<[^<>]*>', ' ', text))
    line = ' '.join(plain.split())
    return line if len(line) <= MOST_CHARACTERS else f'{line[: MOST_CHARACTERS - 3]}...'


def _error(reply: Any) -> str:
    """The text of {"error": {"message": text}} and similar replies; '' for anything else."""
    for _ in range(2):
        if isinstance(reply, dict):
            reply = next((reply[name] for name in ('error', 'detail', 'message') if reply.get(name)), None)
    return reply if isinstance(reply, str) else ''


def describe_reply(reply: Any, *secrets: str) -> str:
    """Describes a reply of an unexpected schema: its error, which some servers send as a success, or its type."""
    what = f'an object of {", ".join(reply)}' if isinstance(reply, dict) else f'a {type(reply).__name__}'
    return safe_message(_error(reply if isinstance(reply, dict) else None) or f'the reply is {what}', *secrets)


def retry(ask: Callable[[], T], retries: int, pause_s: float = 0.5, before: Callable[[], None] = lambda: None) -> T:
    """What `ask` returns; it is retried, after growing pauses, if it fails with an error for which that may help.

    Args:
      ask: makes a request.
      retries: attempts after the first.
      pause_s: pause before the first retry; doubled each time.
      before: called before every attempt.

    Raises:
      RequestFailed: of the last attempt.
    """
    for attempt in range(retries + 1):
        before()
        try:
            return ask()
        except RequestFailed as error:
            if not error.retryable or attempt == retries:
                raise
            pause = pause_s * 2 ** min(attempt, 9) if error.wait_s is None else error.wait_s
            time.sleep(min(pause, LONGEST_PAUSE_S))
    raise AssertionError('unreachable')


def map_concurrently(ask: Callable[[T], R], things: Sequence[T], most: int) -> Iterator[tuple[T, R]]:
    """(thing, ask(thing)) of every thing, as they complete; at most `most` calls run at a time.

    Raises:
      what `ask` raises, after all other calls have completed, since they are made and paid for in any case.
    """
    problem: Exception | None = None
    with concurrent.futures.ThreadPoolExecutor(most) as pool:
        try:
            calls = {pool.submit(ask, thing): thing for thing in things}
            for call in concurrent.futures.as_completed(calls):
                try:
                    found = call.result()
                except Exception as error:
                    problem = problem or error
                else:
                    yield calls[call], found
        finally:  # an interrupt does not wait for calls that have not begun
            pool.shutdown(wait=False, cancel_futures=True)
    if problem:
        raise problem


def unusable(service: str, url: str, error: RequestFailed, hint: str = '') -> OutsideFailed:
    """The error of a service that cannot be used: which, where, how it failed, its message, what to check."""
    said = f' ({error.detail})' if error.detail else ''
    hint = hint or HINTS.get(error.kind, 'is the address right?')
    return OutsideFailed(f'{service} at {settings.redacted(url)} cannot be used: {error.kind}{said}; {hint}')


def check_limits(cfg: Any, url: str):
    """Raises ValueError if the address or a limit of a section is not valid."""
    settings.require_positive(cfg, 'concurrency')
    if not 0 < cfg.timeout_s <= 86400:
        raise ValueError(f'timeout_s must be above 0 and at most a day, got {cfg.timeout_s}: requests have a deadline')
    if url and not re.match(r'https?://[^/]', url):
        raise ValueError(f'url must begin with http:// or https://, got {settings.redacted(url)!r}')
