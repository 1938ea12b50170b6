"""Asking: what is shown as it comes, coloured or plain, and harmless; one JSON object for machines; any engine."""

import io
import itertools
import json
import re
import subprocess
import sys
import threading

import hypothesis
import pytest
from helpers import ENVIRONMENT, ROOT
from hypothesis import strategies as st
from scripted import BYTES, EOS, FakeEngine, FakeWriter

from configs import ask as ask_config
from zerosearch_jax import pretrained, sharding
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.policy import PolicyConfig, export_weights, make_trainable
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.simulator import load
from zerosearch_jax.text.trajectory import Kind
from zerosearch_jax.tools import ask, serve_search
from zerosearch_jax.tools.screen import Screen, harmless

SCRIPT = ['<think>hm\x1b[31m</think><search> Rome </search>', '<answer>\x1b]0;x\x07Italy</answer>', '']


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def coloured(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')


def shown(pieces, out=None):
    """What a screen makes of [(kind, ids)]."""
    out = out or io.StringIO()
    screen = Screen(out, BYTES)
    for kind, ids in pieces:
        screen.write(kind, ids)
    screen.end()
    return out.getvalue()


def test_blocks_are_coloured_wherever_the_stream_is_cut(coloured):
    text = 'a<think>b</think> <search>c</search>'
    whole = '\x1b[36m<think>\x1b[0m\x1b[36mb\x1b[0m\x1b[36m</think>\x1b[0m'
    ids = BYTES.encode(text)
    for cut in range(len(ids)):
        found = shown([(Kind.ACTION, ids[:cut]), (Kind.ACTION, ids[cut:])], Terminal())
        assert found.startswith('a\x1b[36m<think>\x1b[0m')
        assert re.sub(r'\x1b\[\d*m', '', found) == text + '\n'
        assert ('\x1b[33m<search>' in found) and ('\x1b[33m</search>' in found)
    assert shown([(Kind.ACTION, ids)], Terminal()) == (
        f'a{whole} \x1b[33m<search>\x1b[0m\x1b[33mc\x1b[0m\x1b[33m</search>\x1b[0m\n'
    )


def test_the_tags_of_documents_colour_nothing(coloured):
    pieces = [
        (Kind.ACTION, BYTES.encode('<search>')),
        (Kind.OBSERVATION, BYTES.encode('<answer>x')),
        (Kind.ACTION, [65]),
    ]
    assert shown(pieces, Terminal()) == '\x1b[33m<search>\x1b[0m\x1b[2m<answer>x\x1b[0mA\n'


def test_no_colour_where_it_is_not_wanted(coloured, monkeypatch):
    pieces = [(Kind.ACTION, BYTES.encode('<answer>x</answer>'))]
    assert '\x1b' in shown(pieces, Terminal()) and '\x1b' not in shown(pieces)
    monkeypatch.setenv('NO_COLOR', '1')
    assert '\x1b' not in shown(pieces, Terminal())


@hypothesis.given(st.text(), st.lists(st.integers(0, 60)))
def test_text_is_shown_whole_and_without_a_control_character(text, cuts):
    """Also where the stream is cut inside a character."""
    ids = BYTES.encode(text)
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [(Kind.ACTION, ids[a:b]) for a, b in itertools.pairwise(bounds)]
    found = shown(pieces)
    assert found.removesuffix('\n') == harmless(text).removesuffix('\n')
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]', found)


def test_what_a_terminal_would_obey_is_spelled_out():
    assert harmless('a\x1b[2J\r\x9b\u202eb\té\n👩‍👩‍👧') == 'a\\x1b[2J\\r\\x9b\\u202eb\té\n👩‍👩‍👧'


# ---------------------------------------------------------------- the whole


class Policy(FakeEngine):
    """Plays SCRIPT for every question."""

    def __init__(self):
        super().__init__(lambda handle, number, engine: [*BYTES.encode(SCRIPT[number]), EOS])

    def load(self, params, *, temperature):
        assert temperature == 0.0


@pytest.fixture
def config(tmp_path):
    made = ask_config.get_config()
    made.policy.update(model='tiny', adapter='')
    (tmp_path / 'c.jsonl').write_text(json.dumps({'id': 'r', 'title': 'Rome', 'text': 'In Italy \x1b[2J.'}) + '\n')
    made.evaluation.corpus = str(tmp_path / 'c.jsonl')
    made.rollout.update(prompt_tokens=768, response_tokens=512, turn_tokens=100)
    return made


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(ask, 'open_policy', lambda *args, **kwargs: Policy())


def asked(made, capsys, as_json, questions=('Where is Rome',)):
    ask.answer_all(ask.Asker(evaluation.parse(made)), questions, as_json=as_json)
    return capsys.readouterr().out


def asked_err(made, questions, capsys):
    ask.answer_all(ask.Asker(evaluation.parse(made)), questions, as_json=True)
    return capsys.readouterr().err


def test_an_episode_is_shown_and_recorded(config, scripted, capsys):
    told = asked(config, capsys, False)
    assert told.startswith(
        'Where is Rome\n<think>hm\\x1b[31m</think><search> Rome </search>\n<information>\nDoc 1: Rome. '
    )
    assert '\x1b' not in told and '\x07' not in told
    assert re.search(r'\nanswer: \\x1b\]0;x\\x07Italy  \(1 search, \d+ tokens, \d+\.\d s\)\n\n$', told)
    rows = [json.loads(line) for line in asked(config, capsys, True, ('Where is Rome', 'What is it')).splitlines()]
    assert [row['question'] for row in rows] == ['Where is Rome', 'What is it']
    assert rows[0].keys() == {'question', 'answer', 'status', 'searches', 'text', 'tokens', 'seconds'}
    assert rows[0]['answer'] == '\x1b]0;x\x07Italy' and rows[0]['tokens'] == sum(map(len, SCRIPT)) + 1
    assert rows[0]['searches'] == [{'query': 'Rome', 'documents': ['Rome. In Italy  [2J.'], 'failure': ''}]
    assert rows[0]['text'].startswith(SCRIPT[0]) and 'Doc 1: Rome. In Italy' in rows[0]['text']


def test_a_question_that_is_too_long_ends_nothing(config, scripted, capsys):
    rows = [json.loads(line) for line in asked(config, capsys, True, ('why ' * 300, 'Where is Rome')).splitlines()]
    assert [row['status'] for row in rows] == ['refused', 'answered']
    assert 'more than config.rollout.prompt_tokens' in asked_err(config, ('why ' * 300,), capsys)


@pytest.mark.parametrize(('asked_for', 'documents', 'tokens'), [(0, 2, 176), (4, 4, 176)])
def test_a_policy_is_shown_as_many_documents_as_in_its_training(
    config, scripted, tmp_path, asked_for, documents, tokens
):
    mesh = sharding.make_mesh()
    model = pretrained.load_model('tiny', mesh)
    adapter = make_trainable(model, PolicyConfig(lora_rank=2), mesh, 0).params
    run = {'policy': {'model': 'tiny'}, 'simulator': {'documents': 2}, 'rollout': {'observation_tokens': 176}}
    file = export_weights(adapter, model, True, tmp_path, json.dumps(run))
    config.evaluation.documents = asked_for
    asker = ask.Asker(evaluation.parse(config), str(file))
    assert (asker._cfg.evaluation.documents, asker._size.observation_tokens) == (documents, tokens)


@pytest.mark.parametrize(
    ('chosen', 'given', 'told'),
    [
        (
            ('weights',),
            {'policy.model'},
            'weights is asked in place of config.policy, so leave out config.policy.model',
        ),
        (('weights',), {'policy.adapter'}, 'leave out config.policy.adapter'),
        (('', 'tiny'), {}, '--base is for --checkpoint'),
        (('', '', 3), {}, '--step is for --checkpoint'),
    ],
)
def test_weights_are_not_chosen_twice(config, chosen, given, told):
    with pytest.raises(ValueError, match=told):
        ask.Asker(evaluation.parse(config), *chosen, given=given)


def test_a_whole_model_has_no_base(config, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='is a whole model; leave out --base'):
        ask.Asker(evaluation.parse(config), str(tmp_path), 'tiny')


def test_a_server_of_another_protocol_answers_and_its_failure_is_told(config, scripted, capsys):
    engine = BM25([Passage('s', 'Served', 'about Rome')])
    server = serve_search.Server(serve_search.ServeConfig(port=0), engine.search)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config.engine.update(kind='search_r1', url=server.url, retries=0)
    asker = ask.Asker(evaluation.parse(config))
    assert 'Doc 1: Served. about Rome' in asked(config, capsys, False)
    server.shutdown()
    server.server_close()
    ask.answer_all(asker, ('Where is Rome',), as_json=False)
    assert 'no answer: search failed (connection)  (1 search, ' in capsys.readouterr().out
    with pytest.raises(OSError, match=r'engine search_r1 at .* cannot be used: connection'):  # before it is loaded
        ask.Asker(evaluation.parse(config))


def test_a_run_before_the_questions_is_what_is_asked(tmp_path):
    assert ask.split_arguments('', (str(tmp_path), 'why?')) == (str(tmp_path), ('why?',))
    assert ask.split_arguments('', ('why?', 'where?')) == ('', ('why?', 'where?'))
    assert ask.split_arguments('weights', (str(tmp_path),)) == ('weights', (str(tmp_path),))
    assert ask.split_arguments('', ('why? ' * 99,)) == ('', ('why? ' * 99,))  # longer than the name of a file can be


def test_a_mistyped_run_is_not_asked_as_a_question(tmp_path):
    for path in (f'{tmp_path}/my rnu', 'rnus/quickstart', 'runs/x/adapter.safetensors'):
        with pytest.raises(ValueError, match='is no directory of a run'):
            ask.split_arguments('', (path, 'why?'))
        assert ask.split_arguments('weights', (path, 'why?')) == ('weights', (path, 'why?'))
    for question in ('Who won in 2019/2020', 'AC/DC?', 'why'):
        assert ask.split_arguments('', (question,)) == ('', (question,))


def test_a_simulator_is_asked_without_an_answer_that_nobody_knows(config, scripted, capsys, monkeypatch):
    writer = FakeWriter('Doc 1: Rome is in Italy\nDoc 2: so it is\nDoc 3: yes')
    monkeypatch.setattr(load, 'open_writer', lambda *_, **__: writer)
    monkeypatch.setattr(load, 'probe', lambda *_: None)
    config.evaluation.simulated = True
    config.simulator.update(kind='endpoint', attempts=1)
    config.endpoint.url = 'http://127.0.0.1:1/v1'
    assert 'Doc 1: Rome is in Italy' in asked(config, capsys, False)
    assert 'Query: Rome' in writer.asked[0] and 'right answer' not in writer.asked[0]
    config.simulator.kind = 'oracle'
    with pytest.raises(ValueError, match='needs the answers'):
        ask.Asker(evaluation.parse(config))


def command(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, '-m', 'launch.ask', *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        **kwargs,
    )


@pytest.mark.thorough
def test_the_command_reads_lines_and_writes_lines(config, tmp_path):
    small = [f'--config.rollout.{name}={config.rollout[name]}' for name in ('prompt_tokens', 'turn_tokens')]
    flags = ['--checkpoint=', '--config.policy.model=tiny', '--config.policy.adapter=', *small]
    flags += [f'--config.evaluation.corpus={config.evaluation.corpus}', '--config.rollout.max_turns=0', '--json']
    done = command(*flags, input='first\n\n  second \n')
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row['question'] for row in rows] == ['first', 'second'], done.stderr[-2000:]
    assert {row['status'] for row in rows} == {'turn_limit'} and done.returncode == 0
    missing = command('--checkpoint=nothing', 'why')
    assert (missing.returncode, missing.stdout) == (1, '')
    assert missing.stderr.startswith("error: adapter 'nothing': no such file") and missing.stderr.count('\n') == 1
