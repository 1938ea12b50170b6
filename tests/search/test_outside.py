"""The caller of the outside: servers that trickle, flood, send elsewhere, lie or are not there, and what is told."""

import json
import socket
import time
import types

import pytest
from servers import Server, trickle

from zerosearch_jax.search import outside, remote
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.outside import RequestFailed, map_concurrently, request_json, retry, safe_message
from zerosearch_jax.search.remote import EngineConfig, open_search_engine
from zerosearch_jax.search.search import Document, OutsideFailed
from zerosearch_jax.simulator import load
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.judge import JudgeConfig
from zerosearch_jax.simulator.writers import ENDPOINT_KEY, EndpointConfig

DEEP = '{"result": ' + '[' * 100_000 + ']' * 100_000 + '}'


def failure(behave, timeout_s=2.0, **options):
    """How a request to a server of this behaviour fails."""
    with pytest.raises(RequestFailed) as caught:
        request_json(Server(behave).url, {'a': 1}, timeout_s=timeout_s, **options)
    return caught.value


# ---------------------------------------------------------------- one request


@pytest.mark.parametrize('head', [b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n', b'HTTP/1.1 200 OK\r\nX: '])
def test_a_server_that_sends_a_byte_a_second_ends_at_the_deadline(head):
    start = time.monotonic()
    failed = failure(lambda _: trickle(head=head), timeout_s=0.3)
    assert (failed.kind, failed.retryable) == ('timeout', True)
    assert time.monotonic() - start < 2


def test_a_body_of_400_mb_is_not_read(monkeypatch):
    monkeypatch.setattr(outside, 'MOST_BYTES', 2**20)
    sent = []

    def flood(_):
        yield b'HTTP/1.1 200 OK\r\n\r\n'
        for _ in range(400):
            sent.append(1)
            yield b'x' * 2**20

    assert failure(flood, timeout_s=20).kind == 'too_large'
    assert len(sent) < 100


def test_a_redirect_elsewhere_is_not_followed():
    elsewhere = Server(lambda _: '{}')
    failed = failure(lambda _: (302, '', {'Location': f'{elsewhere.url}?token=abc'}))
    assert (failed.kind, failed.retryable) == ('redirect', False)
    assert failed.detail == f'to {elsewhere.url}?token=***'
    assert not elsewhere.requests


@pytest.mark.parametrize(
    ('body', 'said'),
    [
        ('{"error": {"message": "The model `x` does not exist."}}', 'The model `x` does not exist.'),
        ('{"error": "out of\\n\\tcredit \\u001b[31m"}', 'out of credit [31m'),
        ('{"detail": [{"loc": ["body"]}]}', '{"detail": [{"loc": ["body"]}]}'),
        ('<html><h1>502 Bad Gateway</h1></html>', '502 Bad Gateway'),
        ('wrong key sk-1 in http://me:pw@host/?api_key=abc', 'wrong key *** in http://***@host/?api_key=***'),
        ('x' * 1000, 'x' * 197 + '...'),
        (DEEP, DEEP[:197] + '...'),
        ('', ''),
    ],
    ids=lambda value: value[:20],
)
def test_a_failure_carries_the_servers_own_words_on_one_line_without_keys(body, said):
    assert failure(lambda _: (500, body), key='sk-1').detail == said


def test_a_key_in_the_address_is_hidden_where_the_server_repeats_it():
    server = Server(lambda _: (401, 'no such key: a b&c'))
    with pytest.raises(RequestFailed) as caught:
        request_json(f'{server.url}?api_key=a%20b%26c', {}, timeout_s=2)
    assert caught.value.detail == 'no such key: ***'


def test_a_key_is_hidden_where_a_redirect_repeats_it():
    assert failure(lambda _: (307, '', {'Location': 'http://h/sk-1/'}), key='sk-1').detail == 'to http://h/***/'


def test_json_nested_100_000_deep_is_a_typed_failure():
    assert failure(lambda _: DEEP).kind == 'invalid'
    assert failure(lambda _: '1' * 5000).kind == 'invalid'


def free_port():
    with socket.socket() as made:
        made.bind(('127.0.0.1', 0))
        return made.getsockname()[1]


@pytest.mark.parametrize(
    ('url', 'kind', 'said'),
    [
        ('http://127.0.0.1:{port}/x?key=secret', 'connection', 'Connection refused'),
        ('http://nobody.invalid/?key=secret', 'connection', ''),
        ('ftp://127.0.0.1/?key=secret', 'address', 'InvalidSchema'),
        ('http://[::1/?key=secret', 'address', 'InvalidURL'),
    ],
)
def test_nobody_there_is_told_without_the_address_that_may_hold_a_key(url, kind, said):
    with pytest.raises(RequestFailed) as caught:
        request_json(url.format(port=free_port()), {}, timeout_s=5)
    assert caught.value.kind == kind and said in caught.value.detail and 'secret' not in caught.value.detail


@pytest.mark.parametrize('key', ['two\nlines', 'schlüssel€'])
def test_a_key_that_no_header_takes_is_not_shown(key):
    failed = failure(lambda _: '{}', key=key)
    assert failed.kind == 'address' and key not in failed.detail


# ---------------------------------------------------------------- many


def test_attempts_end_and_pauses_are_those_that_the_server_asks_for(monkeypatch):
    pauses, failures = [], [RequestFailed('rate_limit', True, wait_s=7), RequestFailed('x', True)] * 2
    monkeypatch.setattr(outside, 'time', types.SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))

    def ask():
        raise failures.pop(0)

    with pytest.raises(RequestFailed, match='x'):
        retry(ask, 3, 1.0)
    assert pauses == [7, 2.0, 7] and not failures
    failures[:] = [RequestFailed('x', True)] * 2001
    with pytest.raises(RequestFailed):
        retry(ask, 2000, 1.0)
    assert max(pauses) == outside.LONGEST_PAUSE_S
    assert failure(lambda _: (429, '', {'Retry-After': '12'})).wait_s == 12
    assert failure(lambda _: (429, '', {'Retry-After': 'Wed, 21 Oct 2015 07:28:00 GMT'})).wait_s is None


def test_what_breaks_loses_no_other_answer():
    found = []
    with pytest.raises(ZeroDivisionError):
        for thing, result in map_concurrently(lambda n: 1 // n, [1, 0, -1], 2):
            found.append((thing, result))
    assert sorted(found) == [(-1, -1), (1, 1)]


def test_other_replies_of_the_batch_of_a_deep_one_are_kept_and_logged(tmp_path):
    good = '{"result": [[{"document": {"text": "fine"}}]]}'
    server = Server(lambda body: DEEP if b'deep' in body else good)
    path = tmp_path / 'searches.log'

    def search(queries):
        cfg = EngineConfig('search_r1', url=server.url, retries=0, pause_s=0.0)
        engine = open_search_engine(cfg, log=Journal(path))
        engine._batch = 1
        return engine.search(queries, 1)

    first, deep, second = search(['a', 'deep', 'b'])
    assert (first, deep.kind, second) == ([Document('', 'fine')], 'invalid', [Document('', 'fine')])
    server.requests.clear()
    assert search(['a', 'b']) == [first, second] and not server.requests


# ---------------------------------------------------------------- probes


def says(text):
    return json.dumps({'choices': [{'message': {'content': text}}]})


def test_a_probe_of_what_is_in_this_process_asks_nothing():
    remote.probe(EngineConfig())
    for kind in ('model', 'oracle', 'engine', 'none'):
        load.probe(SimulatorConfig(kind), EndpointConfig())


def test_a_probe_of_a_good_service_makes_one_request():
    engine = Server(lambda _: '{"result": [[]]}')
    remote.probe(EngineConfig('search_r1', url=engine.url))
    assert len(engine.requests) == 1
    for reply in (says('Yes'), says(None)):
        server = Server(lambda _, reply=reply: reply)
        load.probe(JudgeConfig('endpoint', 'm'), EndpointConfig(server.url))
        assert [request['model'] for request in server.requests] == ['m']


def dead():
    return f'http://127.0.0.1:{free_port()}/v1'


@pytest.mark.parametrize(
    ('behave', 'line'),
    [
        (
            None,
            r'engine search_r1 at http://127.*/v1\?key=\*\*\* cannot be used: connection \(Connection refused\)',
        ),
        (lambda _: '{"hits": []}', r'invalid \(the reply is an object of hits\); .*engine.fields'),
        (lambda _: (503, 'index is loading'), r'status_503 \(index is loading\)'),
        (lambda _: (302, '', {'Location': 'http://there/'}), r'redirect \(to http://there/\); set the address'),
        (lambda _: trickle(), r'timeout \(no whole reply within 0.3 seconds\)'),
        (lambda _: DEEP, 'invalid'),
    ],
    ids=['dead', 'another schema', 'status', 'redirect', 'trickle', 'deep'],
)
def test_a_dead_engine_or_one_of_another_schema_is_told_beforehand_in_one_line(behave, line):
    url = f'{Server(behave).url if behave else dead()}?key=secret'
    with pytest.raises(OutsideFailed, match=line) as caught:
        remote.probe(EngineConfig('search_r1', url=url, timeout_s=0.3 if behave else 5.0, retries=0))
    assert 'secret' not in str(caught.value) and '\n' not in str(caught.value)


def vllm(known='qwen'):
    """A server that knows one model, at /v1."""

    def behave(message):
        if message == '/v1/models':
            return json.dumps({'data': [{'id': known}]})
        return (404, json.dumps({'error': {'message': 'The model `m` does not exist.'}}))

    return behave


@pytest.mark.parametrize(
    ('behave', 'line'),
    [
        (vllm(), r"status_404 \(The model `m` does not exist.\); it serves 'qwen': is the model 'm' one of them\?"),
        (vllm('m'), r'status_404 \(The model `m` does not exist.\); is the address right\?'),
        (lambda _: (404, '{"detail": "Not Found"}'), r'status_404 \(Not Found\); does the address lack /v1\?'),
        (lambda _: (401, 'bad key sk-1'), rf'status_401 \(bad key \*\*\*\); is the key in {ENDPOINT_KEY} right\?'),
        (lambda _: '{"choices": []}', r'invalid \(the reply is an object of choices\); does it speak'),
        (lambda _: '{"error": {"message": "no sk-1"}}', r'invalid \(no \*\*\*\)'),
        (None, r'connection \(Connection refused\); is it running'),
    ],
    ids=['unknown model', 'known model', 'lacks v1', 'key', 'another protocol', 'error as success', 'dead'],
)
def test_an_endpoint_whose_model_is_unknown_or_whose_url_lacks_v1_is_told_beforehand_in_one_line(
    behave, line, monkeypatch
):
    monkeypatch.setenv(ENDPOINT_KEY, 'sk-1')
    url = Server(behave).url if behave else dead()
    if 'lack /v1' in line:
        url = url.removesuffix('/v1')
    with pytest.raises(OutsideFailed, match=line):
        load.probe(SimulatorConfig('endpoint', 'm'), EndpointConfig(url, timeout_s=5.0, retries=0))
    with pytest.raises(ValueError, match=r'config\.endpoint\.url'):
        load.probe(SimulatorConfig('endpoint', 'm'), EndpointConfig())


def test_a_probe_pays_nothing(monkeypatch, capsys):
    paid = Server(lambda _: '{"result": [[]]}')
    remote.probe(EngineConfig('search_r1', url=paid.url, query_price=0.01))
    assert not paid.requests and 'not tested now' in capsys.readouterr().err
    account = Server(lambda path: json.dumps({'total_searches_left': 3 if 'good' in path else 0}))
    monkeypatch.setattr(remote, 'SERPAPI', account.url)
    monkeypatch.setenv(remote.SERPAPI_KEY, 'good')
    remote.probe(EngineConfig('serpapi', query_price=0.01))
    assert account.requests == ['/v1/account.json?api_key=good']
    monkeypatch.setenv(remote.SERPAPI_KEY, 'used-up')
    with pytest.raises(OutsideFailed, match='no searches are left'):
        remote.probe(EngineConfig('serpapi', retries=0))


def test_a_key_in_the_address_of_a_served_model_stays_behind_the_path():
    server = Server(lambda path: json.dumps({'path': path}))
    assert EndpointConfig(f'{server.url}?api_key=abc').ask('models') == {'path': '/v1/models?api_key=abc'}


def test_who_interrupts_does_not_wait_for_requests_that_have_not_begun():
    asked = []
    for _ in map_concurrently(lambda n: asked.append(n) or time.sleep(0.02), range(100), 1):
        break
    assert len(asked) < 10


@pytest.mark.parametrize(
    ('values', 'line'),
    [
        ({'url': 'localhost:8000'}, 'url must begin with http'),
        ({'timeout_s': 0.0}, 'timeout_s must be above 0'),
        ({'timeout_s': float('inf')}, 'timeout_s must be above 0'),
        ({'timeout_s': float('nan')}, 'timeout_s must be above 0'),
        ({'concurrency': 0}, 'concurrency must be positive'),
    ],
)
def test_limits_that_are_none_are_refused(values, line):
    for make in (EngineConfig, EndpointConfig):
        with pytest.raises(ValueError, match=line):
            make(**values)


def test_words_of_text_are_text():
    assert safe_message('a\x00b') == 'a b'
