"""The policy as its own search engine: its current weights write the documents, or those that it started with."""

import dataclasses
import itertools

import jax
import pytest
from safetensors.numpy import load_file

from configs import tiny
from configs.ablations import simulator as study
from zerosearch_jax import settings
from zerosearch_jax.data.rows import Question
from zerosearch_jax.run import jsonl
from zerosearch_jax.search.search import Query
from zerosearch_jax.simulator import prompts
from zerosearch_jax.text import protocol
from zerosearch_jax.text.trajectory import Kind, flatten
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl
from zerosearch_jax.train.trainer import Trainer


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A random model in both roles: every action searches, and whatever the simulator writes is a document."""

    def parse(text, count, words):
        return tuple(f'{i} {protocol.neutralize(text)}' for i in range(count)), ''

    monkeypatch.setattr(prompts, 'parse_documents', parse)
    monkeypatch.setitem(protocol.GRAMMARS, 'tags', dataclasses.replace(protocol.TAGS, close='length'))
    monkeypatch.setattr(protocol, 'parse_query', lambda text, grammar: 'why')
    rows = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b']} for i in range(4)]
    jsonl.write_jsonl(tmp_path / 'q.jsonl', rows)
    made = tiny.get_config()
    made.data.update(train=str(tmp_path / 'q.jsonl'))
    made.simulator.update(kind='self', model='', template='prompted', prompt_tokens=1200)
    made.rl.update(entropy=0.5, row_length=1024)  # or random weights would stay as they are
    made.optimizer.learning_rate = 0.05
    made.evaluation.questions = 0
    return made


def opened(made):
    trainer = Trainer(train_config.parse(made), None)
    trainer.load_simulator()
    return trainer


def documents(trainer, temperature=1.0):
    """What a search of the first step returns under the policy's weights of now."""
    trainer.policy_engine.load(trainer.learner.policy_params, temperature=temperature)
    search = trainer.simulator.source(seed=0, step=1, noise=0.0)
    search.submit(Query('h', Question('q', 'why?', ('b',)), 0, 0, 'why'))
    (result,) = itertools.chain.from_iterable(search.step() for _ in iter(lambda: search.active, 0))
    trainer.policy_engine.unload()
    return result.documents


def change(trainer):
    state = trainer.learner.state
    policy = state['policy'].replace(params=jax.tree.map(lambda w: w + 0.1, state['policy'].params))
    trainer.learner.state = state | {'policy': policy}


@pytest.mark.thorough
@pytest.mark.parametrize('rank', [4, pytest.param(0, marks=pytest.mark.thorough)])
def test_live_documents_change_with_the_weights_and_those_of_a_frozen_copy_do_not(made, rank):
    made.policy.lora_rank = rank
    live = opened(made)
    made.simulator.live = False
    frozen = opened(made)
    before = documents(live)
    assert documents(live) == before == documents(frozen)  # with the same weights they are the same
    assert documents(live, temperature=0.0) == before  # which is the policy's
    assert live.simulator.engine._slots is live.policy_engine._slots
    assert (frozen.simulator.engine._slots is frozen.policy_engine._slots) == bool(rank)  # adapters share a base
    for trainer in (live, frozen):
        change(trainer)
    assert documents(live) != before == documents(frozen)


def test_what_the_policy_wrote_as_search_engine_carries_no_gradient(made):
    trainer = opened(made)
    found = trainer.collect(1, 0.0)
    searched = [t for t in found if t.searches]
    assert len(searched) > 1 and not any(t.failed for t in found)
    for trajectory in searched:
        prompt, action, document, *_ = trajectory.segments
        assert document.kind is Kind.OBSERVATION and not document.logprobs
        begin = len(prompt.tokens) + len(action.tokens)
        weights = flatten(trajectory.segments).weights
        assert not weights[begin : begin + len(document.tokens)].any()
        assert weights.sum() == trajectory.action_tokens
    tokens = trainer.policy_engine.decoded_tokens
    assert tokens == sum(t.action_tokens for t in found)  # what the simulator wrote is counted apart
    assert trainer.simulator.engine.decoded_tokens == trainer.generated_tokens - tokens > 0
    assert [role.stops for role in trainer.policy_engine._slots.roles] == [True, False]


def outcome(workdir):
    rows = jsonl.read_jsonl(workdir / 'metrics.jsonl')
    kept = [{k: v for k, v in row.items() if not k.startswith('speed/')} for row in rows]
    weights = load_file(workdir / 'adapter.safetensors')  # the order of a file's names is random
    bits = {name: array.tobytes() for name, array in weights.items()}
    return kept, (workdir / 'trajectories.jsonl').read_text(), bits


@pytest.mark.thorough
@pytest.mark.parametrize('live', [True, False])
def test_a_run_that_was_killed_and_resumed_is_equal(made, tmp_path, monkeypatch, live):
    made.simulator.live, made.rl.steps = live, 2

    def run(name):
        rl.train(train_config.parse(made), tmp_path / name, settings.to_json(made))
        return outcome(tmp_path / name)

    whole = run('whole')
    searches = [s for row in jsonl.read_jsonl(tmp_path / 'whole' / 'trajectories.jsonl') for s in row['searches']]
    assert len({s['documents'][0] for s in searches}) == len(searches) > made.rl.steps
    step = rl.train_step
    dies = lambda trainer, number, noise: step(trainer, number, noise) if number < 2 else 1 / 0  # noqa: E731
    monkeypatch.setattr(rl, 'train_step', dies)
    with pytest.raises(ZeroDivisionError):
        run('killed')
    monkeypatch.setattr(rl, 'train_step', step)
    assert run('killed') == whole


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        (
            {'adapter': 'search_simulator'},
            "kind = 'self' writes with the policy's weights: set adapter='', got 'search",
        ),
        ({'weights': 'int8'}, "weights that change: .*weights='as_loaded', or live=False"),
        ({'remember': 'file'}, "weights that change: set remember=''"),
    ],
)
def test_what_makes_no_sense_is_refused(made, fields, said):
    made.simulator.update(fields)
    with pytest.raises(ValueError, match=said):
        train_config.parse(made)


def test_a_frozen_copy_may_be_in_int8_and_is_what_the_policy_starts_with(made):
    made.simulator.update(live=False, weights='int8', remember='file')
    made.policy.adapter = 'miniature_policy'
    simulator = train_config.with_copy(train_config.parse(made)).simulator
    assert (simulator.kind, simulator.model, simulator.adapter) == ('model', 'tiny', 'miniature_policy')


def test_the_arm_of_the_study_is_a_configuration():
    arm, made = study.VARIANTS['itself'], study.get_config().base
    made.simulator.update(arm['simulator'])
    cfg = train_config.parse(made)
    assert cfg.simulator.kind == 'self' and cfg.simulator.live and cfg.simulator.template == 'prompted'
