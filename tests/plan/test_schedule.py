"""The schedule that a plan is made with: small ones by hand, and one beside a step of real engines."""

import collections

import pytest

from configs import tiny
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.plan.schedule import Turn, Workload, episodes, play
from zerosearch_jax.rollout import rollout
from zerosearch_jax.simulator import prompts, writers
from zerosearch_jax.text import protocol
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train.trainer import Trainer


def one_a_token(name, tokens):
    return max(tokens, default=0)


def policy(tokens, written, sampled, **more):
    return Turn('policy', tokens, written, sampled, **more)


ONE = [policy(3, 3, 10, first=True, last=True)]


def test_rows_share_calls_and_wait_for_slots():
    counts = play([ONE] * 4, {'e': {'policy': 4}}, 8, one_a_token)
    assert counts == {'e': {'decodes': 2, 'extends': 3, 'rows': 8, 'tokens': 4 * (3 + 11)}}
    counts = play([ONE] * 4, {'e': {'policy': 3}}, 8, one_a_token)
    assert counts == {'e': {'decodes': 4, 'extends': 6, 'rows': 8, 'tokens': 4 * (3 + 11)}}


def test_the_fuller_engine_is_called_and_a_slot_is_kept_while_a_search_is_under_way():
    search = [
        policy(3, 3, 8, first=True),
        Turn('simulator', 5, 5, 16, first=True, last=True),
        policy(20, 9, 8, last=True),
    ]
    two = {'p': {'policy': 2}, 's': {'simulator': 2}}
    counts = play([search, search, ONE], two, 8, one_a_token)
    # both write; both search, in two calls, while the third waits for a slot; both read; the third, in two calls
    assert [(name, count['decodes'], count['rows']) for name, count in counts.items()] == [('p', 4, 6), ('s', 2, 4)]
    assert counts['p']['extends'] == 3 + 9 + 3 and counts['s']['extends'] == 5
    # with a slot more the policy goes on first, since as many rows decode there as there
    three = {'p': {'policy': 3}, 's': {'simulator': 2}}
    assert play([search, ONE], three, 8, one_a_token)['p']['decodes'] == 3


def test_one_engine_for_both_roles_is_called_less():
    search = [
        policy(1, 1, 8, first=True),
        Turn('simulator', 1, 1, 16, first=True, last=True),
        policy(9, 1, 8, last=True),
    ]
    both = [search, [policy(1, 1, 32, first=True, last=True)]]
    apart = play(both, {'p': {'policy': 2}, 's': {'simulator': 2}}, 8, one_a_token)
    shared = play(both, {'p and s': {'policy': 2, 'simulator': 2}}, 8, one_a_token)
    assert shared['p and s']['decodes'] == 4 < sum(count['decodes'] for count in apart.values())
    assert shared['p and s']['rows'] == sum(count['rows'] for count in apart.values())


def config(**rollout_changes):
    made = tiny.get_config()
    made.policy.lora_rank = 0
    made.rollout.update(questions=4, group=4, max_turns=2, slots=8, **rollout_changes)
    return train_config.parse(made)


@pytest.mark.parametrize('kind', ['model', 'self', 'oracle'])
def test_the_episodes_of_a_workload_have_its_means(kind):
    made = tiny.get_config()
    made.simulator.update(kind=kind, max_tokens=200)
    made.rollout.update(questions=50, group=8, max_turns=3, turn_tokens=400)
    cfg = train_config.parse(made)
    turns = [turn for each in episodes(cfg, Workload(searches=1.4, sampled=120, written=100)) for turn in each]
    searches, actions = ([t for t in turns if t.role == role] for role in ('simulator', 'policy'))
    assert len(searches) == pytest.approx(400 * 1.4, rel=0.04)
    assert sum(t.sampled for t in actions) == pytest.approx(400 * 121, rel=0.04)
    assert sum(t.sampled for t in searches) == pytest.approx(len(searches) * (1 if kind == 'oracle' else 100), rel=0.04)
    assert {25, 74} <= {t.sampled for t in actions}  # half of 50 and one and a half
    assert sum(t.written for t in actions if t.first) == 50 * cfg.rollout.prompt_tokens
    assert turns == [turn for each in episodes(cfg, Workload(1.4, 120, 100)) for turn in each]
    longest = [turn for each in episodes(cfg, Workload(searches=0, sampled=999)) for turn in each]
    assert {t.sampled for t in longest} == {400, 1}


@pytest.mark.thorough
def test_a_real_step_calls_its_engines_as_often(monkeypatch, tmp_path):
    """Random models the policy's turns end at random, in a search each."""
    cfg = config(turn_tokens=40, response_tokens=256)
    trainer = Trainer(cfg, tmp_path)
    trainer.load_simulator()
    roles = {trainer.policy_engine: 'policy', trainer.simulator.engine: 'simulator'}
    calls, turns, running = collections.Counter(), collections.defaultdict(list), {}

    def recorded(name, before=lambda *a: None, after=lambda *a: None):
        original = getattr(Engine, name)

        def call(self, *args, **kwargs):
            before(self, *args)
            result = original(self, *args, **kwargs)
            after(self, result, *args)
            return result

        monkeypatch.setattr(Engine, name, call)

    def episode(engine, handle):
        return handle if roles[engine] == 'policy' else handle[0]

    def begin(engine, handle, first):
        running[episode(engine, handle)] = Turn(roles[engine], 0, 0, 0, first=first)

    def stepped(engine, stopped, *_):
        calls[roles[engine]] += 1
        for one in stopped:
            turn = running[episode(engine, one.handle)]
            turns[episode(engine, one.handle)].append(turn._replace(sampled=len(one.tokens)))

    def closed(engine, handle):
        own = turns[episode(engine, handle)]
        own[-1] = own[-1]._replace(last=True)

    recorded('open', lambda engine, request: begin(engine, request.handle, True))
    recorded('extend', lambda engine, handle, *_: begin(engine, handle, False))
    recorded('step', after=stepped)
    recorded('close', closed)
    trainer.policy_engine._slots._sampling['eos_ids'] = tuple(range(30))
    monkeypatch.setattr(Slots, '_reason', lambda self, slot, last: protocol.SEARCH_STOP)
    monkeypatch.setattr(rollout.protocol, 'parse_query', lambda text, grammar: 'q')
    monkeypatch.setattr(writers, 'completion', lambda handle, text: writers.Completion(handle, 'd'))
    monkeypatch.setattr(prompts, 'parse_documents', lambda text, count, words: (('d',) * count, ''))
    trainer.collect(1, 0.0)
    assert len(turns) == 16 and {len(own) for own in turns.values()} == {5}
    assert len({turn.sampled for own in turns.values() for turn in own}) > 5
    slots = {'policy': {'policy': cfg.rollout.slots}, 'simulator': {'simulator': cfg.simulator.slots}}
    counts = play(list(turns.values()), slots, cfg.rollout.decode_steps, one_a_token)
    assert {name: count['decodes'] for name, count in counts.items()} == dict(calls)
