"""A retriever that speaks Search-R1's protocol: its clients, and ours, search a corpus of this project's.

    POST /retrieve   {"queries": ["who wrote hamlet"], "topk": 3, "return_scores": true}
                ->   {"result": [[{"document": {"id": "p1", "contents": "\\"Hamlet\\"\\n..."}, "score": 7.1}, ...]]}

Without scores the inner list holds the documents themselves. What a request may ask for, how long it may take to arrive
and how many are served at once is bounded, so that no client can stop the others.
"""

import contextlib
import dataclasses
import functools
import http.server
import json
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from zerosearch_jax import settings
from zerosearch_jax.search.search import Document

LONGEST_REQUEST = 4 * 2**20  # bytes
# of one request, and of its reply, queries times topk: the training of Search-R1 asks for a whole batch at once
MOST_QUERIES, MOST_DOCUMENTS = 4096, 12288
MOST_CONNECTIONS = 64  # at once; others wait
TIMEOUT_S = 5.0  # for a request to arrive, and for its reply to be taken


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What is served, and where."""

    corpus: str = 'world'  # data/sources.py
    index: str = ''  # directory where the corpus's index is kept; '': made in memory
    host: str = '127.0.0.1'
    port: int = 8000
    documents: int = 3  # where a request does not say how many

    def __post_init__(self):
        settings.require_positive(self, 'documents')
        if self.port >= 2**16:
            raise ValueError(f'port must be below {2**16}, got {self.port}')


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration."""

    serve: ServeConfig


parse = functools.partial(settings.build, Config)


class Server(http.server.ThreadingHTTPServer):
    """Serves `search`, a function of (queries, k) to documents, until `shutdown`; a thread a connection."""

    daemon_threads = True
    request_queue_size = 512  # connections that wait to be accepted

    def __init__(self, cfg: ServeConfig, search: Callable[[Sequence[str], int], list[list[Document]]]):
        self.cfg, self.search, self._free = cfg, search, threading.Semaphore(MOST_CONNECTIONS)
        super().__init__((cfg.host, cfg.port), Handler)

    @property
    def url(self) -> str:
        return f'http://{self.cfg.host}:{self.server_port}/retrieve'

    def process_request(self, request, client_address):
        self._free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # such a client has gone
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = 'HTTP/1.1'
    timeout = TIMEOUT_S  # of one read, and of a whole reply

    def handle_one_request(self):
        self._arriving = threading.Timer(self.timeout, self._hang_up)
        self._arriving.daemon = True
        self._arriving.start()
        try:
            super().handle_one_request()
        finally:
            self._arriving.cancel()

    def _hang_up(self):
        with contextlib.suppress(OSError):  # it may have gone
            self.connection.shutdown(socket.SHUT_RD)

    def do_POST(self):
        try:
            if self.path != '/retrieve':
                self.close_connection = True  # its body is not read
                raise LookupError(f'there is no {self.path}; POST to /retrieve')
            queries, k, scores = self._request()
            found = self.server.search(queries, k)
            self._reply(200, {'result': [[_shown(document, scores) for document in each] for each in found]})
        except LookupError as error:
            self._reply(404, {'detail': str(error)})
        except ValueError as error:
            self._reply(422, {'detail': str(error)})

    def _request(self) -> tuple[list[str], int, bool]:
        size = self.headers.get('Content-Length', '')
        if not size.isdecimal() or len(size) > 9 or int(size) > LONGEST_REQUEST:
            self.close_connection = True  # what follows is not read
            raise ValueError(f'a request needs a Content-Length of at most {LONGEST_REQUEST} bytes')
        try:
            body = settings.parse_json(self.rfile.read(int(size)))
        except ValueError as error:
            raise ValueError('the request is not JSON') from error
        self._arriving.cancel()
        queries = body.get('queries') if isinstance(body, dict) else None
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise ValueError('"queries" must be a list of texts')
        k = self.server.cfg.documents if body.get('topk') is None else body['topk']
        if type(k) is not int or k < 1:
            raise ValueError('"topk" must be a positive integer or null')
        if len(queries) > MOST_QUERIES:
            raise ValueError(f'"queries" may be {MOST_QUERIES} at most, got {len(queries)}')
        if len(queries) * k > MOST_DOCUMENTS:
            raise ValueError(f'"queries" times "topk" may be {MOST_DOCUMENTS} at most, got {len(queries)} x {k}')
        return queries, k, bool(body.get('return_scores', False))

    def _reply(self, status: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Requests are not shown."""


def _shown(document: Document, score: bool) -> dict:
    plain = {'id': document.id, 'contents': f'"{document.title}"\n{document.text}'}
    return {'document': plain, 'score': document.score} if score else plain
