"""Reading rows: every door, every error with its file and line, and order as a function of (seed, cursor)."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch_jax.data import pairs, rows, sources
from zerosearch_jax.data.rows import Passage, Question

_ROW = {'id': 'q1', 'question': 'Who?', 'golden_answers': ['Ada', 'Ada Lovelace'], 'dataset': 'toy', 'hops': 2}


def _write(path, *items):
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
    with (gzip.open if path.suffix == '.gz' else open)(path, 'wb') as file:
        file.write(b'\n'.join(lines) + b'\n')
    return str(path)


@pytest.mark.parametrize('name', ['q.jsonl', 'q.jsonl.gz'])
def test_jsonl(tmp_path, name):
    path = _write(tmp_path / name, _ROW, b'', {'question': ' Née? ', 'golden_answers': [1815, ' ', 'the', 'x', 'x ']})
    first, second = sources.load_questions(path)
    assert first == Question('q1', 'Who?', ('Ada', 'Ada Lovelace'), 'toy')
    assert first.metadata == {'hops': 2}
    assert second == Question('q-3', 'Née?', ('1815', 'x'))
    assert hash(first) and hash(second)


def test_parquet_of_search_r1(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {
        'id': 7,
        'question': 'Who?',
        'data_source': 'nq',
        'reward_model': {'ground_truth': {'target': ['Ada']}, 'style': 'rule'},
        'extra_info': {'index': 0},
    }
    path = str(tmp_path / 'train.parquet')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (question,) = sources.load_questions(path)
    assert question == Question('nq_7', 'Who?', ('Ada',), 'nq')
    assert question.metadata['extra_info'] == {'index': 0}
    pandas = [{'question': 'When?', 'golden_answers': [1932.0]}, {'question': 'Who?', 'golden_answers': ['The The']}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pandas[:1]), path)
    assert [q.golden_answers for q in sources.load_questions(path)] == [('1932',)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pandas[1:]), path)
    with pytest.raises(ValueError, match=r'train\.parquet:1: .*expected more than punctuation'):
        sources.load_questions(path, unscorable='refuse')
    cut = (tmp_path / 'train.parquet').read_bytes()
    garbled = pyarrow.table({'question': pyarrow.array([b'\xff']).cast(pyarrow.string(), safe=False)})
    pyarrow.parquet.write_table(garbled, path)
    for content in (b'no', b'', cut[:-30], cut[:4] + bytes(60) + cut[64:], (tmp_path / 'train.parquet').read_bytes()):
        (tmp_path / 'bad.parquet').write_bytes(content)
        with pytest.raises(ValueError, match=r'bad\.parquet is not a readable parquet file'):
            sources.load_questions(str(tmp_path / 'bad.parquet'))


_BAD = {
    'not JSON': b'{"id": ',
    'not JSON ': b'\xff\xfe{',
    'not JSON  ': b'[' * 100_000,
    'not JSON    ': b'{"question": "x", "golden_answers": ["\xff"]}',
    'found list, expected an object; write one object per line': b'[]',
    "'question' is missing": {'golden_answers': ['x']},
    "'question' is '  '": {'question': '  ', 'golden_answers': ['x']},
    "'question' is 3": {'question': 3, 'golden_answers': ['x']},
    "'golden_answers' is missing, expected a list": {'question': 'x'},
    "'golden_answers' is 'Ada', expected a list": {'question': 'x', 'golden_answers': 'Ada'},
    'each a text': {'question': 'x', 'golden_answers': [None]},
    'each a text ': {'question': 'x', 'golden_answers': [True]},
    'each a text   ': {'question': 'x', 'golden_answers': [float('nan')]},
    "'golden_answers' is nan": {'question': 'x', 'golden_answers': float('nan')},
    "'question' is nan": {'question': float('nan'), 'golden_answers': ['x']},
    "'dataset' is nan": {'question': 'x', 'golden_answers': ['x'], 'dataset': float('nan')},
    "'data_source' is ['nq']": {'question': 'x', 'golden_answers': ['x'], 'data_source': ['nq']},
    'expected more than punctuation': {'question': 'x', 'golden_answers': ['', ' the ', '?!']},
    "'reward_model.ground_truth.target' is 'x'": {'question': 'x', 'reward_model': {'ground_truth': {'target': 'x'}}},
    "'golden_answers' is missing": {'question': 'x', 'reward_model': 'rule'},
    "'id' is True": {'id': True, 'question': 'x', 'golden_answers': ['x']},
    "'id' is nan": {'id': float('nan'), 'question': 'x', 'golden_answers': ['x']},
    "'id' is ''": {'id': '', 'question': 'x', 'golden_answers': ['x']},
    "'_id' is ['q2']": {'_id': ['q2'], 'question': 'x', 'golden_answers': ['x']},
    "the id 'q1' was used at": _ROW,
    "the id 'q1' was used at ": {'_id': 'q1', 'question': 'x', 'golden_answers': ['x']},
    'not valid Unicode': b'{"question": "\\ud800", "golden_answers": ["x"]}',
}


_THE_THE = {'question': 'Who sang?', 'golden_answers': ['The The']}


def _hub(monkeypatch, *rows):
    import datasets

    made = datasets.Dataset.from_list([*rows])
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, config, split: made)
    return 'hub:owner/q'


def _parquet(path, *rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows]), path)
    return str(path)


@pytest.mark.parametrize('form', ['jsonl', 'parquet', 'hub'])
def test_rows_that_cannot_be_scored_are_skipped_and_counted_or_refused(tmp_path, monkeypatch, capsys, form):
    """The golden answer The The, which is nothing but articles, wherever the row comes from."""
    rows_ = (_ROW, _THE_THE, _THE_THE)
    path = {
        'jsonl': lambda: _write(tmp_path / 'q.jsonl', *rows_),
        'parquet': lambda: _parquet(tmp_path / 'q.parquet', *rows_),
        'hub': lambda: _hub(monkeypatch, *rows_),
    }[form]()
    assert [q.id for q in sources.load_questions(path)] == ['q1']
    counted = f"{path}: answers that cannot be scored: 2 left out, the first of them {path}:2: 'golden_answers'"
    assert counted in capsys.readouterr().err
    with pytest.raises(ValueError, match=r":2: 'golden_answers' is \['The The'\], expected more than punctuation"):
        sources.load_questions(path, unscorable='refuse')


def test_a_source_of_which_nothing_can_be_scored_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'q\.jsonl: none of its questions has an answer that can be scored'):
        sources.load_questions(_write(tmp_path / 'q.jsonl', _THE_THE))


@pytest.mark.parametrize('name', ['q.jsonl', 'q.jsonl.gz'])
@pytest.mark.parametrize('content', [b'', b'\n  \n'], ids=['no line', 'blank lines'])
def test_an_empty_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
    for load in (sources.load_questions, sources.load_passages, pairs.load_pairs):
        with pytest.raises(ValueError, match=rf'{name} holds no rows'):
            load(str(tmp_path / name))


def test_lines_with_a_byte_order_mark_and_carriage_returns_are_read(tmp_path):
    (tmp_path / 'q.jsonl').write_bytes(
        b'\xef\xbb\xbf' + json.dumps(_ROW).encode() + b'\r\n\r\n' + json.dumps(_ROW | {'id': 'q2'}).encode() + b'\r\n'
    )
    assert [q.id for q in sources.load_questions(str(tmp_path / 'q.jsonl'))] == ['q1', 'q2']


@pytest.mark.parametrize(
    ('gold', 'expected'), [(1932.0, '1932'), (1932, '1932'), (-2.0, '-2'), (0.5, '0.5'), (1e22, '1' + 22 * '0')]
)
def test_a_gold_number_is_a_text_without_the_zero_of_pandas(tmp_path, gold, expected):
    path = _write(tmp_path / 'q.jsonl', {'id': 7.0, 'question': 'When?', 'golden_answers': [gold]})
    assert sources.load_questions(path) == [Question('7', 'When?', (expected,))]


def test_the_built_in_corpus_answers_its_own_questions_only():
    for source, corpus in (('world', 'world'), ('toy', 'toy'), ('nq', 'wiki.jsonl'), ('world', 'wiki.jsonl')):
        sources.check_corpus(source, corpus)
    for source, corpus in (('nq', 'world'), ('mine.jsonl', 'world'), ('hub:a/b', 'toy'), ('world', 'toy')):
        with pytest.raises(ValueError, match=rf"corpus '{corpus}' does not answer the questions of '{source}'.*set"):
            sources.check_corpus(source, corpus)


@pytest.mark.parametrize('message', _BAD)
def test_bad_rows_say_file_and_line(tmp_path, message):
    path = _write(tmp_path / 'bad.jsonl', _ROW, b'   ', _BAD[message])
    with pytest.raises(ValueError) as error:
        sources.load_questions(path, unscorable='refuse')
    text = str(error.value)
    assert text.startswith(f'{path}:3: ') and message.strip() in text and '\n' not in text


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv('ZEROSEARCH_DATA', raising=False)
    with pytest.raises(FileNotFoundError, match='ZEROSEARCH_DATA is not set'):
        sources.load_questions('none/q.jsonl')
    (tmp_path / 'sub').mkdir()
    _write(tmp_path / 'sub' / 'q.jsonl', _ROW)
    monkeypatch.setenv('ZEROSEARCH_DATA', str(tmp_path))
    assert len(sources.load_questions('sub/q.jsonl')) == 1
    with pytest.raises(FileNotFoundError, match='nor under ZEROSEARCH_DATA='):
        sources.load_passages('none/q.jsonl')
    with pytest.raises(ValueError, match='unknown source'):
        sources.load_questions('q.csv')
    with pytest.raises(ValueError, match="no split 'dev'"):
        sources.load_questions('world', 'dev')
    (tmp_path / 'dir.jsonl').mkdir()
    with pytest.raises(ValueError, match='is a directory'):
        sources.load_questions('dir.jsonl')
    whole = gzip.compress(json.dumps(_ROW).encode() * 100)
    for content in (b'plain', whole[:-20], whole[:12] + b'\xff' * 9 + whole[20:]):
        (tmp_path / 'cut.jsonl.gz').write_bytes(content)
        with pytest.raises(ValueError, match=r'cut\.jsonl\.gz'):
            sources.load_questions('cut.jsonl.gz')


def test_hub_is_read_through_datasets(tmp_path, monkeypatch):
    import datasets

    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        return datasets.Dataset.from_list([{'question': 'Who?', 'golden_answers': ['Ada']}])

    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    assert sources.load_questions('hub:owner/name:nq', 'test') == [Question('name:nq-1', 'Who?', ('Ada',))]
    assert calls == [('owner/name', 'nq', 'test')]

    def offline(name, config, split):
        raise ConnectionError("Couldn't reach\n the hub")

    monkeypatch.setattr(datasets, 'load_dataset', offline)
    with pytest.raises(FileNotFoundError, match=r"hub:owner/name is not available .Couldn't reach the hub"):
        sources.load_questions('hub:owner/name')


def test_passages(tmp_path):
    path = _write(
        tmp_path / 'c.jsonl',
        {'id': 'p', 'title': 'T', 'text': 'body'},
        {'id': 4, 'contents': '"A \'quoted\' title"\nfirst\nsecond'},
        {'text': 'no title'},
    )
    assert sources.load_passages(path) == [
        Passage('p', 'T', 'body'),
        Passage('4', "A 'quoted' title", 'first\nsecond'),
        Passage('c-3', '', 'no title'),
    ]
    for bad in ({'id': 'p'}, {'id': 'p', 'text': ''}):
        with pytest.raises(ValueError, match=r"c\.jsonl:1: 'text' is .*, expected text"):
            sources.load_passages(_write(tmp_path / 'c.jsonl', bad))
    with pytest.raises(ValueError, match=r"c\.jsonl:2: the id 'p' was used at .*c\.jsonl:1"):
        sources.load_passages(_write(tmp_path / 'c.jsonl', *[{'id': 'p', 'text': 'x'}] * 2))


def test_passages_of_beir_and_of_one_line_are_read(tmp_path):
    path = _write(
        tmp_path / 'c.jsonl',
        {'_id': 'MED-10', 'title': '', 'text': 'body', 'metadata': {}},
        {'_id': 4983, 'title': 'T', 'text': 'more'},
        {'id': '3', 'contents': 'one line'},
        {'id': '4', 'title': 'T', 'contents': 'one line'},
        {'_id': '5', 'title': 'A title alone', 'text': ''},
    )
    assert sources.load_passages(path) == [
        Passage('MED-10', '', 'body'),
        Passage('4983', 'T', 'more'),
        Passage('3', '', 'one line'),
        Passage('4', 'T', 'one line'),
        Passage('5', '', 'A title alone'),
    ]


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 1000))
def test_order_is_a_permutation(n, seed, epoch):
    assert sorted(rows.permutation(n, seed, epoch)) == list(range(n))


def test_order_is_pinned_and_changes():
    # A checkpoint holds a cursor into this order: it must be the same in every version of NumPy and of this library.
    assert rows.permutation(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    orders = {tuple(rows.permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    with pytest.raises(ValueError, match='negative'):
        rows.permutation(3, -1, 0)
    with pytest.raises(ValueError):
        rows.permutation(8, 0, 0)[0] = 1


def test_order_is_uniform():
    first = np.bincount([rows.permutation(5, seed, 0)[0] for seed in range(1000)], minlength=5)
    assert abs(first - 200).max() < 60


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 60), st.lists(st.integers(0, 15), max_size=5))
def test_items_are_a_function_of_the_cursor(n, seed, start, counts):
    whole = rows.item_indices(n, seed, start, sum(counts))
    pieces, cursor = [], start
    for count in counts:
        pieces += rows.item_indices(n, seed, cursor, count)
        cursor += count
    assert pieces == whole
    epoch = rows.item_indices(n, seed, 3 * n, n)
    assert {e for e, _ in epoch} == {3} and sorted(i for _, i in epoch) == list(range(n))


def test_item_indices_errors():
    for bad in ((0, 0, 0, 1), (3, 0, -1, 1), (3, 0, 0, -1)):
        with pytest.raises(ValueError, match='need n >= 1'):
            rows.item_indices(*bad)


@given(st.permutations(range(12)), st.integers(0, 15), st.text(max_size=3))
def test_subset_ignores_order_and_is_stable(shuffled, n, salt):
    questions = [Question(str(i), 'q', ('a',)) for i in range(12)]
    chosen = rows.subset(questions, n, salt)
    assert len(chosen) == min(n, 12)
    assert rows.subset([questions[i] for i in shuffled], n, salt) == chosen
    grown = rows.subset([*questions, Question('new', 'q', ('a',))], n, salt)
    assert len(set(chosen) - set(grown)) <= 1


def test_subset_errors_and_salt():
    questions = [Question(str(i), 'q', ('a',)) for i in range(30)]
    assert rows.subset(questions, 10, 'a') != rows.subset(questions, 10, 'b')
    with pytest.raises(ValueError, match='negative'):
        rows.subset([], -1)


def test_normalize_answer():
    assert rows.normalize_answer(' The  Ship, a "Titanic"! ') == 'ship titanic'
    assert rows.normalize_answer('472,317') == '472317'
    assert rows.normalize_answer('Anthem') == 'anthem'


def test_world_is_a_source():
    assert len(sources.load_questions('world')) > len(sources.load_questions('world', 'test')) > 0
    assert len(sources.load_passages('world')) > 30_000


@pytest.mark.skipif(not os.environ.get('ZEROSEARCH_DATA'), reason='ZEROSEARCH_DATA is not set')
def test_real_questions():
    for name, count in (('eval_mini.jsonl', 431), ('nq_test.jsonl.gz', 3219), ('rl_train_mini.jsonl.gz', 5563)):
        questions = sources.load_questions(f'questions/{name}')
        assert len(questions) == count
        assert all(q.dataset and 'fold' in q.metadata for q in questions)
