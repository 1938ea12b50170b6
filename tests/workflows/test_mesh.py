"""Loss, gradients and greedy samples do not depend on the mesh, and nothing is resharded on the way."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ROOT, TINY, drain, random_batch, requests, tiny_engine, tiny_params
from jax._src import array

from zerosearch_jax import sharding
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.sharding import make_mesh

MESHES = [(1, 4, 2), (2, 2, 2), (8, 1, 1), (1, 2, 4)]  # the last has more parts along tensor than key-value heads
LAYOUT = transformer.layout(TINY)
LOSS = losses.LossConfig(clip_high=0.3, kl=0.1, entropy=0.01)
COMPUTE = losses.Compute(chunk=32, remat='dots')


def recording_optimizer():
    """AdamW whose state also holds the gradients themselves, as the trace of a momentum of 0."""
    return optax.chain(optax.trace(decay=0.0), state.optimizer(state.OptimizerConfig(learning_rate=1e-3), 10))


@functools.cache
def two_updates(shape, rank=0):
    """Everything that the tests below look at, after one and after two updates on a mesh."""
    mesh, tx = make_mesh(shape), recording_optimizer()
    params, frozen, layout = tiny_params(mesh), {}, LAYOUT
    if rank:
        layout = lora.layout(TINY, rank)
        params, frozen = sharding.init(layout, jax.random.key(1), mesh), params
        params = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(jax.random.key(2), w.shape), params)
    shardings = state.state_shardings(layout, tx, mesh)
    update = step.make_update(TINY, tx, shardings, LOSS, COMPUTE, 0.8)
    with jax.set_mesh(mesh):
        run = {'shardings': shardings, 'created': state.create(params, tx, shardings), 'metrics': []}
        run['created_at'] = jax.tree.map(lambda x: x.sharding, run['created'])
        now = run.pop('created')
        for seed in range(2):
            now, metrics = update(now, frozen, random_batch(seed=seed))
            run['metrics'].append({name: float(value) for name, value in metrics.items() if not value.ndim})
            run.setdefault('gradients', jax.device_get(now.opt_state[0].trace))
            run.setdefault('once', jax.device_get(now.params))
            run.setdefault('updated_at', jax.tree.map(lambda x: x.sharding, now))
        run.update(compiled=update._cache_size(), step=int(now.step))
    return run


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a) - b) / max(np.linalg.norm(b), 1e-12))


@pytest.mark.thorough
@pytest.mark.parametrize(('shape', 'rank'), [*((shape, 0) for shape in MESHES), ((2, 2, 2), 4)], ids=str)
def test_loss_and_gradients_do_not_depend_on_the_mesh(shape, rank):
    one, many = two_updates((1, 1, 1), rank), two_updates(shape, rank)
    for a, b in zip(many['metrics'], one['metrics'], strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    assert one['metrics'][0]['grad_norm'] > 0.1 and one['metrics'][0] != one['metrics'][1]
    errors = jax.tree.map(relative, many['gradients'], one['gradients'])
    assert max(jax.tree.leaves(errors)) <= 1e-5, errors
    assert all(np.linalg.norm(g) > 1e-6 for g in jax.tree.leaves(one['gradients']))


@pytest.mark.thorough
@pytest.mark.parametrize('shape', [(1, 1, 1), *MESHES], ids=str)
def test_moments_are_sharded_like_their_weights_and_stay_so(shape):
    run = two_updates(shape)
    weights = sharding.shardings(LAYOUT, make_mesh(shape))
    if shape[1:] != (1, 1):
        assert not weights['layers']['gate'].is_fully_replicated  # else this would prove nothing
    for shardings in (run['created_at'], run['updated_at']):
        moments = [s for s in jax.tree.leaves(shardings.opt_state, is_leaf=has_moments) if has_moments(s)]
        assert len(moments) == 1
        for tree in (shardings.params, moments[0].mu, moments[0].nu, shardings.opt_state[0].trace):
            same = jax.tree.map(lambda s, w, p: s.is_equivalent_to(w, len(p.shape)), tree, weights, LAYOUT)
            assert all(jax.tree.leaves(same)), same
        assert shardings.step.is_fully_replicated
    assert run['compiled'] == 1 and run['step'] == 2


def has_moments(x):
    return isinstance(x, optax.ScaleByAdamState)


def test_metrics_and_batches_may_be_uneven_over_the_mesh():
    """A micro-batch whose rows are mostly padding gives the same sums on any mesh."""
    batch = random_batch(sequences=3)
    results = []
    for shape in [(1, 1, 1), (2, 2, 2)]:
        mesh = make_mesh(shape)
        with jax.set_mesh(mesh):
            scored = step.score({}, tiny_params(mesh), batch, 1.0, cfg=TINY, compute=COMPUTE)
        results.append(np.asarray(scored)[batch.weights > 0])
    assert np.abs(results[0]).min() > 0
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5)


@functools.cache
def samples(shape, temperature):
    mesh = make_mesh(shape)
    engine = tiny_engine(mesh, tiny_params(mesh), temperature=temperature)
    asked = requests((1, 5, 20, 40, 9, 9, 33, 60, 2, 70), 10)
    shared = [dataclasses.replace(r, handle=('shared', r.handle), prompt=asked[3].prompt) for r in asked[:3]]
    return drain(engine, [*asked, *shared])


@pytest.mark.parametrize('temperature', [0.0, 1.0], ids=['greedy', 'sampled'])
@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_samples_do_not_depend_on_the_mesh(shape, temperature):
    one, many = samples((1, 1, 1), temperature), samples(shape, temperature)
    assert {h: r.tokens for h, r in many.items()} == {h: r.tokens for h, r in one.items()}
    for handle in one:
        np.testing.assert_allclose(many[handle].logprobs, one[handle].logprobs, rtol=1e-5, atol=1e-5)
    assert len({r.tokens for r in one.values()}) >= 10


@contextlib.contextmanager
def no_weights_over_the_host():
    """Fails where a sharded array is gathered on the host, as device_put to another mesh does."""
    gathered = array.ArrayImpl._value

    def refused(x):
        return gathered.fget(x) if x.is_fully_replicated else pytest.fail(f'{x.shape} came to the host')

    array.ArrayImpl._value = property(refused)
    try:
        yield
    finally:
        array.ArrayImpl._value = gathered


@pytest.mark.parametrize(('own', 'shape'), [((1, 8, 1), (8, 1, 1)), ((1, 4, 2), (2, 1, 4))], ids=str)
def test_samples_do_not_depend_on_the_mesh_that_the_weights_come_from(own, shape):
    weights = tiny_params(make_mesh(own))
    with no_weights_over_the_host():
        engine = tiny_engine(make_mesh(shape), weights, temperature=1.0)
    found, expected = drain(engine, requests((1, 5, 20, 40, 9, 9, 33, 60, 2, 70), 10)), samples((1, 1, 1), 1.0)
    assert {h: r.tokens for h, r in found.items()} == {h: expected[h].tokens for h in found}


@functools.cache
def samples_of_two_roles(own, shape):
    """Of two adapters beside one base, which are on the mesh `own` and generate on the mesh `shape`."""
    own, roles = make_mesh(own), (Role(8), Role(8, stops=False))
    slots = Slots(TINY, make_mesh(shape), roles, capacity=128, stop=helpers.NO_STOPS, eos_ids=(), decode_steps=4)
    done = []
    for role, rank in enumerate((2, 3)):
        adapter = sharding.init(lora.layout(TINY, rank), jax.random.key(role), own)
        adapter = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(jax.random.key(2), w.shape), adapter)
        Engine(slots, role).load(lora.combine(tiny_params(own), adapter))
    for role in range(2):
        done.append({h: r.tokens for h, r in drain(Engine(slots, role), requests((5, 20, 40, 9), 10)).items()})
    return done


@pytest.mark.thorough
def test_roles_that_share_a_base_sample_the_same_on_another_mesh():
    one = samples_of_two_roles((1, 1, 1), (1, 1, 1))
    assert samples_of_two_roles((1, 4, 2), (8, 1, 1)) == one and one[0] != one[1]


WHOLE = 'Involuntary full rematerialization'


def compile_log(program):
    """What XLA says on stderr while it compiles `program` in a process of its own, without the compilation cache."""
    env = os.environ | {
        'JAX_ENABLE_COMPILATION_CACHE': 'false',
        'PYTHONPATH': os.pathsep.join(map(str, (pathlib.Path(__file__).parent, ROOT / 'tests', ROOT))),
        'TF_CPP_MIN_LOG_LEVEL': '0',
    }
    done = subprocess.run(
        [sys.executable, '-c', f'import test_mesh; test_mesh.{program}'],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def compile_everything():
    """Compiles what training runs, on meshes that shard every axis."""
    for shape in [*MESHES, (1, 1, 8)]:
        mesh = make_mesh(shape)
        cfg = dataclasses.replace(TINY, num_heads=8, num_kv_heads=8, head_dim=8, tie_embeddings=shape != (1, 4, 2))
        layout, tx = transformer.layout(cfg), state.optimizer(state.OptimizerConfig(), 10)
        shardings = state.state_shardings(layout, tx, mesh)
        params = sharding.init(layout, jax.random.key(0), mesh)
        update = step.make_update(cfg, tx, shardings, LOSS, COMPUTE)
        batch = random_batch(sequences=4)
        with jax.set_mesh(mesh):
            if shape == (2, 2, 2):  # where the trap is
                drain(tiny_engine(mesh, params, cfg=cfg), requests((5,), 3))
            now = state.create(params, tx, shardings)
            update.lower(now, {}, batch).compile()


def compile_a_bad_reshard():
    """From 'embed' to 'batch' sharding: what a gather from a table sharded over fsdp leads to (on jax 0.10)."""
    mesh = make_mesh((2, 2, 2))
    x = jax.ShapeDtypeStruct((8, 64, 64), jnp.float32, sharding=sharding.named(mesh, None, None, 'embed'))
    with jax.set_mesh(mesh):
        jax.jit(lambda x: sharding.constrain(jnp.sin(x), 'batch', None, None)).lower(x).compile()


@pytest.mark.thorough
def test_xla_rematerializes_no_array_whole():
    assert WHOLE not in compile_log('compile_everything()')


def test_that_rematerialization_would_be_seen():
    assert WHOLE in compile_log('compile_a_bad_reshard()')
