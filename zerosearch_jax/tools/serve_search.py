"""A retriever that speaks Search-R1's protocol: its clients, and ours, search a corpus of this project's.

    POST /retrieve   {"queries": ["who wrote hamlet"], "topk": 3, "return_scores": true}
                ->   {"result": [[{"document": {"id": "p1", "contents": "\\"Hamlet\\"\\n..."}, "score": 7.1}, ...]]}

Without scores the inner list holds the documents themselves.
"""

import dataclasses
import functools
import http.server
import json
from collections.abc import Callable, Sequence

from zerosearch_jax import settings
from zerosearch_jax.search.search import Document

LONGEST_REQUEST = 4 * 2**20  # bytes


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
    """Serves `search`, a function of (queries, k) to documents, until `shutdown`; a thread a request."""

    daemon_threads = True
    request_queue_size = 512  # connections that wait to be accepted

    def __init__(self, cfg: ServeConfig, search: Callable[[Sequence[str], int], list[list[Document]]]):
        self.cfg, self.search = cfg, search
        super().__init__((cfg.host, cfg.port), Handler)

    @property
    def url(self) -> str:
        return f'http://{self.cfg.host}:{self.server_port}/retrieve'


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = 'HTTP/1.1'

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
        if not size.isdigit() or int(size) > LONGEST_REQUEST:
            self.close_connection = True  # what follows is not read
            raise ValueError(f'a request needs a Content-Length of at most {LONGEST_REQUEST} bytes')
        try:
            body = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError) as error:
            raise ValueError('the request is not JSON') from error
        queries = body.get('queries') if isinstance(body, dict) else None
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise ValueError('"queries" must be a list of texts')
        k = self.server.cfg.documents if body.get('topk') is None else body['topk']
        if type(k) is not int or k < 1:
            raise ValueError('"topk" must be a positive integer or null')
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
