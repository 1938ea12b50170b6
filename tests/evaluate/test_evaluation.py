"""Evaluation end to end on a tiny model: nothing lost, nothing twice; and its tables against counting by hand."""

import collections
import http.server
import itertools
import json
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT

from configs.common import sections
from zerosearch_jax import pretrained, settings, sharding
from zerosearch_jax.evaluate import evaluation, intervals, tables
from zerosearch_jax.evaluate import sources as result_sources
from zerosearch_jax.models import lora
from zerosearch_jax.policy import PolicyConfig, export_weights, make_trainable
from zerosearch_jax.run import jsonl
from zerosearch_jax.run.cost import PricesConfig
from zerosearch_jax.search import remote
from zerosearch_jax.search.search import DocumentSearch, OutsideFailed, SearchFailed
from zerosearch_jax.weights import peft


@pytest.fixture
def sources(tmp_path):
    """Two data sets in one file, and a corpus."""
    rows = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b'], 'dataset': 'xy'[i % 2]} for i in range(8)]
    (tmp_path / 'q.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path / 'c.jsonl').write_text(json.dumps({'id': 'p', 'title': 'because', 'text': 'of everything why'}) + '\n')
    return tmp_path


def config(sources, methods='direct,rag', **options):
    made = sections(evaluation.Config)
    made.policy.model = 'tiny'
    corpus, questions = str(sources / 'c.jsonl'), str(sources / 'q.jsonl')
    made.evaluation.update(methods=methods, datasets=questions, corpus=corpus, questions=3, refine_tokens=8, **options)
    made.rollout.update(prompt_tokens=768, response_tokens=192, turn_tokens=16, observation_tokens=64, slots=4)
    return made


def run(made, workdir):
    return evaluation.evaluate(evaluation.parse(made), workdir, settings.to_json(made))


def results(workdir):
    rows = jsonl.read_jsonl(workdir / 'results.jsonl')
    return {
        (r['method'], r['dataset'], r['id']): {k: v for k, v in r.items() if k not in ('seconds', 'tokens')}
        for r in rows
    }, len(rows)


def test_every_method_answers_every_question_once_whatever_is_interrupted(sources, tmp_path):
    made = config(sources, 'direct,cot,rag,agent,search_o1')
    table = run(made, tmp_path / 'whole')
    whole, count = results(tmp_path / 'whole')
    assert count == len(whole) == 5 * 2 * 3
    assert '| search_o1 |' in table and (tmp_path / 'whole' / 'table.png').stat().st_size > 1000
    here = tmp_path / 'part'
    here.mkdir()
    lines = (tmp_path / 'whole' / 'results.jsonl').read_text().splitlines(keepends=True)
    (here / 'results.jsonl').write_text(''.join(lines[:11]) + lines[11][:40])  # killed while it wrote a row
    (here / 'config.json').write_text((tmp_path / 'whole' / 'config.json').read_text())
    run(made, here)
    part, count = results(here)
    assert count == len(part) and part == whole


def test_what_is_beyond_the_last_whole_batch_of_all_sets_is_left_out(sources):
    """Seven sets of 500 and Bamboogle's 125, say: batches of 64 leave 72 of the last, the first ones of its file."""
    row = {'question': 'why?', 'golden_answers': ['b']}
    rows = [row | {'id': f'{name}{i}', 'dataset': name} for name in 'abc' for i in range(6)]
    jsonl.write_jsonl(sources / 'q.jsonl', rows[:-1])  # 6, 6 and 5
    for questions, size, counts in ((0, 1, '665'), (6, 4, '664'), (0, 8, '664'), (0, 9, '63'), (5, 6, '552')):
        made = config(sources, 'direct', whole_batches_of=size)
        made.evaluation.questions = questions
        found = evaluation.load_questions(evaluation.parse(made))
        assert {name: len(each) for name, each in found.items()} == dict(zip('abc', map(int, counts), strict=False))
    made.evaluation.update(questions=0, whole_batches_of=16)
    found = evaluation.load_questions(evaluation.parse(made))
    assert [q.id for each in found.values() for q in each] == [row['id'] for row in rows[:16]]
    made.evaluation.whole_batches_of = 18
    with pytest.raises(ValueError, match='whole_batches_of = 18: there are fewer questions'):
        evaluation.load_questions(evaluation.parse(made))
    made.evaluation.whole_batches_of = 0
    with pytest.raises(ValueError, match='whole_batches_of must be positive'):
        run(made, sources / 'out')


def test_methods_join_what_is_there_and_other_settings_do_not(sources, tmp_path, capsys):
    run(config(sources, 'direct'), tmp_path / 'out')
    before = (tmp_path / 'out' / 'results.jsonl').read_text()
    table = run(config(sources, 'direct,rag,r1'), tmp_path / 'out')
    assert (tmp_path / 'out' / 'results.jsonl').read_text().startswith(before)
    assert '| r1 | not run | not run | not run |' in table
    assert 'r1: not run; config.trained.r1 names no weights' in capsys.readouterr().err
    with pytest.raises(ValueError, match='another configuration'):
        run(config(sources, 'direct', documents=1), tmp_path / 'out')


def test_trained_weights_are_those_that_are_named(sources, tmp_path):
    mesh = sharding.make_mesh()
    model = pretrained.load_model('tiny', mesh)
    adapter = make_trainable(model, PolicyConfig(lora_rank=2), mesh, 0).params
    for leaf in ('q_lora_b', 'up_lora_b'):
        adapter['layers'][leaf] += 0.5
    file = export_weights(adapter, model, True, tmp_path, '{}')
    directory = export_weights(lora.merge(lora.combine(model.params, adapter)), model, False, tmp_path, '{}')
    peft.save(tmp_path / 'exported', adapter, 'tiny')
    answers = {}
    for name, weights in (('file', str(file)), ('directory', str(directory)), ('peft', str(tmp_path / 'exported'))):
        made = config(sources, 'cot,r1')
        made.trained.r1 = weights
        run(made, tmp_path / name)
        found, _ = results(tmp_path / name)
        answers[name] = {key: [s['text'] for s in row['segments']] for key, row in found.items()}
        marked = {row['weights'] for key, row in found.items() if key[0] == 'r1'}
        assert len(marked) == 1 and marked.pop().startswith(f'{weights} (')
        changed = [
            answers[name]['r1', *rest] != texts for (method, *rest), texts in answers[name].items() if method == 'cot'
        ]
        assert any(changed)
    before = len(jsonl.read_jsonl(tmp_path / 'file' / 'results.jsonl'))
    export_weights({'layers': {k: w * 2 for k, w in adapter['layers'].items()}}, model, True, tmp_path, '{}')
    made.trained.r1 = str(file)  # trained further, in the same place: other weights
    run(made, tmp_path / 'file')
    assert len(jsonl.read_jsonl(tmp_path / 'file' / 'results.jsonl')) == before + 6


def test_trained_weights_are_asked_with_protocol_and_budgets_of_their_training(sources, tmp_path, capsys):
    mesh = sharding.make_mesh()
    model = pretrained.load_model('tiny', mesh)
    adapter = make_trainable(model, PolicyConfig(lora_rank=2), mesh, 0).params
    size = {'prompt_format': 'raw', 'max_turns': 0, 'turn_tokens': 8, 'response_tokens': 100}
    trained_on = {'policy': {'model': 'tiny'}, 'rollout': size, 'simulator': {'documents': 2}}
    made = config(sources, 'cot,r1')
    made.trained.r1 = str(export_weights(adapter, model, True, tmp_path, json.dumps(trained_on)))
    run(made, tmp_path / 'out')
    prompts = {key[0]: row['segments'][0]['text'] for key, row in results(tmp_path / 'out')[0].items()}
    assert '<|im_start|>' in prompts['cot'] and '<|im_start|>' not in prompts['r1']
    said = capsys.readouterr().err
    line = "prompt 'search' (raw), 0 searches of 2 documents at most, 8 tokens a turn, 64 an observation, 100 in all"
    assert f'adapter.safetensors is asked as in its training: {line}' in said
    tokens = {key[0]: row['response_tokens'] for key, row in results(tmp_path / 'out')[0].items()}
    assert tokens['r1'] <= 8 < 16 * 4 >= tokens['cot']
    cfg = evaluation.parse(made)
    assert cfg.weights('r1', ['evaluation.documents']).endswith(f', documents={made.evaluation.documents}')
    assert cfg.weights('r1', ['rollout.max_turns', 'seed']).endswith(f', max_turns={made.rollout.max_turns}')
    assert cfg.weights('r1', ['seed']) == cfg.weights('r1') and 'documents' not in cfg.weights('r1')


def test_an_adapter_is_evaluated_on_its_own_base_unless_another_is_given(sources, tmp_path, capsys, monkeypatch):
    mesh, loaded = sharding.make_mesh(), []
    model = pretrained.load_model('tiny', mesh)
    adapter = make_trainable(model, PolicyConfig(lora_rank=2), mesh, 0).params
    base = str(export_weights(model.params, model, False, tmp_path / 'base', '{}'))
    monkeypatch.setattr(pretrained, 'load_model', lambda name, *_: loaded.append(name) or model)
    made = config(sources, 'zerosearch')
    made.trained.zerosearch = str(
        export_weights(adapter, model, True, tmp_path, json.dumps({'policy': {'model': base}}))
    )
    for number, given in enumerate(((), ('policy.model',))):
        evaluation.evaluate(evaluation.parse(made), tmp_path / str(number), settings.to_json(made), given)
        line = f'adapter.safetensors was trained over {base}; here it is put on tiny'
        assert (line in capsys.readouterr().err) == bool(given)
    assert loaded == [base, 'tiny']


def test_a_run_is_evaluated_as_what_it_was_trained_as(tmp_path):
    for kind, method in (('none', 'r1'), ('engine', 'search_r1'), ('model', 'zerosearch')):
        (tmp_path / 'config.json').write_text(json.dumps({'simulator': {'kind': kind}, 'policy': {'model': 'base'}}))
        made = sections(evaluation.Config)
        evaluation.name_run(made, [str(tmp_path)])
        assert (made.trained[method], made.evaluation.methods, made.policy.model) == (str(tmp_path), method, 'base')
    (tmp_path / 'config.json').write_text(json.dumps({'model': {'model': 'taught'}}))  # of launch.sft
    evaluation.name_run(made, [str(tmp_path)])
    assert made.policy.model == 'taught'
    made.policy.model = 'mine'
    evaluation.name_run(made, [str(tmp_path)], ['policy.model'])
    assert made.policy.model == 'mine'
    with pytest.raises(ValueError, match="unexpected argument 'nothing'"):
        evaluation.name_run(made, ['nothing'])


def test_what_would_have_no_effect_beside_a_run_or_without_one_is_refused(sources, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'policy': {'model': 'base'}}))
    made = config(sources, 'direct')
    for field in ('evaluation.methods', 'trained.r1'):
        with pytest.raises(ValueError, match=rf'is evaluated alone, .*: leave out config\.{field}$'):
            evaluation.name_run(made, [str(tmp_path)], ['seed', field])
    made.trained.r1 = 'runs/of_a_method_that_is_not_asked'
    with pytest.raises(ValueError, match='--step=77: no run is evaluated; name one'):
        evaluation.evaluate(evaluation.parse(made), tmp_path / 'out', settings.to_json(made), step=77)
    assert not (tmp_path / 'out').exists()


def test_a_prompt_of_rag_is_checked_without_the_tokens_of_its_documents(sources, tmp_path):
    made = config(sources, 'rag')
    run(made, tmp_path / 'out')
    tokens = [row['segments'][0]['tokens'] for row in results(tmp_path / 'out')[0].values()]
    made.rollout.prompt_tokens = max(tokens) - 40  # there is room only with those of the documents
    made.evaluation.documents = 1
    with pytest.raises(ValueError, match=r'its prompt has \d+ tokens, more than'):
        run(made, tmp_path / 'other')
    assert not (tmp_path / 'other' / 'results.jsonl').exists()


def test_a_prompt_that_is_too_long_is_told_before_anything_runs(sources, tmp_path):
    made = config(sources, 'direct,cot')
    made.rollout.prompt_tokens = 20
    with pytest.raises(ValueError, match=r'its prompt has \d+ tokens, more than'):
        run(made, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'results.jsonl').exists()


def test_questions_that_are_too_long_or_cannot_be_scored_are_left_out_and_counted(sources, tmp_path, capsys):
    with open(sources / 'q.jsonl', 'a') as file:
        for i, (text, gold) in enumerate([('why ' * 500, 'b'), ('who sang?', 'The The')]):
            file.write(json.dumps({'id': f'odd{i}', 'question': text, 'golden_answers': [gold], 'dataset': 'x'}) + '\n')
    made = config(sources, 'direct,cot', too_long='skip')
    made.evaluation.questions = 0
    run(made, tmp_path / 'out')
    found, count = results(tmp_path / 'out')
    assert count == 16 and not any(key[2].startswith('odd') for key in found)
    said = capsys.readouterr().err
    assert 'q.jsonl: answers that cannot be scored: 1 left out' in said
    assert "questions too long for the prompt 'direct': 1 left out" in said
    assert said.splitlines() == (tmp_path / 'out' / 'log.txt').read_text().splitlines()


def test_foreign_questions_with_the_built_in_corpus_are_refused_with_what_to_set(sources, tmp_path):
    made = config(sources, 'direct,rag')
    made.evaluation.corpus = 'world'
    with pytest.raises(ValueError, match=r"corpus 'world' does not answer the questions of .*q\.jsonl'"):
        run(made, tmp_path / 'out')
    for fields in ({'methods': 'direct,cot'}, {'simulated': True}):  # no search; a model answers it
        free = config(sources, **{'methods': 'direct,rag'} | fields)
        free.evaluation.corpus = 'world'
        assert evaluation.load_questions(evaluation.parse(free))
    made.engine.kind = 'search_r1'
    assert evaluation.load_questions(evaluation.parse(made))


def test_weights_that_are_not_there_are_told_before_anything_runs(sources, tmp_path):
    made = config(sources, 'direct,r1')
    made.trained.r1 = 'runs/nowhere/adapter.safetensors'
    with pytest.raises(FileNotFoundError, match='nowhere'):
        run(made, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'results.jsonl').exists()


def test_the_simulator_can_answer_the_searches(sources, tmp_path):
    made = config(sources, 'rag,agent', simulated=True)
    made.simulator.update(model='tiny', prompt_tokens=768, max_tokens=8, attempts=2, slots=2)
    with pytest.raises(OutsideFailed, match=r'rag, x, .*: 3 of 3 failed \(.*1 count\)'):
        run(made, tmp_path / 'out')  # random weights write no documents
    found, _ = results(tmp_path / 'out')
    assert {row['status'] for row in found.values()} == {'search_failed'}
    assert {row['searches'][0]['attempts'] for row in found.values()} == {2}


def test_a_simulator_writes_as_many_documents_as_its_section_says(sources, tmp_path, capsys, monkeypatch):
    """Whatever the evaluation's section or the training of the policy says, and that is what is printed."""
    simulator = types.SimpleNamespace(source=lambda **_: DocumentSearch(lambda *_: []), engine=None)
    monkeypatch.setattr(result_sources, 'open_simulator', lambda *_, **__: simulator)
    mesh = sharding.make_mesh()
    model = pretrained.load_model('tiny', mesh)
    adapter = make_trainable(model, PolicyConfig(lora_rank=2), mesh, 0).params
    made = config(sources, 'r1', simulated=True, documents=1)
    made.simulator.update(model='tiny', documents=4)
    taught = {'policy': {'model': 'tiny'}, 'rollout': {'max_turns': 0}, 'simulator': {'documents': 2}}
    made.trained.r1 = str(export_weights(adapter, model, True, tmp_path, json.dumps(taught)))
    run(made, tmp_path / 'out')
    assert '0 searches of 4 documents at most' in capsys.readouterr().err
    rows = jsonl.read_jsonl(tmp_path / 'out' / 'results.jsonl')
    assert {row['weights'].partition('), ')[2] for row in rows} == {'documents=4'}
    with pytest.raises(ValueError, match=r'with simulated set config\.simulator\.documents'):
        evaluation.parse(made, ['evaluation.documents'])
    made.evaluation.simulated = False
    assert evaluation.parse(made, ['evaluation.documents']).evaluation.documents == 1


def test_limits_may_change_and_two_sources_of_one_name_may_not_meet(sources, tmp_path):
    run(config(sources, 'direct'), tmp_path / 'out')
    made = config(sources, 'direct')
    made.engine.update(query_price=0.01, spending_cap=5.0, timeout_s=1.0)
    run(made, tmp_path / 'out')
    other = sources / 'other.jsonl'
    other.write_text((sources / 'q.jsonl').read_text().replace('"id": "q', '"id": "other'))
    made.evaluation.datasets += f',{other}'
    with pytest.raises(ValueError, match=r"other\.jsonl has questions of '[xy]'"):
        run(made, tmp_path / 'out')


def test_questions_that_the_engine_failed_are_asked_again(sources, tmp_path, monkeypatch):
    broken = []

    class Engine:
        def search(self, queries, k):
            return [SearchFailed('timeout', 'in its words') if q in broken else [] for q in queries]

    monkeypatch.setattr(result_sources, 'open_search_engine', lambda *_: Engine())
    broken.append('why 0?')
    table = run(config(sources, 'rag'), tmp_path / 'out')
    assert '| rag | x | 2 | 1 |' in table and '0.0 / 0.0 / 0.0 (incomplete: 1 failed)' in table
    assert '| rag | x | 2 | 1 |' in run(config(sources, 'direct'), tmp_path / 'out')  # not what this one asks
    broken.clear()
    table = run(config(sources, 'rag'), tmp_path / 'out')
    found, count = results(tmp_path / 'out')
    assert '| rag | x | 3 | 0 |' in table and 'failed)' not in table and count == len(found) == 12


def test_questions_that_failed_are_on_disk_until_their_answers_are(sources, tmp_path, monkeypatch):
    """A service that is still down does not make its failures unseen; nor does one that fails again double them."""
    broken = ['why 0?', 'why 2?']

    class Engine:
        def search(self, queries, k):
            return [SearchFailed('timeout', 'late') if q in broken else [] for q in queries]

    def failed():
        found, count = results(tmp_path / 'out')
        assert count == len(found) == 8
        return sum(row['status'] == 'search_failed' for row in found.values())

    def down(*_, **__):
        raise OutsideFailed('down')

    monkeypatch.setattr(result_sources, 'open_search_engine', lambda *_: Engine())
    made = config(sources, 'rag')
    made.evaluation.questions = 0
    run(made, tmp_path / 'out')
    assert failed() == 2
    with monkeypatch.context() as before, pytest.raises(OutsideFailed, match='down'):
        before.setattr(evaluation.preflight, 'check', down)
        run(made, tmp_path / 'out')
    assert failed() == 2
    with monkeypatch.context() as after, pytest.raises(OutsideFailed, match='down'):
        after.setattr(evaluation, 'check_searches', down)
        run(made, tmp_path / 'out')
    assert failed() == 2
    broken.clear()
    run(made, tmp_path / 'out')
    assert failed() == 0


def test_an_engine_that_fails_every_search_ends_an_evaluation_in_its_words(sources, tmp_path, monkeypatch):
    class Engine:
        def search(self, queries, k):
            return [SearchFailed('status_404', 'no such model') for _ in queries]

    monkeypatch.setattr(result_sources, 'open_search_engine', lambda *_: Engine())
    with pytest.raises(OutsideFailed, match=r'rag, x, .*3 of 3.*3 status_404\); the other side says: no such model'):
        run(config(sources, 'direct,rag'), tmp_path / 'out')
    monkeypatch.undo()
    run(config(sources, 'direct,rag'), tmp_path / 'out')
    found, count = results(tmp_path / 'out')
    assert count == len(found) == 12 and 'search_failed' not in {row['status'] for row in found.values()}


class BadServer(http.server.ThreadingHTTPServer):
    """ZeroSearch's wiki protocol, badly: the first attempt at every query fails in one way or another, some all do.

    A busy machine may answer late as well, so the client waits long (5 s), and few queries are left without an answer.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self):
        super().__init__(('127.0.0.1', 0), BadHandler)
        self.attempts, self.healed, self.lock = collections.Counter(), False, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class BadHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['query']
        number = int(query.removeprefix('why ').removesuffix('?'))
        with self.server.lock:
            self.server.attempts[query] += 1
            first = self.server.attempts[query] == 1
        fails = not self.server.healed and (first or number % 10 == 0)
        if fails and number % 100 in (0, 4):
            time.sleep(6)  # longer than the client waits
        status = {1: 429, 2: 500}.get(number % 4, 200) if fails else 200
        body = b'[{"text": "trunc' if fails else json.dumps([{'text': f'about {query}'}]).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_slow_and_broken_server_loses_and_doubles_nothing(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, 'probe', lambda cfg: None)  # it would be right to refuse this one
    rows = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b'], 'dataset': 'x'} for i in range(200)]
    jsonl.write_jsonl(sources / 'q.jsonl', rows)
    server, made = BadServer(), config(sources, 'rag')
    made.evaluation.questions = 200
    made.rollout.update(turn_tokens=1, max_turns=1, slots=64)
    url = f'http://127.0.0.1:{server.server_port}'
    made.engine.update(kind='zerosearch_wiki', url=url, concurrency=200, retries=2, timeout_s=5.0, pause_s=0.05)
    run(made, tmp_path / 'out')
    found, count = results(tmp_path / 'out')
    assert count == len(found) == 200
    broken = {key for key, row in found.items() if row['status'] == 'search_failed'}
    assert {key[2] for key in broken} == {f'q{i}' for i in range(0, 200, 10)}
    assert all(
        row['searches'][0]['documents'] == [f'about {row["question"]}'] for row in found.values() if row['answer']
    )
    asked, server.healed = server.attempts.copy(), True
    run(made, tmp_path / 'out')
    found, count = results(tmp_path / 'out')
    assert count == len(found) == 200
    assert not any(row['status'] == 'search_failed' for row in found.values())
    assert {query for query in server.attempts if server.attempts[query] > asked[query]} == {
        f'why {i}?' for i in range(0, 200, 10)
    }


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('methods', 'direct,guess', "'guess' is none of direct, cot"),
        ('methods', ' , ', 'at least one'),
        ('datasets', '', 'at least one'),
    ],
)
def test_what_cannot_be_run_is_told_in_a_line(sources, field, value, message):
    made = config(sources)
    made.evaluation[field] = value
    with pytest.raises(ValueError, match=message):
        evaluation.parse(made)


def test_the_seven_are_named_by_one_word(sources):
    made = config(sources)
    made.evaluation.datasets = 'seven, nq, mine.jsonl'
    assert evaluation.parse(made).datasets[-2:] == ['bamboogle', 'mine.jsonl']
    assert len(evaluation.parse(made).datasets) == 8


# ---------------------------------------------------------------- figures


def write(directory, scores):
    """results.jsonl of {method: {data set: [score of each question]}}."""
    directory.mkdir()
    base = {'status': 'answered', 'searches': [], 'tokens': 7, 'seconds': 2.0, 'device': 'cpu', 'devices': 1}
    rows = [
        base | {'method': m, 'weights': 'w', 'dataset': d, 'id': f'{d}{i}', 'em': v, 'cover_em': v, 'f1': v / 2}
        for m, sets in scores.items()
        for d, values in sets.items()
        for i, v in enumerate(values)
    ]
    jsonl.write_jsonl(directory / 'results.jsonl', rows)
    return directory


def test_the_average_counts_every_set_the_same(tmp_path):
    directory = write(tmp_path / 'a', {'direct': {'x_1': [1, 1, 0, 0], 'y': [1]}})
    text = tables.report(directory, ['direct', 'cot'], {}, PricesConfig(a100_hour=1.0))
    assert '| direct | 50.0 / 50.0 / 25.0 | 100.0 / 100.0 / 50.0 | 75.0 / 75.0 / 37.5 |' in text
    assert '| cot | not run | not run | not run |' in text
    assert '| direct | 5 | 0 | 35 | 10 | cpu | no price set | 0.00 |' in text
    latex = (directory / 'table.tex').read_text()
    assert r'x\_1 & y & average' in latex and latex.count(r'\\') == 3


def test_there_is_no_average_over_fewer_questions_than_the_others(tmp_path):
    directory = write(tmp_path / 'a', {'direct': {'x': [1, 0], 'y': [1]}, 'rag': {'x': [1, 1]}})
    text = tables.report(directory, ['direct', 'rag'], {}, PricesConfig())
    assert '| rag | 100.0 / 100.0 / 50.0 | not run | incomplete |' in text
    assert '| direct | average |' in text and '| rag | average |' not in text
    assert (directory / 'table.png').exists()
    first, _, *others = jsonl.read_jsonl(directory / 'results.jsonl')
    jsonl.write_jsonl(directory / 'results.jsonl', [first, *others])
    assert 'average | |' not in tables.report(directory, ['direct', 'rag'], {}, PricesConfig())
    assert not (directory / 'table.png').exists()  # of averages that are no more


def test_intervals_are_those_of_the_binomial():
    values = [1.0] * 30 + [0.0] * 70
    means = intervals.stratified_means([values, values])
    assert means.mean() == pytest.approx(0.3, abs=0.002)
    assert means.std() == pytest.approx((0.3 * 0.7 / 100 / 2) ** 0.5, rel=0.05)


def test_the_paired_test_equals_the_enumeration_of_all_signs():
    strata = [[1.0, 0.0, 1.0, -1.0], [1.0, 1.0]]
    observed = np.mean([np.mean(s) for s in strata])
    every = []
    for signs in itertools.product([1, -1], repeat=6):
        every.append(np.mean([np.mean(np.multiply(signs[:4], strata[0])), np.mean(np.multiply(signs[4:], strata[1]))]))
    exact = np.mean(np.abs(every) >= abs(observed) - 1e-12)
    assert intervals.sign_flip_p(strata) == pytest.approx(exact, abs=0.015)
    assert intervals.sign_flip_p([[0.0, 0.0]]) == 1


def test_two_evaluations_stand_side_by_side_over_their_common_questions(tmp_path):
    write(tmp_path / 'a', {'rag': {'x': [0, 0, 1, 0]}, 'cot': {'x': [1]}})
    write(tmp_path / 'b', {'rag': {'x': [1, 1, 1]}, 'agent': {'x': [1]}})
    text = tables.compare(tmp_path / 'a', tmp_path / 'b')
    assert '| rag | EM | 3 | 0, 0 | 33.3 | 100.0 | +66.7 [' in text and 'cot' not in text
    command = [sys.executable, '-m', 'launch.compare', str(tmp_path / 'a'), str(tmp_path / 'b')]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == text
    with pytest.raises(ValueError, match='no method with common questions'):
        tables.compare(tmp_path / 'a', write(tmp_path / 'c', {'direct': {'x': [1]}}))


def test_questions_that_failed_are_shown_beside_the_scores_of_two_evaluations(tmp_path):
    places = [write(tmp_path / name, {'rag': {'x': [1, 1, 1], 'y': [1]}}) for name in 'ab']
    rows = jsonl.read_jsonl(places[1] / 'results.jsonl')
    jsonl.write_jsonl(places[1] / 'results.jsonl', [r | {'status': 'search_failed'} for r in rows[:2]] + rows[2:])
    assert '| rag | EM | 2 | 0, 2 | 100.0 | 100.0 |' in tables.compare(*places)


def test_results_of_other_weights_are_kept_and_not_mixed(tmp_path):
    directory = write(tmp_path / 'a', {'r1': {'x': [0, 0]}})
    rows = jsonl.read_jsonl(directory / 'results.jsonl')
    jsonl.append_jsonl(directory / 'results.jsonl', [row | {'weights': 'new', 'em': 1} for row in rows])
    for weights, em in (('w', 0), ('new', 1)):
        (found,) = tables.read_results(directory, {'r1': weights})['r1'].values()
        assert {row['em'] for row in found.values()} == {em}
    assert tables.read_results(directory, {'r1': ''}) == tables.read_results(directory)  # asked without weights
