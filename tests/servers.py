"""A server that does what a test says, and servers of ours as programs."""

import contextlib
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
import time

from helpers import ENVIRONMENT, ROOT


class Server(http.server.ThreadingHTTPServer):
    """Answers a POST by `behave` of its chat message, or of its whole body, and a GET by `behave` of its path.

    `behave` returns a text, a status, (status, text), (status, text, headers), None to hang, or an iterator of bytes
    that are sent as they are.
    """

    daemon_threads = True

    def __init__(self, behave):
        super().__init__(('127.0.0.1', 0), Handler)
        self.behave, self.requests, self.keys = behave, [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/v1'

    def handle_error(self, *_):
        """Clients of these tests hang up."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers['Content-Length']))
        body = json.loads(text)
        self.server.requests.append(body)
        self._answer(body['messages'][-1]['content'] if isinstance(body, dict) and 'messages' in body else text)

    def do_GET(self):
        self.server.requests.append(self.path)
        self._answer(self.path)

    def _answer(self, message):
        self.server.keys.append(self.headers['Authorization'])
        reply = self.server.behave(message)
        if reply is None:
            time.sleep(3)
            return
        if hasattr(reply, '__next__'):
            for piece in reply:
                self.wfile.write(piece)
            return
        reply = (reply, '{"error": {"message": "no"}}') if isinstance(reply, int) else reply
        status, text, headers = (*((200, reply) if isinstance(reply, str) else reply), {})[:3]
        self.send_response(status)
        for name, value in {'Content-Type': 'application/json', 'Retry-After': '0', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def trickle(seconds=0.05, head=b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n'):
    """A reply that never ends, a byte at a time."""
    yield head
    for _ in range(200):
        time.sleep(seconds)
        yield b' '


@contextlib.contextmanager
def started(words, said):
    """(the program `python -m words`, the address that it says it serves at: the group of `said`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, by a child too
    options = {'cwd': ROOT, 'env': ENVIRONMENT, 'stderr': subprocess.PIPE, 'text': True}
    program = subprocess.Popen([sys.executable, '-m', *words], **options)
    signal.signal(signal.SIGINT, before)
    try:
        lines = ''
        while not (found := re.search(said, lines)):
            line = program.stderr.readline()
            assert line, lines
            lines += line
        yield program, found[1]
    finally:
        program.kill()
