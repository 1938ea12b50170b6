"""Groups of a step: who is replaced, what is counted of them, and which state is kept when a step looks wrong."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from configs import toy_hops
from zerosearch_jax.data.rows import Question
from zerosearch_jax.rollout.rollout import Trajectory
from zerosearch_jax.run import alarms
from zerosearch_jax.search.search import OutsideFailed, Query, Result
from zerosearch_jax.text.trajectory import Kind, Segment
from zerosearch_jax.train import config, rl, trainer
from zerosearch_jax.train.config import DataConfig
from zerosearch_jax.train.learner import Learned

QUESTIONS, GROUP = 3, 2
TOY = config.parse(toy_hops.get_config())


def trajectory(question, sample, reward):
    prompt = Segment(Kind.PROMPT, (1,))
    return Trajectory(question, sample, [prompt], status=str(reward), answer=None)


def sampler(rewards_of, rounds, pool=12):
    """A trainer whose episodes of a question have given rewards, a question's each time it is asked."""
    made = object.__new__(trainer.Trainer)
    made.cfg = SimpleNamespace(
        rollout=SimpleNamespace(questions=QUESTIONS, group=GROUP),
        rl=SimpleNamespace(dynamic_sampling=rounds, deepest=1.0),
        seed=0,
        data=DataConfig(),
    )
    made.train_questions = [Question(f'q{i}', f'question {i}', ('a',)) for i in range(pool)]
    made.asked = []

    def collect(step, noise, questions=()):
        questions = questions or made.questions_of(step)
        made.asked.append([q.id for q in questions])
        return [trajectory(q, s, rewards_of(q, s)) for q in questions for s in range(GROUP)]

    made.collect, made.score = collect, lambda t: float(t.status)
    made.score.by_turn = lambda t: np.array([float(t.status)])
    made.learner = SimpleNamespace(learn=lambda *given: made.given.append(given) or nothing(given))
    made.given, made.mesh = [], SimpleNamespace(size=1)
    made.model = SimpleNamespace(tokenizer=SimpleNamespace(pieces=lambda tokens: []))
    made.policy_engine, made.simulator = SimpleNamespace(decoded_tokens=0), SimpleNamespace(engine=None)
    made._unanswered = []
    return made


def nothing(given):
    return Learned({}, np.zeros(len(given[1])), [None] * len(given[1]))


def test_dynamic_sampling_never_asks_a_question_of_the_step_again():
    made = sampler(lambda question, sample: 0.0, rounds=5)
    made.collect_dynamic(1, 0.0)
    asked = [*itertools.chain(*made.asked)]
    assert len(made.asked) > 2 and len(asked) == len({*asked})


def test_what_is_trained_on_is_chosen_by_the_number_of_searches():
    made = sampler(lambda question, sample: float(sample), 0)
    made.cfg.rl.deepest, collect = 0.5, made.collect

    def searching(*step):
        found = collect(*step)
        for number, one in enumerate(found):
            one.searches += [Result(Query(None, one.question, 0, 0, 'x'))] * (number % GROUP)
        return found

    made.collect = searching
    rl.train_step(made, 1, 0.0)
    ((*_, valid, searches),) = made.given
    assert valid.all() and searches == [0, 1] * 3


def failed(found):
    """Episodes whose one search failed."""
    for one in found:
        one.searches.append(Result(Query(None, one.question, 0, 0, 'x'), failure='too_long'))
        one.status = 'search_failed'
    return found


def test_a_question_of_dynamic_sampling_whose_searches_fail_is_counted_and_ends_nothing():
    made = sampler(lambda question, sample: float(sample) if question.id != 'q0' else 0.0, rounds=1, pool=6)
    collect = made.collect

    def failing(step, noise, questions=()):
        found = collect(step, noise, questions)
        return failed(found) if questions else found

    made.collect, made.questions_of = failing, lambda step: made.train_questions[:3]
    made.score = lambda t: 0.0 if t.failed else float(t.status)
    kept, replaced, rounds = made.collect_dynamic(1, 0.0)
    assert [t.failed for t in kept] == [True] * 2 + [False] * 4 and len(replaced) == 2 and rounds == 1
    made.score = lambda t: 0.0  # so that the round asks for several questions
    with pytest.raises(OutsideFailed, match='6 of 6 failed'):
        made.collect_dynamic(1, 0.0)
    made.collect = lambda *_: failed(collect(*_))
    with pytest.raises(OutsideFailed, match='6 of 6 failed'):
        made.collect_dynamic(1, 0.0)


def test_every_group_is_replaced_as_long_as_there_are_unseen_questions():
    made = sampler(lambda *_: 0.0, rounds=3, pool=12)
    made.collect_dynamic(1, 0.0)
    assert [len(ids) for ids in made.asked] == [3] * 4


def test_the_mean_reward_under_dynamic_sampling_covers_all_sampled_groups():
    """Of the first questions one has different rewards; what replaces the others has them too."""
    first = {}
    made = sampler(lambda question, sample: sample * float(first.setdefault(question.id, len(first)) not in (0, 1)), 1)
    measured, rows = rl.train_step(made, 1, 0.0)
    assert [len(asked) for asked in made.asked] == [3, 2]
    assert measured['reward/kept'] == 0.5 and measured['reward/mean'] == pytest.approx(3 / 10)
    assert measured['rollout/zero_variance_groups'] == pytest.approx(2 / 5)
    assert [row['reward'] for row in rows] == [0.0, 1.0] * 3  # and those are trained on
    assert 'reward/kept' not in rl.train_step(sampler(lambda *_: 1.0, 0), 1, 0.0)[0]


def test_the_samples_of_a_question_are_one_group():
    made = sampler(lambda question, sample: float(sample), rounds=0)
    rl.train_step(made, 1, 0.0)
    ((_, _, rewards, groups, valid, searches),) = made.given
    assert groups.tolist() == [0, 0, 1, 1, 2, 2]  # as the trajectories: question by question
    assert [*map(sum, rewards)] == [0.0, 1.0] * 3 and valid.all() and searches == [0] * 6


def test_last_good_is_the_state_whose_rollouts_were_the_last_good_ones(tmp_path):
    """Rollouts of step 5 look wrong: they show the weights after step 4; those after step 3 made good ones."""
    kept, past = [], rl.Past()
    checkpoints = SimpleNamespace(put_aside=lambda path, step: kept.append((path.name, step)))
    cfg = SimpleNamespace(sounding=alarms.AlarmConfig(window=3))
    for step in range(1, 6):
        row = dict.fromkeys(alarms.WATCHED, 1.0) | {
            'loss/kl': 0.0,
            'loss/logprob_gap_max': 0.0,
            'rollout/failed': 0.0,
            'rollout/zero_variance_groups': 0.0,
            'loss/entropy': 1.0 if step < 5 else 0.0,
        }
        rl._sound_alarms(past, tmp_path, cfg, checkpoints, step, row)
    assert kept == [('last_good', 3)]


def test_the_first_steps_ask_questions_of_enough_hops_and_all_later_ones_any():
    made = sampler(lambda *_: 0.0, rounds=1)
    for number, question in enumerate(made.train_questions):
        question.metadata['decomposition'] = [{'query': 'what', 'answer': 'a'}] * (1 + number % 3)
    asked = lambda step: [len(q.metadata['decomposition']) for q in made.questions_of(step)]  # noqa: E731
    made.cfg.data = DataConfig(first_hops=2, first_steps=4)
    assert all(min(asked(step)) >= 2 for step in range(1, 5)) and min(min(asked(step)) for step in range(5, 9)) == 1
    assert (
        len({q.id for step in (1, 2) for q in made.questions_of(step)}) == 6
    )  # none twice before all eight were asked
    assert all(len(q.metadata['decomposition']) >= 2 for q in made._spare_questions(4, 0))
    for alone in ({'first_hops': 2}, {'first_steps': 4}):
        with pytest.raises(ValueError, match='set both, or neither'):
            DataConfig(**alone)


def test_first_steps_without_enough_questions_are_refused():
    with pytest.raises(ValueError, match=r'config.data.first_hops = 4 leaves 0 questions for the first steps'):
        trainer.load_questions(
            dataclasses.replace(TOY, data=dataclasses.replace(TOY.data, first_hops=4, first_steps=1))
        )


def test_an_alarm_ends_a_run_by_the_limits_of_today_and_none_misses_searches_where_there_are_none():
    calm = dict.fromkeys(alarms.WATCHED, 1.0) | {'loss/logprob_gap_max': 0.0, 'rollout/failed': 0.0, 'loss/kl': 9.0}
    past = rl.Past([calm | {'rollout/zero_variance_groups': 0.0, 'rollout/searches': 0.0}] * 5, ['kl', 'searches'])
    cfg = lambda **limits: dataclasses.replace(TOY, alarms=alarms.AlarmConfig(**limits))  # noqa: E731
    assert past.stopped(cfg(stop=True)) == ['kl', 'searches'] and past.stopped(cfg()) == []
    assert past.stopped(cfg(stop=True, kl=10.0, searches=0.0)) == []
    alone = dataclasses.replace(TOY.rollout, max_turns=0, prompt='reason')
    none = dataclasses.replace(TOY.simulator, kind='none')
    assert past.stopped(dataclasses.replace(cfg(stop=True), rollout=alone, simulator=none)) == ['kl']


def test_a_test_set_smaller_than_a_whole_batch_is_no_evaluation_in_silence():
    asked = dataclasses.replace(TOY.evaluation, questions=48, whole_batches_of=10**6)
    train, test = trainer.load_questions(TOY)
    with pytest.raises(
        ValueError, match=r'questions are left .*, fewer than config.evaluation.whole_batches_of = 1000000'
    ):
        trainer._sized(dataclasses.replace(TOY, evaluation=asked), train, test)
    none = dataclasses.replace(asked, questions=0)
    assert trainer._sized(dataclasses.replace(TOY, evaluation=none), train, [])[1] == []
