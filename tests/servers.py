"""A server of chat completions that does what a test says."""

import http.server
import json
import threading
import time


class Server(http.server.ThreadingHTTPServer):
    """Speaks the chat-completions protocol; `behave(message)` returns a text, or an int status, or None to hang."""

    daemon_threads = True

    def __init__(self, behave):
        super().__init__(('127.0.0.1', 0), Handler)
        self.behave, self.requests, self.keys = behave, [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/v1'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        message = body['messages'][-1]['content']
        self.server.requests.append(body)
        self.server.keys.append(self.headers['Authorization'])
        reply = self.server.behave(message)
        if reply is None:
            time.sleep(3)
            return
        status, text = (reply, '{"error": {"message": "no"}}') if isinstance(reply, int) else (200, reply)
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Retry-After', '0')
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass
