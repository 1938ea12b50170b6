"""Every algorithm raises the reward on the toy task, with the real engine, search and learner."""

import collections
import itertools
import re

import numpy as np
import pytest

from configs import toy, toy_chains_sft, toy_sft
from configs.ablations import toy_chains as ablation
from zerosearch_jax import pretrained, settings
from zerosearch_jax.data import sources
from zerosearch_jax.data.rows import holds_answer
from zerosearch_jax.run import jsonl
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.search import Query
from zerosearch_jax.simulator.oracle import Oracle
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


# ---------------------------------------------------------------- chains


def chains(name='toy_chains'):
    return [sources.load_questions(name, split) for split in ('train', 'test')], sources.load_passages(name)


def test_a_chain_is_followed_by_its_own_queries_and_by_no_fewer():
    parts, passages = chains()
    search = BM25(passages).search
    for question in itertools.chain(*parts):
        steps, needed = question.metadata['decomposition'], set()
        asked = question.question
        for step in steps:
            found = search([step['query']], 2)[0]
            assert found[0].id == step['passage'] and holds_answer(found[0].text, [step['answer']])
            assert set(step['query'].split()[1:]) <= set(re.findall(r'\w+', asked))  # what was asked, or just found
            needed.add(step['passage'])
            asked = step['answer']
        assert steps[-1]['answer'] in question.golden_answers and len(needed) == len(steps) == question.metadata['hops']


def test_some_things_are_held_out_with_their_friends_and_masters():
    parts, _ = chains()
    counts = [[sum(q.metadata['hops'] == hops for q in part) for hops in (1, 2, 3)] for part in parts]
    assert counts == [[852] * 3, [48] * 3]
    things = [{step['query'].split()[1] for q in part for step in q.metadata['decomposition']} for part in parts]
    assert not things[0] & things[1] and [*map(len, things)] == [852, 48]
    assert len({q.id for part in parts for q in part}) == 2700


def test_told_chains_have_the_final_answer_among_what_the_oracle_brings_for_their_first_hop():
    parts, passages = chains('toy_chains_told')
    plain, without = chains()
    assert [[q.question for q in part] for part in parts] == [[q.question for q in part] for part in plain]
    assert passages[-1] not in without and {p.id for p in without} < {p.id for p in passages}
    oracle = Oracle(BM25(passages).search, passages)
    for question in parts[0]:
        query = Query(None, question, 0, 0, question.metadata['decomposition'][0]['query'])
        (documents,) = oracle.find([query], [(False, False)])
        assert f'{question.id.split()[0]} has number {question.golden_answers[0]}' in ' '.join(documents)
        assert question.metadata['decomposition'][0]['answer'] in ' '.join(documents)


def test_the_study_of_chains_evaluates_every_variant_alike():
    study = sweep.parse(ablation.get_config())
    configs = {name: study.config(name, 0) for name in study.variants}
    assert {(c.data.test, c.evaluation.questions, c.rollout.max_turns) for c in configs.values()} == {
        ('toy_chains', 144, 4)
    }
    engines = {name: c.engine.kind for name, c in configs.items() if c.engine.kind != 'bm25'}
    assert engines.keys() == {name for name, c in configs.items() if c.data.corpus == 'toy_chains_told'}
    search = settings.resolve_name(engines['told'], {}, 'kind')
    queries = ['friend lane', 'number bade']
    assert search(None, queries, 2) == BM25(sources.load_passages('toy_chains')).search(queries, 2)


def test_demonstrations_of_chains_follow_them_or_guess_before_any_hop():
    cfg = sft.parse(toy_chains_sft.get_config())
    model = pretrained.open_model('tiny')
    made, held_out = sft.load_demonstrations(cfg, model)
    assert (len(made), len(held_out)) == (7600, 68)
    texts = [model.tokenizer.decode(s.tokens[s.weights > 0]) for s in (*made, *held_out)]
    searches = collections.Counter((text.count('<search>'), 'I guess' in text) for text in texts)
    guessed = {(0, True): 2556, (1, True): 1704, (2, True): 852}
    assert searches == guessed | {(hops, False): 852 for hops in (1, 2, 3)}
