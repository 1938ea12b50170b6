"""What several test files share: a tiny model, an engine around it, a random batch; how they start processes."""

import dataclasses
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import pretrained, prng, sharding
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.text import stop
from zerosearch_jax.text.tokenizer import byte_tokenizer
from zerosearch_jax.text.trajectory import TokenSequence, pack

ROOT = pathlib.Path(__file__).parents[1]
FIXTURES = ROOT / 'tests' / 'fixtures'
ENVIRONMENT = os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'}  # of one device; as in conftest
TINY = PRESETS['tiny']
NO_STOPS = stop.compile_table((), [b''] * TINY.vocab_size)

TOLERANCE = 2e-4  # of logits in float32, beside those of transformers


def worst(a, b) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(a) - b).max())


def tiny_params(mesh, seed=0, cfg=TINY):
    """Random weights with peaked predictions: at the initial scale of the embedding all tokens are equally likely."""
    params = sharding.init(transformer.layout(cfg), jax.random.key(seed), mesh)
    return {**params, 'embed': params['embed'] * 10}


def load_random_models(monkeypatch, describe):
    """Loads random weights in place of a model's; `describe` is a function from its name to the ModelConfig."""

    def opened(reference):
        return pretrained.Model(describe(reference), byte_tokenizer(), {})

    def loaded(reference, mesh, dtype='float32'):
        model = opened(reference)
        params = sharding.init(transformer.layout(model.cfg), jax.random.key(0), mesh, dtype)
        return dataclasses.replace(model, params=params)

    monkeypatch.setattr(pretrained, 'open_model', opened)
    monkeypatch.setattr(pretrained, 'load_model', loaded)


def tiny_engine(mesh, params=None, *, cfg=TINY, temperature=1.0, slots=8, capacity=256, steps=4, stops=NO_STOPS, **kw):
    eos_ids = kw.pop('eos_ids', ())
    made = Slots(cfg, mesh, (Role(slots),), capacity=capacity, stop=stops, eos_ids=eos_ids, decode_steps=steps, **kw)
    engine = Engine(made)
    if params is not None:
        engine.load(params, temperature=temperature)
    return engine


def key(i):
    return prng.row_key('policy', 0, i)


def prompt(length, seed=0):
    return tuple(np.random.default_rng((seed, length)).integers(0, TINY.vocab_size, length).tolist())


def drain(engine, requests=(), close=True):
    """Opens requests and steps until all have stopped: {handle: Stopped}."""
    for request in requests:
        engine.open(request)
    stopped = {}
    for _ in range(1000):
        if not engine.active:
            return stopped
        for result in engine.step():
            assert result.handle not in stopped
            stopped[result.handle] = result
            if close:
                engine.close(result.handle)
    raise AssertionError('the engine does not come to an end')


def requests(lengths, budget, **kw):
    return [Request(i, prompt(n, i), key(i), budget, **kw) for i, n in enumerate(lengths)]


@functools.partial(jax.jit, static_argnames='cfg')
def full_logits(params, tokens_BxT, cfg=TINY):
    """Logits of right-padded rows by one uncached forward pass."""
    positions = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
    ones = jnp.ones_like(tokens_BxT)
    hidden = transformer.hidden(params, cfg, tokens_BxT, positions, ones, ones)
    return transformer.logits(params, hidden)


def random_batch(sequences=24, row_length=64, rows_per_micro=8, seed=0):
    """Packed rows of prompts (weight 0) and actions (weight 1) of unequal lengths; three micro-batches."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in rng.integers(8, 60, sequences):
        weights = (np.arange(length) >= length // 3).astype(np.float32)
        tokens = rng.integers(0, TINY.vocab_size, length).astype(np.int32)
        rows.append(TokenSequence(tokens, weights, rng.normal(-5.0, 1.0, length).astype(np.float32) * weights))
    advantages = rng.normal(size=sequences)
    batch = pack(rows, advantages, row_length=row_length, rows_per_micro=rows_per_micro, micro_batches=3)
    ref = rng.normal(-5.0, 1.0, batch.tokens.shape).astype(np.float32) * batch.weights
    return batch.replace(ref_logprobs=ref)
