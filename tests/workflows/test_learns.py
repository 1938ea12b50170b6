"""Reward rises: the real engine and the real update on a random model; with the sign reversed it falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerosearch_jax import prng, sharding
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.rl import state
from zerosearch_jax.rl.algorithms import ALGORITHMS
from zerosearch_jax.rl.losses import Compute, LossConfig
from zerosearch_jax.rl.step import make_update
from zerosearch_jax.text.stop import compile_table
from zerosearch_jax.text.trajectory import Kind, Segment, flatten, pack

TINY = PRESETS['tiny']
MESH = sharding.make_mesh()
PROMPT = tuple(b'write low bytes: ')
SAMPLES, TOKENS, UPDATES = 16, 12, 25


@pytest.fixture(scope='module')
def machinery():
    """Engine, optimizer, update and shardings: compiled once for all runs."""
    layout = transformer.layout(TINY)
    never = compile_table((), [b''] * TINY.vocab_size)
    slots = Slots(TINY, MESH, (Role(SAMPLES),), capacity=64, stop=never, eos_ids=(), decode_steps=TOKENS)
    engine = Engine(slots)
    tx = state.optimizer(state.OptimizerConfig(learning_rate=1e-2, weight_decay=0.0), UPDATES)
    shardings = state.state_shardings(layout, tx, MESH)
    return engine, tx, make_update(TINY, tx, shardings, LossConfig(kl=0.0), Compute(chunk=32)), shardings


def rewards_of_training(machinery, algorithm, sign):
    """Mean reward of every step: the share of sampled ids below half the vocabulary, so 0.5 by chance."""
    engine, tx, update, shardings = machinery
    params = sharding.init(transformer.layout(TINY), jax.random.key(0), MESH)
    with jax.set_mesh(MESH):
        current = state.create(params, tx, shardings)
    history = []
    for number in range(UPDATES):
        engine.load(current.params)
        for sample in range(SAMPLES):
            engine.open(Request(sample, PROMPT, prng.row_key('policy', 0, number, 'q', sample), TOKENS))
        stopped = []
        while engine.active:
            stopped += engine.step()
        for one in stopped:
            engine.close(one.handle)
        rewards = np.array([np.mean(np.array(one.tokens) < TINY.vocab_size // 2) for one in stopped])
        history.append(rewards.mean())
        advantages = ALGORITHMS[algorithm].advantage(rewards, np.zeros(SAMPLES, int), np.ones(SAMPLES, bool))
        prompt = Segment(Kind.PROMPT, PROMPT)
        sequences = [flatten([prompt, Segment(Kind.ACTION, one.tokens, one.logprobs)]) for one in stopped]
        with jax.set_mesh(MESH):
            batch = pack(sequences, sign * advantages, row_length=32, rows_per_micro=SAMPLES)
            current, metrics = update(current, {}, batch)
        # the engine's log-probs are the trainer's: the ratio is one
        assert float(metrics['logprob_gap_max']) < 1e-4
        assert jnp.isfinite(metrics['loss'])
    return history


@pytest.mark.thorough
@pytest.mark.parametrize('algorithm', ['grpo', 'reinforce_baseline'])
def test_reward_rises(machinery, algorithm):
    history = rewards_of_training(machinery, algorithm, 1)
    assert 0.3 < history[0] < 0.7
    assert np.mean(history[-3:]) > history[0] + 0.25


def test_reward_falls_where_the_sign_is_reversed(machinery):
    history = rewards_of_training(machinery, 'grpo', -1)
    assert np.mean(history[-3:]) < history[0] - 0.25
