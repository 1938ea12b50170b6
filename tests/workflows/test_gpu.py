"""What only a GPU runs, in bfloat16 and float32: `JAX_PLATFORMS=cuda python -m pytest -m gpu`, a minute on one.

Float32 products are asked for in full precision: a GPU's default rounds their operands to ten bits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import FIXTURES, TINY, drain, full_logits, random_batch, requests, tiny_engine, tiny_params

from configs import tiny
from zerosearch_jax import settings, sharding
from zerosearch_jax.models import attention, transformer
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.run import jsonl
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl
from zerosearch_jax.weights import loading

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != 'gpu', reason='no GPU, or JAX_PLATFORMS is not cuda'),
]


@pytest.fixture(autouse=True)
def exact_float32():
    with jax.default_matmul_precision('highest'):
        yield


def apart(got, want) -> float:
    """The norm of the difference over that of what is wanted."""
    got, want = (np.asarray(x, np.float32) for x in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def packed(length: int, heads: int, kv_heads: int, size: int):
    """Normal q, k, v of two rows: a shared prefix (1), two that see it (2, 3), one alone (4), padding (0)."""
    rng = np.random.default_rng(length)
    q, k, v = (rng.normal(size=(2, length, n, size)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    segments = np.searchsorted([0.2, 0.5, 0.7, 0.9], np.arange(length) / length, side='right') + 1
    segments = np.where(segments == 5, 0, segments)[None].repeat(2, 0)
    segments[1] = np.arange(length) < length - 3
    return q, k, v, segments, np.where((segments == 2) | (segments == 3), 1, segments)


@pytest.mark.parametrize('model', ['smollm2-135m', 'qwen2.5-3b'])
@pytest.mark.parametrize('length', [768, 2048])
def test_the_fused_kernel_agrees_in_value_and_gradient(model, length):
    cfg = PRESETS[model]
    assert attention.choose(cfg, 'bfloat16', sharding.make_mesh(), length).name == 'cudnn'
    *inputs, segments, prefixes = packed(length, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim)
    direction = np.random.default_rng(1).normal(size=(2, length, cfg.num_heads * cfg.head_dim)).astype(np.float32)

    def both(form, dtype):
        def total(*qkv):
            out = attention.causal_attention(segments, prefixes, form)(*(x.astype(dtype) for x in qkv))
            return jnp.sum(out.astype(jnp.float32) * direction), out

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*inputs)

    (d_inputs, out), (d_expected, expected) = both('cudnn', jnp.bfloat16), both('chunked', jnp.float32)
    assert apart(out, expected) < 1e-2
    for name, got, want in zip('qkv', d_inputs, d_expected, strict=True):
        assert apart(got, want) < 1.5e-2, name


@pytest.mark.parametrize('tokens', [1, 128])
def test_the_kernel_that_reads_the_cache_agrees(tokens):
    """With matrix products in float32; the third row is idle, and the fourth fills its slot."""
    cfg, mesh, rng = PRESETS['qwen2.5-1.5b'], sharding.make_mesh(), np.random.default_rng(tokens)
    assert kv.choose(cfg, 'bfloat16', mesh) == 'cudnn'
    q, k, v = (rng.normal(size=(4, tokens, n, cfg.head_dim)) for n in (cfg.num_heads, *[cfg.num_kv_heads] * 2))
    keys, values = rng.normal(size=(2, 4, 512, cfg.num_kv_heads, cfg.head_dim))
    slots = None if tokens == 1 else jnp.array([2, 0, 0, 3])
    starts, counts = jnp.array([5, 200, 0, 512 - tokens]), jnp.array([tokens, 1, 0, tokens])

    def attended(form, layer, dtype):
        layer, inputs = (jax.tree.map(lambda x: jnp.asarray(x, dtype), x) for x in (layer, (q, k, v)))
        with jax.set_mesh(mesh):
            run = jax.jit(functools.partial(kv.attend, form, span=512))
            return run(layer, *inputs, kv.Place(slots, starts, counts))[0]

    expected = attended('einsum', (keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)), jnp.float32)
    got = attended('cudnn', (keys, values), jnp.bfloat16)
    assert np.isfinite(got).all()
    written = np.arange(tokens)[None] < np.asarray(counts)[:, None]
    assert apart(got[written], expected[written]) < 1e-2


@pytest.mark.parametrize('family', ['llama', 'llama3scaled', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('dtype, most', [('float32', 2e-5), ('bfloat16', 2e-2)])
def test_logits_are_those_of_transformers(family, dtype, most):
    path, mesh = FIXTURES / f'parity_{family}', sharding.make_mesh()
    cfg = loading.read_config(path)
    params = loading.load(path, cfg, mesh, dtype, progress=False)
    stored = np.load(path / 'logits.npz')
    ids = stored['ids']
    positions, ones = np.broadcast_to(np.arange(ids.shape[1]), ids.shape), np.ones_like(ids)

    @jax.jit
    def forward(params):
        return transformer.logits(params, transformer.hidden(params, cfg, ids, positions, ones, ones, dtype=dtype))

    with jax.set_mesh(mesh):
        assert apart(forward(params), stored['logits']) < most


@pytest.mark.parametrize('dtype, most', [('float32', 1e-3), ('bfloat16', 0.2)])
def test_generation_agrees_with_the_uncached_forward(dtype, most):
    mesh = sharding.make_mesh()
    params, asked = tiny_params(mesh), requests((1, 5, 60, 128, 129, 250), 40)
    done = drain(tiny_engine(mesh, params, temperature=0.0, slots=4, capacity=512, dtype=dtype), asked)
    rows = np.zeros((len(asked), 320), np.int32)
    for row, request in zip(rows, asked, strict=True):
        row[: len(request.prompt) + 40] = *request.prompt, *done[request.handle].tokens
    with jax.set_mesh(mesh):
        logprobs = np.asarray(jax.nn.log_softmax(full_logits(params, rows)))
    for row, request in zip(logprobs, asked, strict=True):
        result, predicting = done[request.handle], row[len(request.prompt) - 1 :][:40]
        said = predicting[np.arange(40), result.tokens]
        assert np.abs(said - result.logprobs).max() < most
        assert (predicting.max(-1) - said).max() < most  # greedy, up to ties


def test_an_update_in_bfloat16_agrees_with_float32():
    mesh, batch = sharding.make_mesh(), random_batch()
    tx = optax.with_extra_args_support(optax.sgd(1.0))
    shardings = state.state_shardings(transformer.layout(TINY), tx, mesh)

    def moved(compute):
        update = step.make_update(TINY, tx, shardings, losses.LossConfig(kl=0.1), compute)
        with jax.set_mesh(mesh):
            before = tiny_params(mesh)
            made, measured = update(state.create(jax.tree.map(jnp.copy, before), tx, shardings), {}, batch)
            return jax.tree.map(jnp.subtract, made.params, before), measured

    fused, expected = moved(losses.Compute('bfloat16', attention='cudnn')), moved(losses.Compute())
    assert apart(fused[1]['logprobs'], expected[1]['logprobs']) < 1e-2
    for (path, got), want in zip(jax.tree.leaves_with_path(fused[0]), jax.tree.leaves(expected[0]), strict=True):
        assert apart(got, want) < 5e-2, path


def test_a_run(tmp_path):
    config = tiny.get_config()
    config.policy.dtype = config.simulator.dtype = 'bfloat16'
    config.rl.update(steps=2, entropy=0.01)  # rewards are all 0
    rl.train(train_config.parse(config), tmp_path / 'run', settings.to_json(config))
    rows = jsonl.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
    norms = [row['loss/grad_norm'] for row in rows if 'loss/grad_norm' in row]
    assert len(norms) == 2 and all(np.isfinite(norms)) and min(norms) > 0
