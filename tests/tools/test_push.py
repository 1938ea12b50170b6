"""Uploading an export: to a server that speaks the hub's protocol, in one commit, without telling anybody the key."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from helpers import ENVIRONMENT, ROOT

from zerosearch_jax.tools import push

KEY = 'hf_thisIsTheKeyThatNobodySees'
FILES = {
    'README.md': b'---\nlibrary_name: peft\n---\n\n# name\n',
    'adapter_config.json': b'{"r": 2}',
    'adapter_model.safetensors': b'weights' * 100,
    'curves.png': b'\x89PNG',
}


class Hub(http.server.ThreadingHTTPServer):
    """The part of the hub's protocol that an upload of a model needs; what is refused it answers with 403."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.made, self.blobs, self.files, self.keys, self.refuses = [], {}, {}, set(), False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        hub, text = self.server, self.rfile.read(int(self.headers['Content-Length']))
        hub.keys.add(self.headers['Authorization'])
        if hub.refuses:
            return self._answer(403, {'error': f'{self.headers["Authorization"]} may not write'})
        if self.path == '/api/repos/create':
            hub.made.append(json.loads(text))
            return self._answer(200, {'url': f'{hub.url}/owner/name'})
        if self.path == '/api/validate-yaml':
            return self._answer(200, {'errors': [], 'warnings': []})
        if self.path == '/api/models/owner/name/preupload/main':
            mode = lambda path: 'lfs' if path.endswith('.safetensors') else 'regular'  # noqa: E731
            paths = [file['path'] for file in json.loads(text)['files']]
            return self._answer(
                200, {'files': [{'path': p, 'uploadMode': mode(p), 'shouldIgnore': False} for p in paths]}
            )
        if self.path == '/owner/name.git/info/lfs/objects/batch':
            objects = json.loads(text)['objects']
            for each in objects:
                each['actions'] = {'upload': {'href': f'{hub.url}/blobs/{each["oid"]}'}}
            return self._answer(200, {'transfer': 'basic', 'objects': objects})
        assert self.path == '/api/models/owner/name/commit/main', self.path
        for line in map(json.loads, text.splitlines()):
            value = line['value']
            if line['key'] == 'file':
                hub.files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                hub.files[value['path']] = hub.blobs[value['oid']]
        return self._answer(200, {'commitUrl': f'{hub.url}/owner/name/commit/1', 'commitOid': '1' * 40})

    def do_PUT(self):
        data = self.rfile.read(int(self.headers['Content-Length']))
        assert self.path == f'/blobs/{hashlib.sha256(data).hexdigest()}'
        self.server.blobs[self.path.rpartition('/')[2]] = data
        self._answer(200, {})

    def _answer(self, status, reply):
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    monkeypatch.setenv('HF_ENDPOINT', server.url)
    monkeypatch.setenv('HF_TOKEN', KEY)
    yield server
    server.shutdown()


@pytest.fixture
def export(tmp_path):
    directory = tmp_path / 'exported'
    (directory / 'checkpoints').mkdir(parents=True)
    for name, data in {**FILES, 'notes.txt': b'mine', 'checkpoints/x.safetensors': b'old', '.env': b'key'}.items():
        (directory / name).write_bytes(data)
    return directory


def upload(directory):
    """In a process of its own: the client reads its switches as it is imported, and these tests run without the hub."""
    code = 'import pathlib, sys; from zerosearch_jax.tools.push import push; '
    code += 'print(push(pathlib.Path(sys.argv[1]), "owner/name"))'
    switches = {name: os.environ[name] for name in ('HF_ENDPOINT', 'HF_TOKEN')}
    environment = ENVIRONMENT | switches | {'HF_HUB_OFFLINE': '0', 'HF_HUB_DISABLE_XET': '1', 'HF_DEBUG': '1'}
    command = [sys.executable, '-c', code, str(directory)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_an_export_is_uploaded_in_one_commit_to_a_private_repository(hub, export):
    done = upload(export)
    assert done.returncode == 0, done.stderr
    assert hub.files == FILES  # and nothing else that lies there
    (made,) = hub.made
    assert (made['organization'], made['name']) == ('owner', 'name')
    assert made.get('visibility') == 'private' or made['private']  # as versions of the client say it
    assert hub.keys == {f'Bearer {KEY}'}
    assert done.stdout.startswith(f'uploaded to {hub.url}/owner/name:\n  README.md  0.000 MB\n')
    assert KEY not in done.stdout + done.stderr


def test_what_the_hub_refuses_is_told_in_one_line_without_the_key(hub, export):
    hub.refuses = True
    done = upload(export)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'OSError: {hub.url}/owner/name refused the upload (403 Forbidden')
    assert last.endswith('may the key in HF_TOKEN write there?') and '***' in last
    assert KEY not in done.stdout + done.stderr and hub.files == {}


def test_a_dry_run_says_what_would_go_where_and_asks_nobody(hub, export, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    said = push.push(export, 'owner/name', dry_run=True)
    first, *rest = said.splitlines()
    assert first == f'would upload to {hub.url}/owner/name:'
    assert [line.split()[0] for line in rest] == sorted(FILES) and hub.made == [] and hub.keys == set()
    monkeypatch.setenv('HF_ENDPOINT', '')
    assert push.push(export, 'owner/name', dry_run=True).startswith('would upload to https://huggingface.co/owner/name')


@pytest.mark.parametrize('name', ['name', 'a/b/c', '../x', 'owner/', 'owner/na me', ''])
def test_what_is_no_repository_is_refused(name):
    with pytest.raises(ValueError, match='give OWNER/NAME'):
        push.check(name, True)


def test_without_a_key_nothing_is_begun(monkeypatch):
    monkeypatch.setenv('HF_TOKEN', ' ')
    with pytest.raises(ValueError, match='in the environment variable HF_TOKEN; --dry-run needs none'):
        push.check('owner/name', False)
    push.check('owner/name', True)
