"""A simulator behind Search-R1's protocol: stock requests, what may be told besides, noise, and clients that leave."""

import contextlib
import http.client
import http.server
import json
import re
import signal
import socket
import threading
import time

import pytest
import requests
from helpers import ROOT
from scripted import FakeWriter
from servers import started

from configs import serve_search as config
from zerosearch_jax.search.remote import EngineConfig, open_search_engine
from zerosearch_jax.search.search import SearchFailed
from zerosearch_jax.simulator.simulator import SimulatedSearch
from zerosearch_jax.tools import serve_search, server

ROWS = [
    {'id': 'r', 'title': 'Rome', 'text': 'It is a city of Italy by a river.'},
    {'id': 's', 'title': 'Roman roads', 'text': 'A city had roads to Rome.'},
    {'id': 't', 'title': 'Rome, New York', 'text': 'A city of the same name.'},
    {'id': 'u', 'title': 'Roma', 'text': 'A film about a city and Rome.'},
]
STOCK = {'queries': ['Where is Rome', 'city of Rome'], 'topk': 3, 'return_scores': True}  # as its training sends it
ANSWERS = {'question': ['Where is Rome?'] * 2, 'golden_answers': [['Italy']] * 2}


def configured(**fields):
    made = config.get_config('simulator')
    made.serve.port = 0
    for name, value in fields.items():
        group, field = name.split('__')
        made[group][field] = value
    return serve_search.parse(made)


@contextlib.contextmanager
def serving(made):
    """A server that runs in another thread."""
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.worker.close()
        thread.join(120)
        made.server_close()
        assert not thread.is_alive()


@pytest.fixture
def oracle(tmp_path):
    """A server of an oracle."""
    (tmp_path / 'c.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
    given = {'simulator__kind': 'oracle', 'serve__corpus': str(tmp_path / 'c.jsonl')}
    return lambda **fields: serving(serve_search.open_server(configured(**given, **fields)))


def written(cfg, writer):
    """The server of a simulator whose writer is scripted."""
    source = lambda size, at: SimulatedSearch(writer, size, seed=at.seed, step=at.step, noise=at.noise)  # noqa: E731
    return serve_search.Server(cfg.serve, worker=serve_search.Simulated(cfg, source, 4))


def post(made, parameters='', **body):
    return requests.post(f'{made.url}{parameters}', json=body, timeout=300)


def texts(made, parameters='', **body):
    """The documents of each query."""
    reply = post(made, parameters, **body | {'return_scores': True})
    assert reply.status_code == 200, reply.text
    return [[item['document']['contents'].partition('\n')[2] for item in each] for each in reply.json()['result']]


def shown(documents):
    """Documents as the published client renders them."""
    lines = ''
    for i, item in enumerate(documents):
        title, _, text = item['document']['contents'].partition('\n')
        lines += f'Doc {i + 1}(Title: {title}) {text}\n'
    return lines


def test_a_stock_request_is_answered_in_the_form_of_the_retriever(oracle):
    with oracle() as made:
        reply = post(made, **STOCK).json()
        assert [len(each) for each in reply['result']] == [3, 3] and reply['failures'] == ['', '']
        for item in reply['result'][0]:
            assert item.keys() == {'document', 'score'} and item['document'].keys() == {'id', 'contents'}
        assert 'Doc 1(Title: "") ' in shown(reply['result'][0])
        plain = post(made, **STOCK | {'return_scores': False}).json()['result']
        assert plain == [[item['document'] for item in each] for each in reply['result']]
        assert post(made, queries=[]).json() == {'result': [], 'failures': []}
        client = open_search_engine(EngineConfig('search_r1', url=made.url))  # and ours
        assert [d.text for d in client.search(STOCK['queries'][:1], 3)[0]] == texts(made, **STOCK)[0]


def test_noise_is_what_the_request_says_and_answers_are_of_each_query(oracle):
    with oracle() as made:
        told = STOCK | {'golden_answers': [['Italy'], None], 'question': ['Where is Rome?', None]}
        useful, unknown = texts(made, **told)
        assert 'Italy' in useful[0] and len(unknown) == 3
        for noisy in (texts(made, **told, noise=1), texts(made, '?noise=1.0', **told)):
            assert not any('Italy' in text for text in noisy[0])
        assert texts(made, '?noise=1.0', **told, noise=0) == [useful, unknown]  # of both the request


def test_the_curriculum_gives_the_noise_of_the_step(oracle):
    with oracle(curriculum__kind='linear', curriculum__end=1.0, serve__steps=10) as made:
        late, early = (texts(made, **STOCK, **ANSWERS, step=step)[0] for step in (10, 0))
        assert 'Italy' in early[0] and not any('Italy' in text for text in late)
        assert texts(made, '?step=10', **STOCK, **ANSWERS)[0] == late
        reply = post(made, **STOCK)
        assert reply.status_code == 422 and '"step" or "noise" is missing' in reply.json()['detail']
        assert post(made, **STOCK, noise=0.5).status_code == 200


def test_draws_are_a_function_of_seed_step_id_and_text_alone(oracle):
    with oracle(curriculum__start=0.5) as made:

        def labels(queries=64, **told):
            """Of so many queries of the same text."""
            asked = {'queries': ['Where is Rome'] * queries, 'topk': 1, 'golden_answers': [['Italy']] * queries}
            return ['Italy' in each[0] for each in texts(made, **asked, **told)]

        names = list(range(64))
        first = labels(id=names)
        assert 10 < sum(first) < 54 and first == labels(id=names) and first[::-1] == labels(id=names[::-1])
        assert first[5:6] == labels(1, id=names[5:6])
        assert labels(id=names, seed=1) != first != labels(id=names, step=1)
        assert len(set(labels())) == 1


def test_the_simulator_is_told_what_the_request_tells():
    writer = FakeWriter('Doc 1: Rome is in Italy\nDoc 2: so it is')
    with serving(written(configured(), writer)) as made:
        told = {'question': ['In which country is Rome?', None], 'golden_answers': [['Italy', 'it'], None]}
        assert texts(made, queries=['Rome', 'Oslo'], topk=2, **told) == [['Rome is in Italy', 'so it is']] * 2
        assert 'Query: Rome\nQuestion: In which country is Rome?\nAnswer: Italy\n' in writer.asked[0]
        assert 'Query: Oslo\nUseful documents:' in writer.asked[1]
        assert all('Write 2 ' in m and m.endswith('Useful documents:') for m in writer.asked)
        texts(made, queries=['Rome'], topk=2, golden_answers=[['Italy']], noise=1.0)
        assert writer.asked[2].endswith('Query: Rome\nNoisy documents:')  # it was taught noise without the answer


def test_a_search_that_fails_is_told_and_an_outage_is_an_error(capsys):
    with serving(written(configured(), FakeWriter(failure='timeout'))) as made:
        reply = post(made, queries=['a', 'b'])
        assert reply.json() == {'result': [[], []], 'failures': ['timeout', 'timeout']}
        assert '2 of 2 searches failed, one of them: timeout' in capsys.readouterr().err
        reply = post(made, queries=['a'] * 4)
        assert reply.status_code == 502 and '4 of 4 failed (4 timeout)' in reply.json()['detail']


class FailsForA(FakeWriter):
    def ask(self, handle, message, identity, system=None):
        self._said = ('', 'timeout') if 'Query: a' in message else ('Doc 1: so it is', '')
        super().ask(handle, message, identity, system)


def test_our_client_takes_a_search_that_failed_there_for_failed_and_the_others_of_its_request_for_found():
    with serving(written(configured(), FailsForA())) as made:
        client = open_search_engine(EngineConfig('search_r1', url=made.url))
        found, failed, other = client.search(['b', 'a', 'c'], 1)
        assert [d.text for d in (*found, *other)] == ['so it is'] * 2
        assert failed == SearchFailed('invalid', 'a search failed there: timeout')


def test_requests_of_one_moment_are_answered_together_and_others_in_turn():
    writer = FakeWriter('Doc 1: so it is')
    worker = written(configured(), writer).worker
    jobs = [
        worker.submit(worker.job(told, queries, 1))
        for told, queries in (
            ({}, ['a']),
            ({}, ['b', 'c']),
            ({'noise': 1.0}, ['d']),
            ({}, ['e']),
            ({}, ['f'] * 3),
        )
    ]
    jobs[3].gone = True  # its client has left
    worker.advance()
    assert [message.rpartition('Query: ')[2][0] for message in writer.asked] == ['a', 'b', 'c']
    worker.advance()
    worker.advance()
    assert [message.rpartition('Query: ')[2][0] for message in writer.asked[3:]] == ['d', 'f', 'f', 'f']
    assert [job.pieces.empty() for job in jobs] == [False, False, False, True, False] and not worker.busy
    assert [result.query.text for result in jobs[1].pieces.get()] == ['b', 'c']


def test_a_request_with_many_queries_is_one_request():
    writer = FakeWriter('Doc 1: so it is')
    worker = written(configured(), writer).worker
    worker._room = 2 * server.MOST_CONNECTIONS
    worker.submit(worker.job({}, ['a'] * server.MOST_CONNECTIONS, 1))
    writer.step = lambda: []  # it writes on
    worker.advance()
    assert worker.busy == 1
    worker.submit(worker.job({}, ['b'], 1))  # would be Refused if there were too many


def test_the_time_to_arrive_begins_with_the_first_byte_of_a_request(monkeypatch):
    """And not with the idle time before it; what has not arrived in time is refused."""
    timers = []

    class Timer:
        def __init__(self, seconds, hang_up):
            self.hang_up = hang_up

        def start(self):
            timers.append(self)

        def cancel(self):
            pass

    monkeypatch.setattr(server.threading, 'Timer', Timer)
    body = b'{"queries": ["a"], "topk": 1}'
    head = b'POST /retrieve HTTP/1.1\r\nContent-Length: %d\r\n\r\n' % len(body)
    made = written(configured(), FakeWriter('Doc 1: so it is'))
    with serving(made), socket.create_connection(('127.0.0.1', made.server_port)) as client:
        for i in range(2):
            time.sleep(0.1)
            assert len(timers) == i
            client.sendall(head)
            until(lambda i=i: len(timers) == i + 1)
            client.sendall(body)
            response = http.client.HTTPResponse(client)  # head and body may come apart
            response.begin()
            assert response.status == 200 and response.read()
        client.sendall(head + body[:5])
        until(lambda: len(timers) == 3)
        timers[-1].hang_up()
        assert client.recv(2**16).startswith(b'HTTP/1.1 408')


@pytest.mark.parametrize(
    ('told', 'detail'),
    [
        ({'topk': 4}, '"topk" may be 3 at most, config.simulator.documents, got 4'),
        ({'question': 'why'}, '"question" must be a list of texts or nulls, one for each of 2 queries'),
        ({'question': ['why']}, '"question" must be a list'),
        ({'golden_answers': [['a'], 'b']}, '"golden_answers" must be a list of lists of texts or nulls'),
        ({'id': [1.5, None]}, '"id" must be a list of texts or numbers'),
        ({'noise': 1.5}, '"noise" must be a probability'),
        ({'noise': float('nan')}, '"noise" must be a probability'),
        ({'noise': '0.5'}, '"noise" must be a probability'),
        ({'step': -1}, '"seed" and "step" must be whole numbers'),
        ({'seed': 10**30}, '"seed" and "step" must be whole numbers'),
        ({'seed': True}, '"seed" and "step" must be whole numbers'),
    ],
)
def test_what_is_told_wrong_is_said(told, detail):
    cfg = configured()
    made = serve_search.Simulated(cfg, None, 4)
    with pytest.raises(ValueError, match=re.escape(detail)):
        made.job(told, ['a', 'b'], told.get('topk', 3))


def test_halves_of_characters_reach_no_tokenizer():
    writer = FakeWriter('Doc 1: so it is')
    with serving(written(configured(), writer)) as made:
        data = b'{"queries": ["a \\ud800 b"], "topk": 1}'
        assert requests.post(made.url, data=data, timeout=10).status_code == 200
        assert 'Query: a ? b' in writer.asked[0]
        assert requests.post(f'{made.url}?noise=x', data=data, timeout=10).status_code == 422


def test_a_wrong_address_leaves_nothing_of_its_request_on_the_connection():
    with serving(written(configured(), FakeWriter('Doc 1: so it is'))) as made:
        client = http.client.HTTPConnection('127.0.0.1', made.server_port, timeout=10)
        for path, status in (('/retrieve?noise=x', 422), ('/retrieve', 200)):
            client.request('POST', path, json.dumps({'queries': ['a'], 'topk': 1}))
            reply = client.getresponse()
            assert (reply.status, reply.headers['Content-Type']) == (status, 'application/json')
            json.loads(reply.read())


def test_a_request_has_a_deadline_and_is_given_up_when_its_client_leaves(monkeypatch):
    """Of a simulator that never answers."""
    monkeypatch.setattr(server, 'LOOK_S', 0.01)
    made = written(configured(serve__timeout_s=0.05), FakeWriter())
    threading.Thread(target=made.serve_forever, daemon=True).start()
    reply = post(made, queries=['a'])
    assert reply.status_code == 503 and reply.json()['detail'].endswith('config.serve.timeout_s = 0.05 seconds')
    assert made.worker._waiting.popleft().gone
    made.worker._cfg = configured()
    with socket.create_connection(('127.0.0.1', made.server_port)) as client:
        client.sendall(b'POST /retrieve HTTP/1.1\r\nContent-Length: 18\r\n\r\n{"queries": ["a"]}')
        until(lambda: made.worker._waiting)
        assert not made.worker._waiting[0].gone
    until(lambda: made.worker._waiting[0].gone)
    made.shutdown()
    made.server_close()


def test_connections_for_which_no_thread_could_be_started_use_up_none(monkeypatch, capsys):
    with serving(written(configured(), FakeWriter('Doc 1: so it is'))) as made:
        most = made._free._value

        def refuse(*_):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as full:
            full.setattr(http.server.ThreadingHTTPServer, 'process_request', refuse)
            for _ in range(3):
                with pytest.raises(requests.ConnectionError):
                    post(made, queries=['a'])
        assert "can't start new thread" in capsys.readouterr().err
        assert post(made, queries=['a']).status_code == 200
        until(lambda: made._free._value == most)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_model_of_ours_answers():
    """One of random weights, whose documents cannot be read."""
    tiny = {'simulator__model': 'tiny', 'simulator__adapter': '', 'simulator__prompt_tokens': 512}
    small = {'simulator__max_tokens': 16, 'simulator__attempts': 2, 'serve__slots': 2}
    with serving(serve_search.open_server(configured(**tiny, **small))) as made:
        assert made.worker._room == 2
        reply = post(made, queries=['a', 'b', 'c'])
        assert reply.json() == {'result': [[], [], []], 'failures': ['count'] * 3}


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'simulator__kind': 'none'}, "config.simulator.kind = 'none' finds nothing"),
        ({'simulator__remember': 'x'}, 'config.simulator.remember is for trainings'),
        ({'curriculum__kind': 'adaptive'}, 'needs rewards, which requests do not have'),
        ({'serve__port': 2**16}, 'port must be from 0 to 65535'),
        ({'serve__steps': 0}, 'steps must be positive'),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(fields, message):
    with pytest.raises(ValueError, match=message):
        configured(**fields)


def test_an_address_that_is_taken_is_told():
    first = written(configured(), None)
    with pytest.raises(OSError, match=r'cannot serve at 127.0.0.1:\d+ \(.*\); set config.serve.host and'):
        written(configured(serve__port=first.server_port), None)
    first.server_close()


DOCUMENTED = re.findall(
    r'^python -m (launch\.serve_search --config .*?)(?: +#.*)?$', (ROOT / 'docs' / 'serve.md').read_text(), re.M
)
SMALL = ['--config.serve.port=0', '--config.serve.corpus=toy', '--config.simulator.model=tiny']
SMALL += ['--config.simulator.adapter=', '--config.simulator.prompt_tokens=1024', '--config.simulator.max_tokens=16']


@pytest.mark.thorough
@pytest.mark.parametrize('command', DOCUMENTED)
def test_the_documented_commands_serve_until_they_are_interrupted(command):
    with started([*command.split(), *SMALL], r' at (http://\S+)') as (program, address):
        found = requests.post(address, json=STOCK | {'noise': 0.5}, timeout=300).json()
        assert len(found['result']) == 2 and ('failures' in found) == (':simulator' in command)
        program.send_signal(signal.SIGINT)
        assert program.communicate(timeout=120)[1].count('\n') <= 1 and program.returncode == 130  # no traceback
