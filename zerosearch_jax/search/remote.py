"""Search engines by configuration: BM25 (bm25.py), retrievers of Search-R1 and ZeroSearch, Google, or the user's own.

    engine = open_search_engine(EngineConfig('search_r1', url='http://127.0.0.1:8000/retrieve'))
    engine.search(['who wrote hamlet'], 3)

Requests are made by one process, at most so many at once and a second, with time-outs and retries; every result goes to
a log, so that a query is asked, and paid, once. What fails is a typed result. Keys come from the environment and are
never shown: messages of the libraries, which may hold them, are not passed on.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from zerosearch_jax import settings
from zerosearch_jax.data.rows import Passage, split_title
from zerosearch_jax.search import journal
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.search import Document, SearchFailed

SERPAPI_KEY = 'SERPAPI_API_KEY'


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Which engine, and how much may be asked of it."""

    # 'bm25': over config's corpus in this process; 'search_r1', 'zerosearch_wiki': servers of their protocols;
    # 'serpapi': Google; or the dotted name of a function of (config, queries, k) to the documents of each query
    kind: str = 'bm25'
    index: str = ''  # of bm25: directory where the index of the corpus is kept; '': made in memory
    url: str = 'http://127.0.0.1:8000/retrieve'  # of a server
    timeout_s: float = 30.0  # of one attempt
    retries: int = 3  # after the first attempt, where it may help
    pause_s: float = 1.0  # before the first of them; doubled each time
    concurrency: int = 8  # requests at once
    per_second: float = 0.0  # requests a second; 0: no limit
    query_price: float = 0.0  # dollars a request
    spending_cap: float = 0.0  # dollars that this log may reach; 0: no limit

    def __post_init__(self):
        settings.require_positive(self, 'concurrency')
        if self.spending_cap and not self.query_price:
            raise ValueError('a spending_cap needs a query_price: what a request costs, in dollars')
        if not callable(settings.resolve_name(self.kind, ENGINES, 'kind')) and self.kind not in ENGINES:
            raise ValueError(f'kind = {self.kind!r} is not a function')


class SpendingCapReached(OSError):
    """The next request would cost more than is allowed."""


class RequestFailed(Exception):
    """A request failed; `kind` says how, `retryable` whether another attempt may help."""

    def __init__(self, kind: str, retryable: bool = False):
        super().__init__(kind)
        self.kind, self.retryable = kind, retryable


# a function of (queries, k) to documents of each, that may raise RequestFailed; requests are made by several threads
Fetch = Callable[[Sequence[str], int], list[list[Document]]]


class RemoteSearch:
    """An engine of the same interface as BM25.

    Args:
      fetch: makes one request.
      batch: queries that one request takes at most.
      name: of the engine, part of the log's keys.
      cfg: limits.
      log: of results and of what was spent.
    """

    def __init__(self, fetch: Fetch, batch: int, name: str, cfg: EngineConfig, log: journal.Journal):
        self._fetch, self._batch, self._name, self._cfg, self._log = fetch, batch, name, cfg, log
        self._clock, self._next_start = threading.Lock(), 0.0

    @property
    def spent(self) -> float:
        """Dollars of all requests of this log, failed attempts included."""
        return self._log.get(f'spent on {self._name}') or 0.0

    def search(self, queries: Sequence[str], k: int, moment: str = '') -> list[list[Document] | SearchFailed]:
        """Up to k documents of each query, or how it failed.

        Args:
          queries: texts.
          k: documents a query.
          moment: of a run, e.g. its step: within one, a failed query is not asked again, so that a run that is resumed
            sees what it saw before. '': failed queries are asked again.

        Raises:
          SpendingCapReached: before the request that would exceed it; what came before is in the log.
        """
        failed = {query: json.dumps([self._name, query, k, moment]) for query in queries}
        known = {query: self._log.get(key) for query, key in failed.items()} if moment else {}
        asked = [query for query in failed if not known.get(query)]
        found = dict(zip(asked, self._ask(asked, k), strict=True))
        for query, value in found.items():
            if moment and 'failure' in value:
                self._log.put(failed[query], value)
        return [_result(known.get(query) or found[query]) for query in queries]

    def _ask(self, queries: list[str], k: int) -> list[dict]:
        """JSON results of different queries, from the log where it has them."""
        keys = [json.dumps([self._name, query, k]) for query in queries]

        def ask(positions: list[int]) -> Iterator[tuple[int, dict, bool]]:
            parts = [positions[i : i + self._batch] for i in range(0, len(positions), self._batch)]
            with concurrent.futures.ThreadPoolExecutor(self._cfg.concurrency) as pool:
                calls = {pool.submit(self._attempts, [queries[i] for i in part], k): part for part in parts}
                problem: Exception | None = None
                for call in concurrent.futures.as_completed(calls):
                    try:
                        found = call.result()
                    except Exception as error:  # the other requests are made, and paid, all the same
                        problem = problem or error
                        continue
                    for position, value in zip(calls[call], found, strict=True):
                        yield position, value, 'failure' not in value
                if problem:
                    raise problem

        return journal.call_once(self._log, keys, ask)

    def _attempts(self, queries: list[str], k: int) -> list[dict]:
        """JSON results of one request, tried again where that may help."""
        for attempt in range(self._cfg.retries + 1):
            self._start()
            try:
                found = self._fetch(queries, k)
                if len(found) != len(queries):
                    raise RequestFailed('invalid')
                return [{'documents': [dataclasses.asdict(d) for d in documents[:k]]} for documents in found]
            except RequestFailed as error:
                failure = error
                if not error.retryable or attempt == self._cfg.retries:
                    break
                time.sleep(self._cfg.pause_s * 2**attempt)
        return [{'failure': failure.kind} for _ in queries]

    def _start(self):
        """Waits for the next free start, and pays for it."""
        cfg = self._cfg
        with self._clock:
            if cfg.query_price:
                total = self.spent + cfg.query_price
                if cfg.spending_cap and total > cfg.spending_cap + 1e-9:
                    raise SpendingCapReached(
                        f'${self.spent:.2f} were spent on {self._name}; one more request would exceed the cap of '
                        f'${cfg.spending_cap:.2f}. Results so far are kept: raise spending_cap to go on'
                    )
                self._log.put(f'spent on {self._name}', total)
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + (1 / cfg.per_second if cfg.per_second else 0.0)
        time.sleep(start - now)


def _result(value: dict) -> list[Document] | SearchFailed:
    if 'failure' in value:
        return SearchFailed(value['failure'])
    return [Document(**document) for document in value['documents']]


def open_search_engine(
    cfg: EngineConfig, passages: Callable[[], Sequence[Passage]] = list, log: journal.Journal | None = None
) -> BM25 | RemoteSearch:
    """The configured engine.

    Args:
      cfg: which one.
      passages: reads the corpus, called for bm25 only.
      log: of a remote engine's results.

    Raises:
      ValueError: a key or a package is missing.
    """
    if cfg.kind == 'bm25':
        return BM25.open(passages(), cfg.index) if cfg.index else BM25(passages())
    log = log or journal.Journal()
    if cfg.kind == 'serpapi':
        return RemoteSearch(_serpapi(cfg), 1, 'serpapi', cfg, log)
    fetch = settings.resolve_name(cfg.kind, ENGINES, 'kind')
    batch = 1 if fetch is _zerosearch_wiki else 64
    return RemoteSearch(lambda queries, k: fetch(cfg, queries, k), batch, f'{cfg.kind} {cfg.url}', cfg, log)


def search_in_step(engine: BM25 | RemoteSearch, moment: str) -> Callable:
    """The engine's function of (queries, k), with the failures of a moment remembered (RemoteSearch.search)."""
    return engine.search if isinstance(engine, BM25) else functools.partial(engine.search, moment=moment)


# ---------------------------------------------------------------- protocols


def _post(cfg: EngineConfig, body: dict):
    """The JSON reply to a request."""
    import requests

    try:
        reply = requests.post(cfg.url, json=body, timeout=cfg.timeout_s)
    except requests.Timeout as error:
        raise RequestFailed('timeout', retryable=True) from error
    except requests.RequestException as error:
        raise RequestFailed('connection', retryable=True) from error
    _check_status(reply.status_code)
    try:
        return reply.json()
    except ValueError as error:
        raise RequestFailed('invalid', retryable=True) from error


def _check_status(status: int):
    if status == 429:
        raise RequestFailed('rate_limit', retryable=True)
    if status != 200:
        raise RequestFailed(f'status_{status}', retryable=status >= 500)


def _search_r1(cfg: EngineConfig, queries: Sequence[str], k: int) -> list[list[Document]]:
    """Search-R1's retriever: {"queries", "topk", "return_scores"} to {"result": [[{"document", "score"}, ...]]}."""
    reply = _post(cfg, {'queries': list(queries), 'topk': k, 'return_scores': True})
    try:
        return [[_search_r1_document(item) for item in found] for found in reply['result']]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RequestFailed('invalid') from error


def _search_r1_document(item: dict) -> Document:
    """With a score or without; `contents` is a quoted title, a line feed and the text."""
    document, score = (item['document'], float(item['score'])) if 'document' in item else (item, 0.0)
    if 'contents' in document:
        title, text = split_title(document['contents'])
    else:
        title, text = document.get('title', ''), document['text']
    return Document(title, text.strip(), str(document.get('id', '')), score)


def _zerosearch_wiki(cfg: EngineConfig, queries: Sequence[str], k: int) -> list[list[Document]]:
    """ZeroSearch's wiki server: {"query", "top_k"} to [{"text"}, ...]."""
    reply = _post(cfg, {'query': queries[0], 'top_k': k})
    try:
        return [[Document('', item['text'].strip()) for item in reply]]
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestFailed('invalid') from error


def _serpapi(cfg: EngineConfig) -> Fetch:
    """Google's organic results through SerpAPI's client: titles and snippets."""
    import requests

    try:
        import serpapi
    except ImportError as error:
        raise ValueError("SerpAPI needs its package: pip install -e '.[serpapi]'") from error
    key = os.environ.get(SERPAPI_KEY)
    if not key:
        raise ValueError(f'SerpAPI needs a key in the environment variable {SERPAPI_KEY}')
    client = serpapi.Client(api_key=key, timeout=cfg.timeout_s)

    def fetch(queries: Sequence[str], k: int) -> list[list[Document]]:
        try:
            reply = client.search({'engine': 'google', 'q': queries[0], 'num': k})
        except serpapi.TimeoutError:
            raise RequestFailed('timeout', retryable=True) from None  # the message holds the key
        except serpapi.HTTPConnectionError:
            raise RequestFailed('connection', retryable=True) from None
        except serpapi.HTTPError as error:
            status = getattr(error, 'status_code', 0) or 0
            kind = {429: 'rate_limit'}.get(status, f'status_{status}')
            raise RequestFailed(kind, retryable=status == 429 or status >= 500) from None
        except requests.RequestException:  # a body that breaks off, say
            raise RequestFailed('connection', retryable=True) from None
        if isinstance(reply, str):  # what the client gives back where it is not JSON
            raise RequestFailed('invalid', retryable=True)
        found = [item for item in reply.get('organic_results', []) if item.get('snippet')]
        return [[Document(item.get('title', ''), item['snippet'], item.get('link', '')) for item in found]]

    return fetch


# functions of (config, queries, k) to the documents of each query; the two without are opened by themselves
ENGINES: dict[str, Callable | None] = {
    'bm25': None,
    'search_r1': _search_r1,
    'zerosearch_wiki': _zerosearch_wiki,
    'serpapi': None,
}
