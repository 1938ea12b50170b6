"""The named question sets: where they are, their splits, and their rows, from a hub that is played."""

import pytest

from zerosearch_jax.data import benchmarks, rows, sources

HUB = {
    'RUC-NLPIR/FlashRAG_datasets:hotpotqa': {
        'dev': [
            {'id': 'dev_0', 'question': 'Who?', 'golden_answers': ['Ann'], 'metadata': {'level': 'hard'}},
            {'id': 'dev_1', 'question': 'What is it?', 'golden_answers': ['---']},
        ]
    },
    'PeterJinGo/nq_hotpotqa_train': {
        'train': [
            {
                'id': 'train_0',
                'question': 'when?',
                'golden_answers': ['1960'],
                'data_source': 'nq',
                'reward_model': {'style': 'rule', 'ground_truth': {'target': ['1960']}},
            },
            {'id': 'train_0', 'question': 'who?', 'golden_answers': ['Ann'], 'data_source': 'hotpotqa'},
        ]
    },
}


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    monkeypatch.setattr(rows, '_hub_rows', lambda name, split: HUB[name][split])


def test_a_test_set_is_the_public_split_and_rows_without_an_answer_are_left_out():
    (question,) = sources.load_questions('hotpotqa', 'test')
    assert (question.id, question.golden_answers, question.dataset) == ('dev_0', ('Ann',), 'hotpotqa')
    assert question.metadata == {'level': 'hard'}


def test_the_training_mix_keeps_the_names_of_its_sets():
    first, second = sources.load_questions('nq_hotpotqa', 'train')
    assert (first.dataset, first.golden_answers) == ('nq', ('1960',))
    assert (first.id, second.id) == ('nq_train_0', 'hotpotqa_train_0')  # the merged file repeats train_0


def test_a_split_that_a_set_does_not_have_is_refused():
    with pytest.raises(ValueError, match="popqa has no split 'train'; it has test"):
        sources.load_questions('popqa', 'train')
    with pytest.raises(ValueError, match="'bamboogle'"):
        sources.load_questions('bambogle', 'test')


def test_the_seven_are_all_there():
    assert len(benchmarks.SEVEN) == 7
    assert {benchmarks.locate(name, 'test')[1] for name in benchmarks.SEVEN} == {'test', 'dev'}
