"""Calls to the outside: a server that fails in every way loses nothing, and a second run asks for the rest only."""

import collections
import fcntl
import json
import threading

import jax
import pytest
from servers import Server

from zerosearch_jax import sharding
from zerosearch_jax.search import journal
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.search import OutsideFailed
from zerosearch_jax.simulator.judge import judge, verdict
from zerosearch_jax.simulator.writers import ENDPOINT_KEY, EndpointConfig, EndpointWriter


def says(text):
    message = {'role': 'assistant', 'content': text}
    return json.dumps(
        {
            'id': 'x',
            'object': 'chat.completion',
            'created': 0,
            'model': 'm',
            'choices': [{'index': 0, 'finish_reason': 'stop', 'message': message}],
        }
    )


def writer(server, log=None, retries=0, timeout_s=3.0):
    cfg = EndpointConfig(url=server.url, retries=retries, timeout_s=timeout_s, concurrency=4)
    return EndpointWriter(cfg, 'm', max_tokens=5, temperature=0.5, log=log or Journal())


def write(server, messages, **options):
    made = writer(server, **options)
    for number, message in enumerate(messages):
        made.ask(number, message, ('test', number))
    assert made.active == len(messages)
    found = made.step()
    assert made.active == 0
    assert [w.handle for w in found] == list(range(len(messages)))
    return [w.text or w.failure for w in found]


FAILURES = {
    'hang': (None, 'timeout'),
    'busy': (429, 'rate_limit'),
    'broken': (500, 'status_500'),
    'absent': (404, 'status_404'),
    'garbage': ('<html>', 'invalid'),
    'empty': ('{}', 'invalid'),
    'parts': (says(['a']), 'invalid'),
    'null': (says(None), 'empty'),
    'thoughts': (says('<think>Yes'), 'empty'),
}


def test_answers_keep_their_order_and_every_failure_has_its_name():
    server = Server(lambda message: FAILURES[message][0] if message in FAILURES else says(f're: {message}'))
    messages = ['a', *FAILURES, 'b']
    expected = ['re: a', *(failure for _, failure in FAILURES.values()), 're: b']
    assert write(server, messages) == expected


def test_nobody_there_is_a_failure_too():
    server = Server(lambda message: says('x'))
    server.shutdown()
    server.server_close()
    assert write(server, ['a']) == ['connection']


def test_what_passes_is_tried_again_a_bounded_number_of_times():
    seen = collections.Counter()

    def flaky(message):
        seen[message] += 1
        return 500 if seen[message] < 3 or message == 'never' else says('at last')

    server = Server(flaky)
    assert write(server, ['once', 'never'], retries=2) == ['at last', 'status_500']
    assert seen == {'once': 3, 'never': 3}


def test_the_key_comes_from_the_environment_and_the_seed_from_the_identity(monkeypatch):
    monkeypatch.setenv(ENDPOINT_KEY, 'secret')
    server = Server(lambda message: says('x'))
    write(server, ['a', 'a'])
    write(server, ['a'])
    assert set(server.keys) == {'Bearer secret'}
    seeds = [request['seed'] for request in server.requests]
    assert len(set(seeds)) == 2  # the two differ, and asked again one is as before
    assert {request['max_tokens'] for request in server.requests} == {5}


def test_template_arguments_go_to_the_endpoint_where_there_are_any():
    server, cfg = Server(lambda message: says('x')), {'max_tokens': 5, 'temperature': 0.5, 'log': Journal()}
    for arguments in ({'enable_thinking': False}, {}):
        made = EndpointWriter(EndpointConfig(url=server.url), 'm', **cfg, arguments=arguments)
        made.ask(0, str(arguments), (0,))
        made.step()
    first, second = server.requests
    assert first['chat_template_kwargs'] == {'enable_thinking': False} and 'chat_template_kwargs' not in second


def test_an_address_is_needed():
    with pytest.raises(ValueError, match=r'config.endpoint.url'):
        EndpointWriter(EndpointConfig(), 'm', max_tokens=5, temperature=0.0, log=Journal())


def test_a_log_answers_what_was_asked_before_and_failures_are_asked_for_again(tmp_path):
    path, working = tmp_path / 'calls.log', set('ac')
    server = Server(lambda message: says(f're: {message}') if message in working else 500)
    assert write(server, 'abcd', log=Journal(path)) == ['re: a', 'status_500', 're: c', 'status_500']
    working |= set('bd')
    server.requests.clear()
    assert write(server, 'abcd', log=Journal(path)) == ['re: a', 're: b', 're: c', 're: d']
    assert sorted(r['messages'][0]['content'] for r in server.requests) == ['b', 'd']
    server.requests.clear()
    assert write(server, 'abcd', log=Journal(path)) == ['re: a', 're: b', 're: c', 're: d']
    assert not server.requests


def test_results_are_kept_one_by_one_so_that_a_crash_loses_none(tmp_path):
    def ask(positions):
        yield 0, 'first', True
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.call_once(Journal(tmp_path / 'log'), ['a', 'b'], ask)
    assert Journal(tmp_path / 'log').get('a') == 'first'


def test_equal_keys_are_asked_once():
    asked = []

    def ask(positions):
        asked.extend(positions)
        return ((i, i, False) for i in positions)

    assert journal.call_once(Journal(), ['x', 'y', 'x'], ask) == [0, 1, 0]
    assert asked == [0, 1]


@pytest.mark.parametrize('torn', ['{"key": "b", "val', '{"key": "b", "value": 2}'])
def test_a_last_line_that_a_crash_tore_does_no_harm(tmp_path, torn):
    path = tmp_path / 'log'
    Journal(path).put('a', 1)
    path.write_text(path.read_text() + torn)
    log = Journal(path)
    assert (log.get('a'), log.get('b')) == (1, 2 if torn.endswith('}') else None)
    log.put('c', 3)
    assert [Journal(path).get(key) for key in 'ac'] == [1, 3]


def test_a_file_that_is_no_log_is_refused(tmp_path):
    (tmp_path / 'x').write_text('hello\nworld\n')
    with pytest.raises(ValueError, match=r'x:1: not a line of this log'):
        Journal(tmp_path / 'x')


def test_a_file_that_process_0_refuses_is_told_to_all(tmp_path, monkeypatch):
    (tmp_path / 'x').write_text('hello\nworld\n')
    sent = []
    monkeypatch.setattr(sharding, 'from_first_process', lambda value: sent.append(value) or value)
    with pytest.raises(ValueError, match='not a line of this log'):
        Journal(tmp_path / 'x')
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    monkeypatch.setattr(sharding, 'from_first_process', lambda _: sent[0])
    with pytest.raises(OSError, match=r'process 0: .*x:1: not a line of this log'):
        Journal(tmp_path / 'x')


def test_a_file_is_appended_to_and_repaired_by_one_process_at_a_time(tmp_path):
    path = tmp_path / 'shared'
    mine = Journal(path)
    mine.put('a', 1)
    for work in (lambda: mine.put('b', 2), lambda: Journal(path)):
        with open(path) as file:  # another process has it
            fcntl.flock(file, fcntl.LOCK_EX)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(0.1)
            assert thread.is_alive()
        thread.join(10)
        assert not thread.is_alive()
    assert [Journal(path).get(key) for key in 'ab'] == [1, 2]


# ---------------------------------------------------------------- judge


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('Yes', True), ('no.', False), ('**No**, they', False), ('Well, yes', True), ('Yesterday', None), ('', None)],
)
def test_verdicts(text, expected):
    assert verdict(text) is expected


def test_a_judge_that_fails_loses_nothing_and_resumes(tmp_path):
    replies = {'q0': says('Yes'), 'q1': None, 'q2': 500, 'q3': '<html>', 'q4': 429, 'q5': says('No'), 'q6': says('Hm')}
    server = Server(lambda message: replies[next(q for q in replies if f'\n{q}\n' in message)])
    searches = [(q, [f'document of {q}']) for q in replies]
    path, done = tmp_path / 'verdicts.log', []
    labels = judge(searches, writer(server), Journal(path), name='m', progress=done.append)
    assert labels == ['useful', 'timeout', 'status_500', 'invalid', 'rate_limit', 'noisy', 'unclear']
    assert sum(done) == 7
    replies.update(dict.fromkeys(('q1', 'q2', 'q3', 'q4'), says('no')))
    server.requests.clear()
    labels = judge(searches, writer(server), Journal(path), name='m')
    assert labels == ['useful', 'noisy', 'noisy', 'noisy', 'noisy', 'noisy', 'unclear']
    assert len(server.requests) == 4
    server.requests.clear()
    judge(searches[:1], writer(server), Journal(path), name='another judge')
    assert len(server.requests) == 1


def test_a_judge_that_is_dead_ends_the_job_in_its_words_and_keeps_what_it_judged_before(tmp_path):
    replies = {f'q{i}': says('Yes') if i < 2 else (503, '{"error": "model is loading"}') for i in range(8)}
    server = Server(lambda message: replies[next(q for q in replies if f'\n{q}\n' in message)])
    searches, path = [(q, [f'document of {q}']) for q in replies], tmp_path / 'verdicts.log'
    judge(searches[:2], writer(server), Journal(path), name='m')
    with pytest.raises(OutsideFailed, match=r'judge: 6 of 6 failed \(6 status_503\); .* says: model is loading'):
        judge(searches, writer(server), Journal(path), name='m')
    replies.update(dict.fromkeys(replies, says('no')))
    assert judge(searches, writer(server), Journal(path), name='m') == ['useful'] * 2 + ['noisy'] * 6


def test_a_judges_thoughts_are_no_verdict_and_null_is_a_failure_that_is_asked_again(tmp_path):
    replies = {'q0': says('<think>Perhaps yes?</think>No'), 'q1': says(None), 'q2': says('<think>Yes')}
    server = Server(lambda message: replies[next(q for q in replies if f'\n{q}\n' in message)])
    searches = [(q, [f'document of {q}']) for q in replies]

    def labels():
        return judge(searches, writer(server, Journal(tmp_path / 'calls.log')), Journal(tmp_path / 'log'), name='m')

    assert labels() == ['noisy', 'empty', 'empty']
    replies.update(q1=says('yes'), q2=says('<think>Hm</think>no'))
    assert labels() == ['noisy', 'useful', 'noisy']


def test_an_error_while_asking_loses_nothing_that_came_before(tmp_path):
    def ask(positions):
        yield positions[0], 'first', True
        raise OSError('no more money')

    with pytest.raises(OSError, match='no more money'):
        journal.call_once(Journal(tmp_path / 'log'), ['a', 'b'], ask)
    assert Journal(tmp_path / 'log').get('a') == 'first'
    assert journal.call_once(Journal(tmp_path / 'log'), ['a', 'b'], lambda p: iter([(1, 'second', True)])) == [
        'first',
        'second',
    ]


def test_a_run_that_is_resumed_sees_its_failures_again(tmp_path):
    broken = [1]
    server = Server(lambda message: 500 if broken else says('x'))

    def ask(committed):
        cfg = EndpointConfig(url=server.url, retries=0, timeout_s=5.0)
        log = Journal(tmp_path / 'calls.log')
        run = EndpointWriter(cfg, 'm', max_tokens=5, temperature=0.5, log=log, keep_failures=True)
        run.ask('h', 'a', (0, 1))
        (written,) = run.step()
        if committed:
            log.commit()
        return written.failure

    assert ask(committed=False) == ask(committed=True) == 'status_500'  # a step that is cut off asks again
    assert len(server.requests) == 2
    broken.clear()
    assert ask(committed=True) == 'status_500' and len(server.requests) == 2
