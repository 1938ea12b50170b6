"""Search over HTTP: the documented bytes, our server with our client, and engines that fail in every way."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest
import requests
from servers import Server as ScriptedServer

from zerosearch_jax.data.rows import Passage, Question
from zerosearch_jax.search import remote
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.remote import EngineConfig, RemoteSearch, SpendingCapReached, open_search_engine
from zerosearch_jax.search.search import Document, Query, SearchFailed, engine_search
from zerosearch_jax.tools import serve_search
from zerosearch_jax.tools import server as tools_server
from zerosearch_jax.tools.serve_search import ServeConfig, Server

PASSAGES = [Passage(f'p{i}', f'Title {i}', f'text of word{i} and common words') for i in range(30)]


@pytest.fixture(scope='module')
def server():
    made = Server(ServeConfig(port=0, documents=2), BM25(PASSAGES).search)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


def post(server, body, path='/retrieve'):
    url = server.url.replace('/retrieve', path)
    return requests.post(url, **({'json': body} if not isinstance(body, bytes) else {'data': body}), timeout=10)


# ---------------------------------------------------------------- server


def test_a_stock_request_is_answered_in_the_documented_form(server):
    reply = post(server, {'queries': ['word3', 'word7 common'], 'topk': 1, 'return_scores': True})
    assert reply.status_code == 200
    (first,), (second,) = reply.json()['result']
    assert first['document'] == {'id': 'p3', 'contents': '"Title 3"\ntext of word3 and common words'}
    assert first['score'] > 0 and second['document']['id'] == 'p7'
    plain = post(server, {'queries': ['word3'], 'topk': 1}).json()['result']
    assert plain == [[first['document']]]
    assert len(post(server, {'queries': ['common'], 'topk': None}).json()['result'][0]) == 2
    assert post(server, {'queries': ['absent']}).json() == {'result': [[]]}


@pytest.mark.parametrize(
    ('body', 'status', 'detail'),
    [
        (b'{"queries": ["a"', 422, 'not JSON'),
        (b'[' * 100_000, 422, 'not JSON'),
        ([], 422, '"queries" must be'),
        ({'queries': 'a'}, 422, '"queries" must be'),
        ({'queries': [1]}, 422, '"queries" must be'),
        ({'queries': ['a'], 'topk': 0}, 422, '"topk" must be'),
        ({'queries': ['a'], 'topk': True}, 422, '"topk" must be'),
        ({'queries': ['a'], 'topk': 100_000}, 422, '"queries" times "topk" may be 12288 at most, got 1 x 100000'),
        ({'queries': ['a'] * 100_000, 'topk': 1}, 422, '"queries" may be 4096 at most, got 100000'),
        ({'queries': ['a'], 'topk': 10**4000}, 422, 'at most'),
        ({'queries': ['a' * 10_001]}, 422, 'a query may have 10000 characters at most, got 10001'),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(server, body, status, detail):
    reply = post(server, body)
    assert reply.status_code == status
    assert detail in reply.json()['detail']
    assert post(server, {'queries': ['word1']}).status_code == 200  # it goes on


def test_other_paths_and_endless_requests_are_refused(server):
    assert post(server, {}, '/search').status_code == 404
    reply = requests.post(server.url, data=b'', headers={'Content-Length': str(10**12)}, timeout=10)
    assert reply.status_code == 422


@pytest.mark.parametrize('head', [b'', b'POST /retrieve HTTP/1.1\r\nContent-Length: 100\r\n\r\n{'])
def test_200_connections_that_send_nothing_hold_few_threads_and_nobody_up(head, monkeypatch):
    monkeypatch.setattr(tools_server, 'MOST_CONNECTIONS', 100)
    monkeypatch.setattr(serve_search.Handler, 'timeout', 0.3)
    before = threading.active_count()
    made = Server(ServeConfig(port=0), BM25(PASSAGES).search)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    silent = [socket.create_connection(('127.0.0.1', made.server_port)) for _ in range(200)]
    for each in silent:
        each.sendall(head)
    assert post(made, {'queries': ['word3']}).status_code == 200  # when those before it were hung up on
    # a connection has a thread and a timer, and makes room for the next a moment before they end
    assert threading.active_count() < before + 1.5 * 200
    for each in silent:
        each.close()
    made.shutdown()


def test_a_request_that_arrives_a_byte_at_a_time_ends(monkeypatch):
    monkeypatch.setattr(serve_search.Handler, 'timeout', 0.3)
    made = Server(ServeConfig(port=0), BM25(PASSAGES).search)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    with socket.create_connection(('127.0.0.1', made.server_port), timeout=5) as client:
        start = time.monotonic()
        client.sendall(b'POST /retrieve HTTP/1.1\r\nX: ')
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < 3:
                client.sendall(b'y')
                time.sleep(0.05)
        assert time.monotonic() - start < 2
    made.shutdown()


def test_two_hundred_requests_at_once_are_all_answered(server):
    engine = BM25(PASSAGES)

    def one(i):
        return post(server, {'queries': [f'word{i % 30}'], 'topk': 2, 'return_scores': True}).json()['result']

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        replies = list(pool.map(one, range(200)))
    for i, ((*found,),) in enumerate(replies):
        expected = engine.search([f'word{i % 30}'], 2)[0]
        assert [item['document']['id'] for item in found] == [d.id for d in expected]


def test_an_index_on_disk_is_read_by_many_threads_and_belongs_to_its_corpus(tmp_path):
    memory, mapped = BM25(PASSAGES), BM25.open(PASSAGES, str(tmp_path / 'index'))
    assert list(BM25.open(PASSAGES, str(tmp_path / 'index')).search(['word1'], 1)[0]) == memory.search(['word1'], 1)[0]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: mapped.search([f'word{i % 30} common'], 5)[0], range(300)))
    assert found == [memory.search([f'word{i % 30} common'], 5)[0] for i in range(300)]
    with pytest.raises(ValueError, match='another corpus'):
        BM25.open(PASSAGES[1:], str(tmp_path / 'index'))


def test_our_client_reads_our_server(server):
    client = open_search_engine(EngineConfig('search_r1', url=server.url), log=Journal())
    queries = [f'word{i}' for i in range(30)] + ['absent']
    assert client.search(queries, 2) == BM25(PASSAGES).search(queries, 2)


# ---------------------------------------------------------------- client


def test_a_title_keeps_the_quotation_marks_of_its_own():
    (found,) = reading(['{"result": [[{"contents": "\\"\\"Heroes\\" (song)\\"\\nby David Bowie"}]]}'])[0][0]
    assert (found.title, found.text) == ('"Heroes" (song)', 'by David Bowie')


def reading(answers, log=None, kind='search_r1', queries=('q',), **cfg):
    """Results of a client whose server gives these replies in turn, and the requests it saw."""
    replies = iter(answers)
    server = ScriptedServer(lambda _: next(replies))
    limits = {'timeout_s': 0.5, 'retries': 0, 'pause_s': 0.01, 'concurrency': 1} | cfg
    found = open_search_engine(EngineConfig(kind, url=server.url, **limits), log=log or Journal()).search(
        list(queries), 2
    )
    return found, server.requests


SCORED = '{"result": [[{"document": {"id": "7", "contents": "\\"A B\\"\\nThe text.\\nMore."}, "score": 1.5}]]}'
PLAIN = '{"result": [[{"id": 7, "contents": "\\"A B\\"\\nThe text.\\nMore."}]]}'


def test_a_key_in_the_address_is_not_in_searches_log(tmp_path):
    server = ScriptedServer(lambda _: SCORED)
    path = tmp_path / 'searches.log'
    for key in ('one', 'two'):  # another key is the same engine
        cfg = EngineConfig('search_r1', url=f'{server.url}?api_key={key}')
        open_search_engine(cfg, log=Journal(path)).search(['q'], 1)
    assert len(server.requests) == 1
    assert 'one' not in path.read_text() and 'api_key=***' in path.read_text()


def test_recorded_replies_of_a_stock_retriever_are_read():
    (scored,), requests_seen = reading([SCORED])
    assert scored == [Document('A B', 'The text.\nMore.', '7')] and scored[0].score == 1.5
    assert requests_seen == [{'queries': ['q'], 'topk': 2, 'return_scores': True}]
    (plain,), _ = reading([PLAIN])
    assert plain == [Document('A B', 'The text.\nMore.', '7')]
    (wiki,), requests_seen = reading(
        ['[{"text": " one "}, {"text": "two"}, {"text": "three"}]'], kind='zerosearch_wiki'
    )
    assert wiki == [Document('', 'one'), Document('', 'two')]
    assert requests_seen == [{'query': 'q', 'top_k': 2}]


@pytest.mark.parametrize(
    ('reply', 'kind'),
    [
        (None, 'timeout'),
        (429, 'rate_limit'),
        (500, 'status_500'),
        (404, 'status_404'),
        ('{"result": [[', 'invalid'),
        ('{"result": []}', 'invalid'),
        ('{"result": [[{"document": {}, "score": 1}]]}', 'invalid'),
        ('{"result": [[{"document": {"text": "x"}, "score": "high"}]]}', 'invalid'),
        ('[]', 'invalid'),
        ('null', 'invalid'),
    ],
)
def test_every_failure_has_its_name(reply, kind):
    (found,), _ = reading([reply])
    assert isinstance(found, SearchFailed) and found.kind == kind


@pytest.mark.parametrize(
    ('reply', 'documents', 'texts'),
    [
        ('{"result": [[{"document": {"contents": "\\"A\\"\\nb"}}]]}', [Document('A', 'b')], ['A. b']),
        ('{"result": [[{"document": {"contents": "\\"A\\"\\nb"}, "score": null}]]}', [Document('A', 'b')], ['A. b']),
        ('{"result": [[{"document": "one\\ntwo"}, "three"]]}', [Document('', 'one\ntwo'), Document('', 'three')], None),
        ('{"result": [[{"document": {"contents": "one line"}}]]}', [Document('', 'one line')], ['one line']),
        ('{"result": [[{"document": {"title": null, "text": "x"}}]]}', [Document('', 'x')], ['x']),
        ('{"result": [[{"document": {"title": "A", "text": ""}}]]}', [Document('A', '')], ['A']),
        ('{"result": [[{"document": {"title": "A", "contents": "b"}}]]}', [Document('A', 'b')], ['A. b']),
        ('{"result": [null]}', [], []),
    ],
    ids=['no score', 'score null', 'bare string', 'no title', 'title null', 'no text', 'title beside', 'result null'],
)
def test_a_search_r1_style_reply_is_accepted_without_stray_dots(reply, documents, texts):
    (found,), _ = reading([reply])
    assert found == documents
    assert texts is None or [document.as_text for document in found] == texts


def test_fields_map_another_json_schema():
    elastic = '{"hits": {"hits": [{"_source": {"headline": "A", "body": "b"}, "_score": 2.5}]}}'
    names = {'query': 'q', 'topk': 'size', 'scores': '', 'results': 'hits.hits', 'document': '_source'}
    names |= {'title': 'headline', 'text': 'body', 'score': '_score'}
    (found,), seen = reading([elastic], fields=tuple(names.items()))
    assert found == [Document('A', 'b')] and found[0].score == 2.5
    assert seen == [{'q': 'q', 'size': 2}]
    with pytest.raises(ValueError, match=r"fields has no 'headline'; it has query, .*, contents, score"):
        EngineConfig('search_r1', fields=(('headline', 'title'),))
    with pytest.raises(ValueError, match=r"fields are for a server, .*; got 'bm25'"):
        EngineConfig(fields=(('title', 'headline'),))


@pytest.mark.parametrize(
    ('returned', 'shown'),
    [
        ([[{'title': 'A', 'text': 'b'}]], r"\[\[{'title': 'A', 'text': 'b'}\]\]"),
        ([Document('A', 'b')], r"\[Document\(title='A'.*"),
        (['b'], r"\['b'\]"),
        (None, 'None'),
        ([[Document('A', None)]], r"\[\[Document\(title='A', text=None.*"),
    ],
)
def test_an_own_engine_that_returns_dicts_is_told_what_is_wanted_in_one_line(returned, shown, monkeypatch):
    monkeypatch.setattr(time, 'own_engine', lambda cfg, queries, k: returned, raising=False)
    cfg = EngineConfig('time.own_engine')
    line = rf'time.own_engine must return for each query a list of search.Document\(title, text\); it returned {shown}$'
    with pytest.raises(ValueError, match=line):
        open_search_engine(cfg).search(['q'], 2)
    with pytest.raises(ValueError, match=line):
        remote.probe(cfg)


def test_an_own_engine_may_give_numbers_of_numpy(tmp_path, monkeypatch):
    given = Document('A', 'b', np.int64(3), np.float32(0.5))
    monkeypatch.setattr(time, 'own_engine', lambda cfg, queries, k: ((given,) for _ in queries), raising=False)
    for _ in range(2):
        engine = open_search_engine(EngineConfig('time.own_engine'), log=Journal(tmp_path / 'searches.log'))
        ((found,),) = engine.search(['q'], 2)
        assert (found.id, found.score) == ('3', 0.5)


def test_what_may_pass_is_tried_again_and_what_will_not_is_not():
    (found,), seen = reading([500, 429, SCORED], retries=2)
    assert found[0].id == '7' and len(seen) == 3
    (found,), seen = reading([404, SCORED], retries=2)
    assert found == SearchFailed('status_404', 'no') and len(seen) == 1


def recording(broken=()):
    """A fetch of one document a query, but of those in `broken`; what it was asked for; and `broken`."""
    asked, broken = [], set(broken)

    def fetch(queries, k):
        asked.extend(queries)
        if queries[0] in broken:
            raise remote.RequestFailed('status_500')
        return [[Document('', queries[0])]]

    return fetch, asked, broken


def test_a_query_is_asked_once_and_a_failure_again(tmp_path):
    path, (fetch, asked, broken) = tmp_path / 'searches.log', recording({'b'})
    assert engine(fetch, Journal(path)).search(['a', 'b'], 2) == [[Document('', 'a')], SearchFailed('status_500')]
    broken.clear()
    for _ in range(2):
        assert engine(fetch, Journal(path)).search(['a', 'b'], 2) == [[Document('', 'a')], [Document('', 'b')]]
    assert sorted(asked) == ['a', 'b', 'b']


def engine(fetch, log=None, **cfg):
    return RemoteSearch(fetch, 1, 'e', EngineConfig(**{'retries': 0, 'pause_s': 0.0} | cfg), log or Journal())


def test_one_query_that_a_server_does_not_take_fails_no_other_of_its_request():
    requests = []

    def fetch(queries, k):
        requests.append(len(queries))
        if '?' in queries:
            raise remote.RequestFailed('status_500', True)
        return [[Document('', query)] for query in queries]

    asked = [*'abcdef', '?', *'ghijklmn']
    cfg = EngineConfig(retries=2, pause_s=0.0)
    found = RemoteSearch(fetch, 64, 'e', cfg, Journal()).search(asked, 1)
    assert found == [SearchFailed('status_500') if q == '?' else [Document('', q)] for q in asked]
    assert requests[:4] == [15, 15, 15, 7] and len(requests) < 12  # further attempts are of the whole alone


@pytest.mark.parametrize('own', [lambda queries, k: {}['oops'], lambda queries: [], lambda queries, k: 1 / 0])
def test_an_own_engine_that_raises_is_one_line_with_its_name(own):
    cfg = EngineConfig('builtins.len', retries=0)
    with pytest.raises(ValueError, match=r'^builtins\.len failed: \w+Error: '):
        RemoteSearch(own, 64, 'e', cfg, Journal()).search(['a'], 1)


def test_spending_stops_before_the_cap_and_keeps_what_was_paid(tmp_path):
    fetch, asked, _ = recording()
    limits = {'query_price': 0.01, 'spending_cap': 0.025, 'concurrency': 1}
    paid = engine(fetch, Journal(tmp_path / 'log'), **limits)
    with pytest.raises(SpendingCapReached, match=r'\$0.02 were spent .* cap of \$0.03'):
        paid.search(list('abcd'), 1)
    assert len(asked) == 2 and paid.spent == pytest.approx(0.02)
    resumed = engine(fetch, Journal(tmp_path / 'log'), **limits | {'spending_cap': 1.0})
    assert [d[0].text for d in resumed.search(list('abcd'), 1)] == list('abcd')
    assert sorted(asked) == list('abcd') and resumed.spent == pytest.approx(0.04)


def test_an_engine_that_breaks_loses_no_other_answer(tmp_path):
    def fetch(queries, k):
        if queries == ['b']:
            raise OSError('not foreseen')
        asked.append(queries[0])
        return [[Document('', queries[0])]]

    asked, path = [], tmp_path / 'log'
    with pytest.raises(OSError, match='not foreseen'):
        engine(fetch, Journal(path), concurrency=1).search(list('abcd'), 1)
    assert engine(fetch, Journal(path)).search(list('acd'), 1) == [[Document('', c)] for c in 'acd']
    assert asked == list('acd')


def test_a_cap_needs_a_price():
    with pytest.raises(ValueError, match='query_price'):
        EngineConfig('serpapi', spending_cap=5.0)


def test_within_a_moment_of_a_run_a_failure_stays_one_and_a_success_is_never_asked_again(tmp_path):
    path, (fetch, asked, broken) = tmp_path / 'searches.log', recording({'b'})
    log = Journal(path)
    first = engine(fetch, log).search(['a', 'b', 'b'], 2, 'step 1')
    log.commit()
    assert first == [[Document('', 'a')], SearchFailed('status_500'), SearchFailed('status_500')]
    broken.clear()
    resumed = engine(fetch, Journal(path))
    assert resumed.search(['a', 'b', 'b'], 2, 'step 1') == first  # the run sees what it saw before
    assert asked == ['a', 'b'] or asked == ['b', 'a']
    assert resumed.search(['b'], 2, 'step 2') == [[Document('', 'b')]]
    assert resumed.search(['b'], 2, 'step 3') == [[Document('', 'b')]]
    assert len(asked) == 3


def test_no_more_requests_at_once_and_a_second_than_allowed():
    running, most, starts = [], [], []

    def fetch(queries, k):
        running.append(1)
        starts.append(time.monotonic())
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return [[]]

    engine(fetch, concurrency=3).search([str(i) for i in range(12)], 1)
    assert 1 < max(most) <= 3
    starts.clear()
    engine(fetch, concurrency=8, per_second=50).search([str(i) for i in range(6)], 1)
    assert starts[-1] - starts[0] >= 5 / 50 - 0.005


def test_a_failed_search_of_a_real_engine_is_a_typed_result():
    source = engine_search(lambda queries, k: [[Document('T', 'x')], SearchFailed('timeout')], 2)
    question = Question('q', 'x', ('y',))
    for i in range(2):
        source.submit(Query(i, question, 0, 0, 'z'))
    good, bad = source.step()
    assert (good.documents, good.failure) == (('T. x',), '')
    assert (bad.documents, bad.failure) == ((), 'timeout')


# ---------------------------------------------------------------- SerpAPI


@pytest.fixture
def google(monkeypatch):
    """SerpAPI in this process: (a client of it, the replies that it gives next, the requests that it saw)."""
    monkeypatch.setenv(remote.SERPAPI_KEY, 'a-secret')
    replies = []
    server = ScriptedServer(lambda path: replies.pop(0))
    monkeypatch.setattr(remote, 'SERPAPI', server.url)
    return open_search_engine(EngineConfig('serpapi', retries=0, timeout_s=0.5)), replies, server.requests


def test_serpapi_is_asked_for_organic_results(google):
    client, replies, seen = google
    results = [{'title': 'A', 'snippet': 'b', 'link': 'c'}, {'title': 'no snippet'}, {'title': None, 'snippet': 'd'}]
    replies[:] = [json.dumps({'organic_results': results})]
    assert client.search(['hamlet & co'], 5) == [[Document('A', 'b', 'c'), Document('', 'd', '')]]
    assert seen == ['/v1/search.json?q=hamlet+%26+co&num=5&engine=google&api_key=a-secret']


def test_serpapi_needs_a_key(monkeypatch):
    monkeypatch.delenv(remote.SERPAPI_KEY, raising=False)
    with pytest.raises(ValueError, match=remote.SERPAPI_KEY):
        open_search_engine(EngineConfig('serpapi'))


@pytest.mark.parametrize(
    ('reply', 'expected'),
    [
        ('{"error": "Your account has run out of searches."}', ('refused', 'Your account has run out of searches.')),
        ('{"error": "Google hasn\'t returned any results for this query."}', []),
        ('{"organic_results": null}', []),
        ('{"search_metadata": {"status": "Success"}}', []),
        ('{"organic_results": {"a": 1}}', ('invalid', 'the reply is an object of organic_results')),
        ('[]', ('invalid', 'the reply is a list')),
        ('{"organic', ('invalid', '{"organic')),
        (429, ('rate_limit', 'no')),
        (500, ('status_500', 'no')),
        ((401, '{"error": "Invalid API key a-secret, see https://x?api_key=a-secret"}'), ('status_401', '***')),
        ((302, '', {'Location': 'http://elsewhere/?api_key=a-secret'}), ('redirect', '***')),
        (None, ('timeout', 'no whole reply within 0.5 seconds')),
    ],
    ids=str,
)
def test_serpapi_has_failures_under_status_200_and_never_shows_the_key(google, reply, expected, capsys, caplog):
    client, replies, _ = google
    replies[:] = [reply]
    (found,) = client.search(['hamlet'], 5)
    if isinstance(expected, list):
        assert found == expected
    else:
        assert found.kind == expected[0] and expected[1] in found.detail
    assert 'a-secret' not in repr(found) + ''.join(capsys.readouterr()) + caplog.text


def test_an_engine_that_there_is_not_is_refused_at_once():
    with pytest.raises(ValueError, match=r"kind = 'bm52' is none of 'bm25', 'search_r1', .* and cannot be imported"):
        EngineConfig('bm52')
    with pytest.raises(ValueError, match=r"kind = 'math\.pi' is not a function"):
        EngineConfig('math.pi')
