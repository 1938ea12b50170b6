"""Which questions a run works with: those that belong to its corpus, can be scored, and fit their prompt."""

import json

import pytest
from scripted import BYTES

from configs import qwen2_5_3b, tiny, toy
from zerosearch_jax import pretrained
from zerosearch_jax.data.rows import Question
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import trainer


def experiment(made, **fields):
    for name, value in fields.items():
        section, _, field = name.partition('_')
        made[section][field] = value
    return train_config.parse(made)


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        (tmp_path / 'q.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        return str(tmp_path / 'q.jsonl')

    return write


ROWS = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b']} for i in range(12)]
LONG, THE_THE = {'question': 'why ' * 500, 'golden_answers': ['b']}, {'question': 'who?', 'golden_answers': ['The The']}


def test_foreign_questions_with_the_built_in_corpus_are_refused_with_what_to_set(write):
    path = write(*ROWS)
    needs = [
        experiment(toy.get_config(), data_train=path),  # the simulator is an oracle
        experiment(toy.get_config(), data_train='toy', data_test=path),  # evaluations ask BM25
        experiment(toy.get_config(), data_corpus='world'),
        experiment(tiny.get_config(), simulator_kind='engine', data_train=path),
        experiment(qwen2_5_3b.get_config(), engine_kind='bm25'),  # NQ in the world of countries
    ]
    for cfg in needs:
        with pytest.raises(
            ValueError, match=r"the built-in corpus '\w+' does not answer .*\"corpus\".*config.engine.kind"
        ):
            trainer.load_questions(cfg)


def test_foreign_questions_are_taken_where_the_built_in_corpus_is_not_asked(write):
    path = write(*ROWS)
    free = [
        experiment(tiny.get_config(), data_train=path),  # a model plays the engine; evaluations are of the world
        experiment(tiny.get_config(), data_train=path, data_test=path, evaluation_questions=0),
        experiment(tiny.get_config(), data_train=path, data_test=path, engine_kind='search_r1'),
        experiment(toy.get_config(), data_train=path, data_test=path, data_corpus=path),
    ]
    for cfg in free:
        assert len(trainer.load_questions(cfg)[0]) == 12


def opened(monkeypatch, cfg, workdir=None):
    """A Trainer whose model is nothing but a tokenizer."""
    model = pretrained.Model(None, BYTES, {})
    monkeypatch.setattr(pretrained, 'load_model', lambda *_: model)
    for name, value in (('_open_engines', [None]), ('_open_learner', None), ('_description', '')):
        monkeypatch.setattr(trainer.Trainer, name, lambda self, value=value: value)
    return trainer.Trainer(cfg, workdir)


def test_questions_that_are_too_long_or_cannot_be_scored_are_skipped_and_counted_or_refused(write, monkeypatch, capsys):
    path = write(LONG, *ROWS, THE_THE)
    fields = {'data_train': path, 'data_test': path, 'engine_kind': 'search_r1', 'evaluation_questions': 13}
    cfg = experiment(tiny.get_config(), **fields, data_too_long='skip')
    made = opened(monkeypatch, cfg)
    assert {q.id for q in made.train_questions} == {q.id for q in made.test_questions} == {row['id'] for row in ROWS}
    said = capsys.readouterr().err
    assert said.count(f'{path}: answers that cannot be scored: 1 left out') == 2
    assert said.count("questions too long for the prompt 'search': 1 left out, the first of them question q-1: ") == 2
    with pytest.raises(ValueError, match=r"question q-1: its prompt has \d+ tokens.*too_long='skip'"):
        opened(monkeypatch, experiment(tiny.get_config(), **fields))
    with pytest.raises(ValueError, match="'The The'"):
        opened(monkeypatch, experiment(tiny.get_config(), **fields, data_unscorable='refuse'))


def test_too_few_questions_that_fit_are_told(write, monkeypatch):
    cfg = experiment(tiny.get_config(), data_train=write(LONG, ROWS[0]), data_too_long='skip', evaluation_questions=0)
    with pytest.raises(ValueError, match=r'config.data.train has 1 questions, fewer than the 2 of one step'):
        opened(monkeypatch, cfg)


def test_evaluations_are_of_whole_batches_of_what_fits(write, monkeypatch):
    """Defect D6, where questions are left out."""
    path = write(LONG, *ROWS)
    fields = {'data_train': path, 'data_test': path, 'engine_kind': 'search_r1', 'data_too_long': 'skip'}
    cfg = experiment(tiny.get_config(), **fields, evaluation_questions=12, evaluation_whole_batches_of=5)
    assert len(opened(monkeypatch, cfg).test_questions) in (5, 10)
    assert all(isinstance(q, Question) for q in opened(monkeypatch, cfg).test_questions)
