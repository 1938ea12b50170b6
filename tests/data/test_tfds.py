"""Questions through TFDS array_record files and back, without TensorFlow."""

import json
import shutil
import subprocess
import sys

import pytest

from zerosearch_jax.data import rows, sources, tfds

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
    return tfds.build({'train': sources.load_questions(source)}, str(tmp_path_factory.mktemp('tfds')))


def test_round_trip(source, built):
    expected, found = sources.load_questions(source), sources.load_questions(f'tfds:{built}')
    assert found == expected
    assert [q.metadata for q in found] == [q.metadata for q in expected]
    assert tfds.load(built, 'train[:10%]') == expected[:4]


def test_splits_of_the_world_and_relative_directory(tmp_path, monkeypatch):
    tfds.build({s: sources.load_questions('world', s) for s in ('train', 'test')}, str(tmp_path / 'world'))
    monkeypatch.setenv('ZEROSEARCH_DATA', str(tmp_path))
    for split in ('train', 'test'):
        expected, found = sources.load_questions('world', split), sources.load_questions('tfds:world', split)
        assert found == expected and found[3].metadata == expected[3].metadata


def test_errors(source, built, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['train'\]"):
        tfds.load(built, 'dev')
    with pytest.raises(FileNotFoundError, match='holds no TFDS data set'):
        tfds.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='ZEROSEARCH_DATA'):
        sources.load_questions(f'tfds:{tmp_path}/none')
    with pytest.raises(ValueError, match='already holds a data set'):
        tfds.build({'train': sources.load_questions(source)}, built.split('/zerosearch_qa')[0])
    bad = rows.Question('q', 'q', ('a',), metadata={'x': object()})
    with pytest.raises(ValueError, match="the metadata of question 'q' is not JSON"):
        tfds.build({'train': [bad]}, str(tmp_path / 'bad'))


def test_a_data_set_that_is_cut_or_not_of_ours_is_named(built, tmp_path):
    shutil.copytree(built, tmp_path / 'other')
    info = tmp_path / 'other' / 'features.json'
    info.write_text(info.read_text().replace('golden_answers', 'answers'))
    with pytest.raises(ValueError, match=r"other has no feature 'golden_answers'; make it with launch.to_tfds"):
        tfds.load(str(tmp_path / 'other'))
    (tmp_path / 'other' / 'dataset_info.json').write_text('{"name": ')
    with pytest.raises(ValueError, match=r'dataset_info.json cannot be read .*launch.to_tfds'):
        tfds.load(str(tmp_path / 'other'))


def test_tensorflow_is_not_imported(built):
    code = (
        f'import sys; from zerosearch_jax.data import sources; assert "tensorflow_datasets" not in sys.modules;'
        f'sources.load_questions("tfds:{built}"); assert "tensorflow" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
