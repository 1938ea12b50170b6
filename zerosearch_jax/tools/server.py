"""The shared part of our servers: limits for requests, and one thread in which a model runs for all of them.

    a thread per connection     reads a request, submits a Job, follows its pieces, replies
    the thread of Worker.run    advances the jobs, several at once; it alone uses the model

The size of a request, the time that it may take to arrive and the number of requests at once are limited, so that no
client can stop the others. A job is dropped if its client has disconnected or its deadline has passed.
"""

import collections
import contextlib
import http.server
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from zerosearch_jax import settings

LONGEST_REQUEST = 4 * 2**20  # bytes
MOST_CONNECTIONS = 64  # at once, besides those with a job of the worker; others wait
TIMEOUT_S = 5.0  # for a request to arrive, and for each part of its reply to be received
WRITTEN_AT_ONCE = 2**16  # bytes of a reply, for which a client has TIMEOUT_S
LOOK_S = 0.2  # between two checks whether a waiting client is still connected


def require_port(port: int):
    """Raises ValueError if `port` is no port."""
    if not 0 <= port < 2**16:
        raise ValueError(f'port must be from 0 to {2**16 - 1}, got {port}')


class Refused(Exception):
    """A request that is not served: the status of the reply, and the reason."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Job:
    """The work of one request: the worker's thread puts pieces of its result, and None after the last."""

    def __init__(self, timeout_s: float):
        self.pieces: queue.SimpleQueue = queue.SimpleQueue()
        self.timeout_s, self.deadline, self.gone = timeout_s, time.monotonic() + timeout_s, False

    @property
    def over(self) -> bool:
        """Whether no client waits for the rest."""
        return self.gone or time.monotonic() > self.deadline


class Worker:
    """Does jobs; a subclass has `advance`, which takes and advances jobs, and `busy`, the number of jobs it has taken.

    Args:
      most: the most jobs, waiting ones included; more are refused.
    """

    def __init__(self, most: int):
        if jax.process_count() > 1:
            raise ValueError('one process serves: start it without --coordinator')
        self.most, self._closed = most, False
        self._changed, self._waiting = threading.Condition(), collections.deque()

    def submit(self, job: Job) -> Job:
        """Queues a job, from any thread. Raises Refused if there are too many."""
        with self._changed:
            self._waiting = collections.deque(each for each in self._waiting if not each.over)
            if len(self._waiting) + self.busy >= self.most:
                raise Refused(429, f'{self.most} requests are running or waiting; try again later')
            self._waiting.append(job)
            self._changed.notify()
        return job

    def run(self):
        """Does submitted jobs until `close`, in this thread."""
        while not self._closed:
            with self._changed:  # Ctrl-C may not interrupt a wait without a timeout
                self._changed.wait_for(lambda: self._waiting or self.busy or self._closed, LOOK_S)
            self.advance()

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify()


class Server(http.server.ThreadingHTTPServer):
    """Serves until `shutdown`, with one thread for each connection.

    Args:
      cfg: with the fields `host` and `port`.
      handler: of requests.
      worker: of jobs, run by `run`; None: requests need no jobs.

    Raises:
      OSError: the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 512  # connections that wait to be accepted

    def __init__(self, cfg: Any, handler: type['Handler'], worker: Worker | None = None):
        self.cfg, self.worker = cfg, worker
        self._free = threading.Semaphore(MOST_CONNECTIONS + (worker.most if worker else 0))
        try:
            super().__init__((cfg.host, cfg.port), handler)
        except OSError as error:
            where = f'{cfg.host}:{cfg.port} ({error.strerror})'
            raise OSError(f'cannot serve at {where}; set config.serve.host and config.serve.port') from error

    @property
    def url(self) -> str:
        return f'http://{self.cfg.host}:{self.server_port}'

    def run(self):
        """Serves, and runs the worker's jobs in this thread."""
        if self.worker is None:
            return self.serve_forever()
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            self.worker.run()
        finally:
            self.shutdown()

    def process_request(self, request, client_address):
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started, which would have released it
            self._free.release()
            raise

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # the client has disconnected
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """A subclass has `answer`, which replies to a method and a path, and `told`, the reply for an error."""

    server: Server
    protocol_version = 'HTTP/1.1'
    timeout = TIMEOUT_S  # of one read, and of one write
    invalid = 422  # the status for a wrong request

    def handle_one_request(self):
        try:
            self.rfile.peek(1)  # a kept connection may be idle before a request arrives
        except OSError:
            self.close_connection = True
            return
        self._arriving = threading.Timer(self.timeout, self._hang_up)
        self._arriving.daemon = True
        self._arriving.start()
        try:
            super().handle_one_request()
        finally:
            self._arriving.cancel()

    def _hang_up(self):
        with contextlib.suppress(OSError):  # the client may have disconnected
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self):
        try:
            self.answer(self.command, *self.path.split('?', 1))
        except Refused as error:
            self.reply(error.status, self.told(error.status, str(error)))
        except ValueError as error:
            self.reply(self.invalid, self.told(self.invalid, str(error)))

    do_POST = do_GET

    def no_such(self, wanted: str) -> Refused:
        self.close_connection = True  # its body is not read
        return Refused(404, f'there is no {self.path}; {wanted}')

    def body(self) -> dict:
        """The JSON object of the request, or {} if it is no object. Raises ValueError if it is too long or no JSON."""
        size = self.headers.get('Content-Length', '')
        if not size.isdecimal() or len(size) > 9 or int(size) > LONGEST_REQUEST:
            self.close_connection = True  # the rest is not read
            raise ValueError(f'a request needs a Content-Length of at most {LONGEST_REQUEST} bytes')
        data = self.rfile.read(int(size))
        if len(data) < int(size):
            self.close_connection = True
            raise Refused(408, f'the request did not arrive within {self.timeout:g} seconds')
        try:
            body = settings.parse_json(data)
            # halves of surrogate pairs, which JSON can contain and no tokenizer accepts, become question marks
            body = json.loads(json.dumps(body, ensure_ascii=False).encode('utf-8', 'replace'))
        except (ValueError, RecursionError) as error:
            raise ValueError('the request is not JSON') from error
        self._arriving.cancel()
        return body if isinstance(body, dict) else {}

    def follow(self, job: Job) -> Iterator:
        """The pieces of a submitted job; if the iterator is closed or an exception ends it, the job is dropped.

        Raises:
          Refused: its deadline has passed.
          OSError: the client has disconnected.
        """
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    piece = job.pieces.get(timeout=LOOK_S)
                    if piece is None:
                        return
                    yield piece
                if self._has_left():
                    raise ConnectionAbortedError
                if job.over:
                    raise Refused(503, f'it was not done within config.serve.timeout_s = {job.timeout_s:g} seconds')
        finally:
            job.gone = True

    def _has_left(self) -> bool:
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(self.timeout)

    def reply(self, status: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        if status in (429, 503):
            self.send_header('Retry-After', '1')
        self.end_headers()
        for start in range(0, len(data), WRITTEN_AT_ONCE):
            self.wfile.write(data[start : start + WRITTEN_AT_ONCE])

    def log_message(self, *_):
        """Requests are not logged."""
