"""Every algorithm raises the reward on the toy task, with the real engine, search and learner."""

import numpy as np
import pytest

from configs import toy, toy_sft
from zerosearch_jax import settings
from zerosearch_jax.data import sources
from zerosearch_jax.run import jsonl
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.study import sweep
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl, sft

ALGORITHMS = {
    'reinforce': {},
    'reinforce_baseline': {},
    'reinforce_plus_plus': {'kl': 0.001, 'kl_estimator': 'k1'},
    'rloo': {'importance_cap': 2.0},
    'grpo': {'aggregate': 'sequence', 'kl': 0.001, 'kl_estimator': 'k2'},
    'dr_grpo': {},
    'gspo': {'clip': 0.01},
    'ppo': {},
}


def test_the_toy_is_answered_by_its_passages_alone():
    questions = sources.load_questions('toy', 'train') + sources.load_questions('toy', 'test')
    assert len(questions) == len({q.id for q in questions}) == 144
    search = BM25(sources.load_passages('toy')).search
    for question in questions:
        (step,) = question.metadata['decomposition']
        first, second = search([step['query']], 2)[0]
        assert first.id == step['passage'] and question.golden_answers[0] in first.text
        assert question.golden_answers[0] not in second.text or second.id != first.id
    numbers = [q.golden_answers[0] for q in questions]
    assert {numbers.count(n) for n in set(numbers)} == {18}  # guessing is right once in eight times


@pytest.fixture(scope='module')
def warm(tmp_path_factory):
    config = toy_sft.get_config()
    workdir = tmp_path_factory.mktemp('warm')
    return sft.train(sft.parse(config), workdir, settings.to_json(config))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('algorithm', ALGORITHMS)
def test_the_reward_rises(algorithm, warm, tmp_path):
    config = toy.get_config()
    config.policy.model = str(warm)
    config.evaluation.questions = 0
    config.rl.algorithm = algorithm
    config.rl.aggregate = ''
    config.rl.update(ALGORITHMS[algorithm])
    rl.train(train_config.parse(config), tmp_path, settings.to_json(config))
    reward = [row['reward/mean'] for row in jsonl.read_jsonl(tmp_path / 'metrics.jsonl')]
    assert np.mean(reward[-5:]) > np.mean(reward[:5]) + 0.1
    assert (tmp_path / 'curves.png').stat().st_size > 1000


def test_the_study_of_algorithms_covers_them_all():
    from configs.ablations import toy_algorithms

    study = sweep.parse(toy_algorithms.get_config())
    assert {study.config(name, 0).rl.algorithm for name in study.variants} == set(ALGORITHMS)
