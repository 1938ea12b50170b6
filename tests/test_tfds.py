"""Questions through TFDS array_record files and back, without TensorFlow."""

import json
import subprocess
import sys

import pytest

from zerosearch_jax.data import rows, tfds

_ROWS = [
    {'id': 'ü/1', 'question': 'Où?\nLà', 'golden_answers': ['Zürich', '東京'], 'dataset': 'toy', 'x': [1, {'y': None}]},
    *({'id': f'q{i}', 'question': f'q {i}?', 'golden_answers': ['1', '2', '3'][: i % 3 + 1]} for i in range(40)),
]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp('source') / 'q.jsonl'
    path.write_text('\n'.join(map(json.dumps, _ROWS)))
    return str(path)


@pytest.fixture(scope='module')
def built(source, tmp_path_factory):
    return tfds.build(source, str(tmp_path_factory.mktemp('tfds')), ('train',))


def test_round_trip(source, built):
    expected, found = rows.load_questions(source), rows.load_questions(f'tfds:{built}')
    assert found == expected
    assert [q.metadata for q in found] == [q.metadata for q in expected]
    assert tfds.load(built, 'train[:10%]') == expected[:4]


def test_splits_of_the_world_and_relative_directory(tmp_path, monkeypatch):
    tfds.build('world', str(tmp_path / 'world'), ('train', 'test'))
    monkeypatch.setenv('ZEROSEARCH_DATA', str(tmp_path))
    for split in ('train', 'test'):
        expected, found = rows.load_questions('world', split), rows.load_questions('tfds:world', split)
        assert found == expected and found[3].metadata == expected[3].metadata


def test_errors(source, built, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['train'\]"):
        tfds.load(built, 'dev')
    with pytest.raises(FileNotFoundError, match='holds no TFDS data set'):
        tfds.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='ZEROSEARCH_DATA'):
        rows.load_questions(f'tfds:{tmp_path}/none')
    with pytest.raises(ValueError, match='already holds a data set'):
        tfds.build(source, built.split('/zerosearch_qa')[0])
    bad = rows.Question('q', 'q', ('a',), metadata={'x': object()})
    monkeypatch.setattr(rows, 'load_questions', lambda *_: [bad])
    with pytest.raises(ValueError, match="the metadata of question 'q' is not JSON"):
        tfds.build('any', str(tmp_path / 'bad'))


def test_tensorflow_is_not_imported(built):
    code = (
        f'import sys; from zerosearch_jax.data import rows; assert "tensorflow_datasets" not in sys.modules;'
        f'rows.load_questions("tfds:{built}"); assert "tensorflow" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
