"""Two and four real processes compute what one process of eight devices does."""

import os
import pathlib
import pickle
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, TINY, random_batch, tiny_params

from zerosearch_jax.models import transformer
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.run.checkpoint import Checkpoints
from zerosearch_jax.sharding import make_mesh

pytestmark = pytest.mark.thorough

HERE = pathlib.Path(__file__).parent


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    return together(1, tmp_path_factory.mktemp('one'))[0]


@pytest.fixture(scope='module', params=[2, 4])
def run(request, one, tmp_path_factory):
    """(results of the processes, results of one, directory of the checkpoints that they saved)."""
    directory = tmp_path_factory.mktemp('several')
    return together(request.param, directory), one, directory / 'checkpoints'


def together(count, directory):
    """Results of so many processes that work as one.

    Without cached programs: those that jax 0.12 reads back on CPU do not agree on the order of their collectives.
    """
    paths = os.pathsep.join([str(ROOT / 'tests'), str(ROOT)])
    env = os.environ | {'PYTHONPATH': paths, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    command, port = [sys.executable, str(HERE / 'two_process_worker.py')], str(free_port())
    logs = [directory / f'log_{i}' for i in range(count)]
    processes = [
        subprocess.Popen(
            [*command, str(i), str(count), port, str(directory)],
            env=env,
            stdout=log.open('w'),
            stderr=subprocess.STDOUT,
        )
        for i, log in enumerate(logs)
    ]
    try:
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(timeout=240) == 0, log.read_text()[-5000:]
    finally:
        for process in processes:
            process.kill()  # a process whose peer died would wait for it
    return [pickle.loads((directory / f'results_{i}.pickle').read_bytes()) for i in range(count)]


def generated(results):
    return {key: (r['tokens'], r['reason']) for key, r in results['generations'].items()}


def logprobs(results):
    return [r['logprobs'] for _, r in sorted(results['generations'].items())]


def test_all_processes_see_the_same(run):
    assert len({str(results) for results in run[0]}) == 1


def test_the_outside_is_called_once_for_all_and_kept(run):
    (a, *_), _, _ = run
    first, second, error = a['calls']
    assert error == 'no more money'  # on both
    assert len({answer.split(',')[0] for answer in first + second}) == 1  # one process alone calls
    assert [q.id for q in a['left']['rag']['x']] == ['q0']  # all know what process 0 has on its disk
    assert second[0] == first[0]  # from the log
    assert second[1] != first[1]  # a failure is asked for again
    assert len(second) == 3


def test_an_audit_is_written_once(run):
    (several, *_), one, _ = run
    assert several['audit'] == one['audit'] and len(one['audit']) == 6


def test_weights_and_tokenizer_are_exported_by_one_process(run):
    _, _, checkpoints = run
    assert {path.name for path in checkpoints.parent.glob('export_*/model/*.json')} >= {'tokenizer.json'}
    assert [path.name for path in checkpoints.parent.glob('export_*')] == ['export_0']


def test_generations_equal_those_of_one_process(run):
    (several, *_), one, _ = run
    assert len(one['generations']) == 2 * (8 + 8 + 10) + 8
    assert generated(several) == generated(one)
    for a, b in zip(logprobs(several), logprobs(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_updates_equal_those_of_one_process(run):
    (several, *_), one, _ = run
    for a, b in zip(several['metrics'], one['metrics'], strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    assert several['norms'] == pytest.approx(one['norms'], rel=1e-5)
    assert one['metrics'][0]['loss'] != one['metrics'][1]['loss']


@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 1, 1)], ids=str)
def test_one_process_resumes_what_several_saved(run, shape):
    _, one, directory = run
    mesh, layout = make_mesh(shape), transformer.layout(TINY)
    tx = state.optimizer(state.OptimizerConfig(learning_rate=1e-3), 10)
    shardings = state.state_shardings(layout, tx, mesh)
    saved = Checkpoints(directory)
    assert saved.latest() == 1
    with jax.set_mesh(mesh):
        now, host = saved.restore(1, state.create(tiny_params(mesh), tx, shardings), shardings)
        saved.close()
        assert host == {'step': 1, 'note': 'saved by all'} and int(now.step) == 1
        update = step.make_update(TINY, tx, shardings, losses.LossConfig(), losses.Compute(chunk=32))
        now, metrics = update(now, {}, random_batch(seed=1))
    second = {name: float(value) for name, value in metrics.items() if not value.ndim}
    assert second == pytest.approx(one['metrics'][1], rel=1e-5, abs=1e-6)
    leaves = jax.tree_util.tree_leaves_with_path(now.params)
    norms = {jax.tree_util.keystr(path): float(np.linalg.norm(w)) for path, w in leaves}
    assert norms == pytest.approx(one['norms'], rel=1e-5)
