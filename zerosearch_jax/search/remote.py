"""Search engines by configuration: BM25 (bm25.py), servers of Search-R1 and ZeroSearch, Google, or a user's function.

    engine = open_search_engine(EngineConfig('search_r1', url='http://127.0.0.1:8000/retrieve'))
    engine.search(['who wrote hamlet'], 3)

One process makes the requests (outside.py), with limits on requests at once and in a second. Every result goes to a
log, so that a query is paid for once. A failure is a typed result. Keys come from the environment and are never shown.
"""

import dataclasses
import functools
import json
import operator
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zerosearch_jax import progress, settings
from zerosearch_jax.data.rows import Passage, split_title
from zerosearch_jax.search import journal, outside
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.outside import RequestFailed
from zerosearch_jax.search.search import Document, OutsideFailed, SearchFailed

SERPAPI, SERPAPI_KEY = 'https://serpapi.com', 'SERPAPI_API_KEY'


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """The real search engine, and the limits of its requests."""

    # 'bm25': over config's corpus in this process; 'search_r1', 'zerosearch_wiki': servers of their protocols;
    # 'serpapi': Google; or the dotted name of a function of (config, queries, k) to the documents of each query
    kind: str = 'bm25'
    index: str = ''  # for bm25: directory in which the index is saved; '': the index is in memory only
    url: str = 'http://127.0.0.1:8000/retrieve'  # address of a server
    # for a server with other names than its protocol's: pairs of our name (remote.SERVERS, remote.DOCUMENT) and its own
    fields: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 30.0  # limit of one attempt, from its start to the last byte
    retries: int = 3  # further attempts after the first one, if a retry may help
    pause_s: float = 1.0  # before the first retry; doubled each time
    concurrency: int = 8  # requests at once
    per_second: float = 0.0  # requests a second; 0: no limit
    query_price: float = 0.0  # dollars a request
    spending_cap: float = 0.0  # the most dollars for all requests of the run's log; 0: no limit

    def __post_init__(self):
        outside.check_limits(self, self.url)
        if self.spending_cap and not self.query_price:
            raise ValueError('a spending_cap needs a query_price: what a request costs, in dollars')
        if not callable(settings.resolve_name(self.kind, ENGINES, 'kind')) and self.kind not in ENGINES:
            raise ValueError(f'kind = {self.kind!r} is not a function')
        if self.fields and self.kind not in SERVERS:
            raise ValueError(f'fields are for a server, kind = {" or ".join(map(repr, SERVERS))}; got {self.kind!r}')
        if unknown := dict(self.fields).keys() - (known := SERVERS['search_r1'] | DOCUMENT).keys():
            raise ValueError(f'fields has no {min(unknown)!r}; it has {", ".join(known)}')


class SpendingCapReached(OutsideFailed):
    """The next request would exceed the spending cap."""


# takes (queries, k), returns the documents of each query or raises RequestFailed; several threads call it
Fetch = Callable[[Sequence[str], int], list[list[Document]]]


class RemoteSearch:
    """A remote engine with the interface of BM25.

    Args:
      fetch: makes one request.
      batch: the most queries of one request.
      name: of the engine, part of the log's keys.
      cfg: limits.
      log: of results and spending.
    """

    def __init__(self, fetch: Fetch, batch: int, name: str, cfg: EngineConfig, log: journal.Journal):
        self._fetch, self._batch, self._name, self._cfg, self._log = fetch, batch, name, cfg, log
        self._clock, self._next_start = threading.Lock(), 0.0

    @property
    def spent(self) -> float:
        """Dollars spent on all requests of this log, failed attempts included."""
        return self._log.get(f'spent on {self._cfg.kind}') or 0.0

    def search(self, queries: Sequence[str], k: int, moment: str = '') -> list[list[Document] | SearchFailed]:
        """Up to k documents of each query, or how it failed.

        Args:
          queries: texts.
          k: documents for each query.
          moment: of a run, for example its step: within one moment a failed query is not asked again, so that a resumed
            run sees the same failures. '': failed queries are asked again.

        Raises:
          SpendingCapReached: before the request that would exceed the cap; earlier results are in the log.
        """
        failed = {query: json.dumps([self._name, query, k, moment]) for query in queries}
        known = {query: self._log.get(key) for query, key in failed.items()} if moment else {}
        asked = [query for query in failed if not known.get(query)]
        found = dict(zip(asked, self._ask(asked, k), strict=True))
        for query, value in found.items():
            if moment and 'failure' in value:
                self._log.defer(failed[query], value)
        return [_result(known.get(query) or found[query]) for query in queries]

    def _ask(self, queries: list[str], k: int) -> list[dict]:
        """JSON results of different queries, from the log if it has them."""
        keys = [json.dumps([self._name, query, k]) for query in queries]

        def ask(positions: list[int]) -> Iterator[tuple[int, dict, bool]]:
            parts = [tuple(positions[i : i + self._batch]) for i in range(0, len(positions), self._batch)]
            call = lambda part: self._attempts([queries[i] for i in part], k)  # noqa: E731
            for part, found in outside.map_concurrently(call, parts, self._cfg.concurrency):
                for position, value in zip(part, found, strict=True):
                    yield position, value, 'failure' not in value

        return journal.call_once(self._log, keys, ask)

    def _attempts(self, queries: list[str], k: int, retries: int | None = None) -> list[dict]:
        """JSON results of one request; it is retried if that may help, and halved if one query may fail the others."""
        try:
            found = self.request(queries, k, retries)
        except RequestFailed as error:
            if len(queries) > 1 and error.kind in OF_A_QUERY:
                half = len(queries) // 2
                return [*self._attempts(queries[:half], k, 0), *self._attempts(queries[half:], k, 0)]
            return [{'failure': error.kind, 'detail': error.detail} for _ in queries]
        return [{'documents': [dataclasses.asdict(d) for d in documents]} for documents in found]

    def request(self, queries: Sequence[str], k: int, retries: int | None = None) -> list[list[Document]]:
        """Up to k documents for each of at most a batch of queries, without the log; `retries` None: as configured.

        Raises:
          RequestFailed: after the last retry.
          ValueError: a user's function returns something else.
        """

        def ask() -> list[list[Document]]:
            try:
                returned = self._fetch(queries, k)
            except (RequestFailed, OSError):
                raise
            except Exception as error:  # a user's function may raise anything
                raise ValueError(f'{self._cfg.kind} failed: {type(error).__name__}: {error}') from error
            try:
                found = [[_plain(document) for document in list(documents)[:k]] for documents in returned]
            except (TypeError, ValueError):
                wanted = f'{self._cfg.kind} must return for each query a list of search.Document(title, text)'
                raise ValueError(f'{wanted}; it returned {repr(returned)[:80]}') from None
            if len(found) != len(queries):
                raise RequestFailed('invalid', detail=f'results of {len(found)} queries; {len(queries)} were asked')
            return found

        return outside.retry(ask, self._cfg.retries if retries is None else retries, self._cfg.pause_s, self._start)

    def _start(self):
        """Waits until a request may start, and adds its price."""
        cfg = self._cfg
        with self._clock:
            if cfg.query_price:
                total = self.spent + cfg.query_price
                if cfg.spending_cap and total > cfg.spending_cap + 1e-9:
                    raise SpendingCapReached(
                        f'${self.spent:.2f} were spent on {self._name}; one more request would exceed the cap of '
                        f'${cfg.spending_cap:.2f}. Results so far are kept: raise spending_cap to go on'
                    )
                self._log.put(f'spent on {self._cfg.kind}', total)
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + (1 / cfg.per_second if cfg.per_second else 0.0)
        time.sleep(start - now)


def _plain(document: Any) -> Document:
    """A document with fields that JSON can hold, whatever numeric types a user's engine returns."""
    if not (isinstance(document, Document) and isinstance(document.title, str) and isinstance(document.text, str)):
        raise TypeError
    return Document(document.title, document.text, str(document.id), float(document.score))


def _result(value: dict) -> list[Document] | SearchFailed:
    if 'failure' in value:
        return SearchFailed(value['failure'], value.get('detail', ''))
    return [Document(**document) for document in value['documents']]


def open_search_engine(
    cfg: EngineConfig, passages: Callable[[], Sequence[Passage]] = list, log: journal.Journal | None = None
) -> BM25 | RemoteSearch:
    """The configured engine.

    Args:
      cfg: which one.
      passages: reads the corpus, called for bm25 only.
      log: file of a remote engine's results.

    Raises:
      ValueError: a key is missing.
    """
    if cfg.kind == 'bm25':
        return BM25.open(passages(), cfg.index) if cfg.index else BM25(passages())
    log = log or journal.Journal()
    if cfg.kind in SERVERS:
        fetch, batch = _server(cfg)
    else:
        fetch, batch = functools.partial(settings.resolve_name(cfg.kind, ENGINES, 'kind'), cfg), BATCH
    name = cfg.kind if cfg.kind == 'serpapi' else f'{cfg.kind} {settings.redacted(cfg.url)}'
    return RemoteSearch(fetch, batch, name + (f' {dict(cfg.fields)}' if cfg.fields else ''), cfg, log)


def probe(cfg: EngineConfig):
    """Sends the configured engine a small request, so that one that cannot be used is reported before the long work.

    An engine in this process is not tested. No request is paid for: SerpAPI is asked for the state of the account, and
    other engines whose requests cost money are not tested, which is printed.

    Raises:
      OutsideFailed: the engine cannot be used; one line says which engine, where, its message and what to check.
      ValueError: a key is missing, or a user's function returns something else.
    """
    if cfg.kind != 'bm25':
        log = journal.Journal()  # created on all processes
        journal.on_first_process(lambda: _probe(cfg, log))


def _probe(cfg: EngineConfig, log: journal.Journal):
    try:
        if cfg.kind == 'serpapi':
            _probe_serpapi(cfg)
        elif cfg.query_price:
            progress.log(f'engine {cfg.kind} is not tested now: its requests cost money (engine.query_price)')
        else:
            open_search_engine(cfg, log=log).request(['Rome'], 1)
    except RequestFailed as error:
        if cfg.kind not in SERVERS:
            raise OutsideFailed(f'engine {cfg.kind} cannot be used: {error.kind} {error.detail}') from None
        hint = 'does it speak this protocol? engine.fields maps other names' if error.kind == 'invalid' else ''
        raise outside.unusable(f'engine {cfg.kind}', cfg.url, error, hint) from None


def search_in_step(engine: BM25 | RemoteSearch, moment: str) -> Callable:
    """The engine's search(queries, k), with the failures of this moment remembered (RemoteSearch.search)."""
    return engine.search if isinstance(engine, BM25) else functools.partial(engine.search, moment=moment)


# ---------------------------------------------------------------- protocols


def _server(cfg: EngineConfig) -> tuple[Fetch, int]:
    """The function that asks a server of SERVERS, and the most queries of one request."""
    names = DOCUMENT | SERVERS[cfg.kind] | dict(cfg.fields)
    if cfg.kind == 'serpapi':
        require_key(cfg)
        ask = lambda body: _serpapi(cfg, 'search.json', body | {'engine': 'google'})  # noqa: E731
    else:
        ask = functools.partial(outside.request_json, cfg.url, timeout_s=cfg.timeout_s)

    def fetch(queries: Sequence[str], k: int) -> list[list[Document]]:
        values = ({'query': queries[0]} if names['query'] else {'queries': list(queries)}) | {'topk': k, 'scores': True}
        reply = ask({names[name]: value for name, value in values.items() if names[name]})
        try:
            if broken := [f for f in _list(reply.get('failures') if isinstance(reply, dict) else None) if f]:  # of ours
                raise RequestFailed('invalid', detail=f'a search failed there: {outside.safe_message(str(broken[0]))}')
            found = _list(functools.reduce(operator.getitem, filter(None, names['results'].split('.')), reply))
            return [[_document(item, names) for item in _list(each)] for each in ([found] if names['query'] else found)]
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
            raise RequestFailed('invalid', detail=outside.describe_reply(reply, *settings.secrets(cfg.url))) from None

    return fetch, 1 if names['query'] else BATCH


def _list(value: Any) -> list:
    """A list; null counts as an empty list."""
    if value is not None and not isinstance(value, list):
        raise TypeError
    return value or []


def _document(item: Any, names: dict[str, str]) -> Document:
    """A document, with or without a score, or a bare text; `contents` is a quoted title, a line feed and the text."""
    fields = item if isinstance(item, dict) else {}
    inner = fields.get(names['document'], item)
    if isinstance(inner, str):
        inner = {names['text']: inner}
    title, contents, name = (inner.get(names[field]) for field in ('title', 'contents', 'id'))
    text = inner[names['text']] if contents is None else contents
    if contents and '\n' in contents:
        title, text = split_title(contents)
    known = isinstance(name, str | int)
    return Document(str(title or ''), text.strip(), str(name) if known else '', float(fields.get(names['score']) or 0))


def require_key(cfg: EngineConfig):
    """Raises an error on all processes if the engine needs a key and process 0, which makes the requests, has none."""
    if cfg.kind == 'serpapi':
        journal.on_first_process(lambda: _serpapi_key() and None)


def _serpapi_key() -> str:
    if key := os.environ.get(SERPAPI_KEY, '').strip():
        return key
    raise ValueError(f'SerpAPI needs a key in the environment variable {SERPAPI_KEY}')


def _serpapi(cfg: EngineConfig, path: str, parameters: dict) -> dict:
    """A reply of SerpAPI, which sends failures with status 200; only results with a snippet count."""
    query = urllib.parse.urlencode(parameters | {'api_key': _serpapi_key()})
    reply = outside.request_json(f'{SERPAPI}/{path}?{query}', timeout_s=cfg.timeout_s)
    if not isinstance(reply, dict):
        raise RequestFailed('invalid', detail=outside.describe_reply(reply))
    error = str(reply.get('error') or '')
    if error and "hasn't returned any results" not in error:
        raise RequestFailed('refused', detail=outside.safe_message(error, _serpapi_key()))
    found = reply.get('organic_results')
    if isinstance(found, list):
        found = [item for item in found if not isinstance(item, dict) or item.get('snippet')]
    return reply | {'organic_results': found}


def _probe_serpapi(cfg: EngineConfig):
    """Asks for the account, which costs nothing."""
    try:
        account = outside.retry(lambda: _serpapi(cfg, 'account.json', {}), cfg.retries, cfg.pause_s)
        if account.get('total_searches_left') == 0:
            raise RequestFailed('refused', detail='no searches are left in this account')
    except RequestFailed as error:
        raise outside.unusable('engine serpapi', SERPAPI, error, f'is the key in {SERPAPI_KEY} right?') from None


BATCH = 64  # the most queries of one request
OF_A_QUERY = ('invalid', 'status_400', 'status_413', 'status_422', 'status_500')  # one query may cause these for all
# our names of a document's fields; 'contents' is title and text in one, 'document' holds all but the score
DOCUMENT = {name: name for name in ('document', 'id', 'title', 'text', 'contents', 'score')}
# the servers' names of the fields of requests and replies, with dots between levels of 'results', '' if there is none;
# a server with 'query' gets one query in a request, and its results are one list
SERVERS = {
    # Search-R1's retriever
    'search_r1': {'query': '', 'queries': 'queries', 'topk': 'topk', 'scores': 'return_scores', 'results': 'result'},
    # ZeroSearch's wiki server
    'zerosearch_wiki': {'query': 'query', 'queries': '', 'topk': 'top_k', 'scores': '', 'results': ''},
    # Google through SerpAPI
    'serpapi': {'query': 'q', 'queries': '', 'topk': 'num', 'scores': '', 'results': 'organic_results'}
    | {'text': 'snippet', 'id': 'link'},
}
ENGINES = {'bm25': None, **SERVERS}  # what config.engine.kind may be besides a function's name
