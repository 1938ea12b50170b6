"""What a search tells: the rise of the golden answer's log-prob by its documents, against an uncached forward pass."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest
from scripted import BYTES, PARIS, FakeSearch, play, texts_of

from configs import tiny
from zerosearch_jax.models import lora
from zerosearch_jax.rollout.rewards import RewardConfig, Scorer
from zerosearch_jax.run import jsonl
from zerosearch_jax.search.search import Result
from zerosearch_jax.text import protocol
from zerosearch_jax.text.trajectory import Kind
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import information, rl
from zerosearch_jax.train.trainer import Trainer

SEARCH = '<search>what</search>'
PLACE = np.array([*BYTES.encode('<answer>')])
FRANCE = np.array([*BYTES.encode('France')])


def scored(tokens, answer=FRANCE):
    """A value for each answer token that says how many tokens stand before it."""
    return np.arange(len(tokens) - len(answer), len(tokens)) / 100.0


def gains(texts, longest=10**6, search=None):
    """The trajectory of the texts, with the information of its searches, and the probes that were scored."""
    trajectory, *_ = play(texts, search, questions=(PARIS,))
    asked = []

    def scores(probes):
        asked.extend(probes)
        return [scored(p.tokens) for p in probes]

    information.add_gains([trajectory], BYTES, longest, scores)
    return trajectory, asked


def test_a_probe_is_all_that_was_read_so_far_and_the_first_gold_answer():
    trajectory, asked = gains([SEARCH, 'no action', SEARCH, '<answer>x</answer>', ''])
    ends = [1, 3, 7]  # prompt; action, documents; action, notice; action, documents
    for probe, end in zip(asked, ends, strict=True):
        before = [t for s in trajectory.segments[:end] for t in s.tokens]
        np.testing.assert_array_equal(probe.tokens, [*before, *PLACE, *FRANCE])
        assert probe.weights.tolist() == [0.0] * (len(before) + len(PLACE)) + [1.0] * len(FRANCE)
    lengths = [len(p.tokens) / 100 for p in asked]
    assert trajectory.information == pytest.approx(np.diff(lengths))


def test_a_gain_belongs_to_the_turn_of_its_search():
    trajectory, _ = gains(['no action', SEARCH, '<answer>x</answer>', ''])
    (gain,) = trajectory.information
    rewards = Scorer(RewardConfig(information=2.0), BYTES, 2000).by_turn(trajectory)
    assert rewards.tolist() == [0.0, pytest.approx(2 * gain), 0.0] and gain > 0
    assert not Scorer(RewardConfig(), BYTES, 2000).by_turn(trajectory).any()


def test_documents_that_were_not_read_or_leave_no_room_for_the_answer_have_no_gain():
    whole, asked = gains([SEARCH, SEARCH, '<answer>x</answer>', ''])
    trajectory, fewer = gains([SEARCH, SEARCH, '<answer>x</answer>', ''], longest=len(asked[-1].tokens) - 1)
    assert len(fewer) == 2 and trajectory.information == [pytest.approx(whole.information[0]), None]
    same, again = gains([SEARCH, SEARCH, '<answer>x</answer>', ''], longest=len(asked[-1].tokens))
    assert len(again) == 3 and None not in same.information
    long = FakeSearch(lambda query: Result(query, ('a' * 190,) * 5))
    trajectory, asked = gains([SEARCH + ' ' * 300] * 9, search=long)  # the last documents do not fit any more
    unread = len(trajectory.searches) - len(texts_of(trajectory, Kind.OBSERVATION))
    assert len(asked) == 1 + len(trajectory.searches) - unread
    assert trajectory.information[len(asked) - 1 :] == [None] * unread


def test_failed_searches_are_not_scored():
    trajectory, asked = gains([SEARCH], search=FakeSearch(lambda query: Result(query, failure='timeout')))
    assert trajectory.failed and not asked and trajectory.information == []


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A random model that searches in every turn, and documents of a random model."""
    monkeypatch.setitem(protocol.GRAMMARS, 'tags', dataclasses.replace(protocol.TAGS, close='length'))
    monkeypatch.setattr(protocol, 'parse_query', lambda text, grammar: 'why')
    rows = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['because', 'b']} for i in range(4)]
    corpus = [{'id': f'{i}', 'title': f't{i}', 'text': f'why not {i}'} for i in range(3)]
    jsonl.write_jsonl(tmp_path / 'q.jsonl', rows)
    jsonl.write_jsonl(tmp_path / 'c.jsonl', corpus)
    made = tiny.get_config()
    made.data.update(train=str(tmp_path / 'q.jsonl'), corpus=str(tmp_path / 'c.jsonl'))
    made.simulator.kind, made.rollout.max_turns, made.evaluation.questions = 'engine', 2, 0
    made.rollout.update(temperature=0.7, response_tokens=220)
    made.reward.information, made.rl.credit, made.rl.algorithm = 0.5, 'turn', 'rloo'
    return made


def test_gains_are_those_of_the_policy_of_the_step(made):
    trainer = Trainer(train_config.parse(made), None)
    trainer.load_simulator()
    state = trainer.learner.state['policy']
    changed = state.replace(params=jax.tree.map(lambda w: w + 0.05, state.params))
    trainer.learner.state = trainer.learner.state | {'policy': changed}
    found = trainer.collect(1, 0.0)
    assert sum(len(t.searches) for t in found) > len(found)  # more probes than one call of the program takes
    merged = lora.merge(trainer.learner.policy_params)
    for trajectory in found:
        values = []
        for end in (1, 3, 5)[: len(trajectory.searches) + 1]:
            before = [t for s in trajectory.segments[:end] for t in s.tokens]
            gold = BYTES.encode(trajectory.question.golden_answers[0])
            ids = np.array([*before, *PLACE, *gold])
            with jax.set_mesh(trainer.mesh):
                logits = np.asarray(helpers.full_logits(merged, ids[None]))[0] / 0.7
            places = np.arange(len(ids) - len(gold), len(ids))
            values.append(np.mean(jax.nn.log_softmax(logits[places - 1])[np.arange(len(gold)), ids[places]]))
        np.testing.assert_allclose(trajectory.information, np.diff(values), atol=2e-5)
        assert any(abs(gain) > 1e-3 for gain in trajectory.information)


def test_a_run_is_rewarded_with_it_and_says_how_much_that_was(made, tmp_path):
    made.rl.steps = 1
    rl.train(train_config.parse(made), tmp_path / 'run', '{}')
    (step,) = [r for r in jsonl.read_jsonl(tmp_path / 'run' / 'metrics.jsonl') if 'reward/mean' in r]
    rows = jsonl.read_jsonl(tmp_path / 'run' / 'trajectories.jsonl')
    gains = [gain for row in rows for gain in row['information'] if gain is not None]
    assert step['rollout/information'] == pytest.approx(np.mean(gains)) and step['rollout/information_missing'] == 0
    for row in rows:
        earned = [reward for reward in row['turn_rewards'] if reward]
        assert earned == pytest.approx([0.5 * gain for gain in row['information']])
