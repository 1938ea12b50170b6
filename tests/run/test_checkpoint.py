"""Checkpoints: what is kept and put aside stays; what is damaged, too large for the disk or not finite is told."""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from zerosearch_jax import sharding
from zerosearch_jax.run import checkpoint, disk
from zerosearch_jax.run.checkpoint import Checkpoints

PLACE = sharding.named(sharding.make_mesh())


def state(value, size=3):
    params = {'w': jnp.full(size, float(value)), 'b': jnp.ones((2, 2))}
    return jax.device_put({'policy': {'params': params, 'step': jnp.zeros((), jnp.int32)}}, PLACE)


def restore(directory, step=None, size=3):
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        abstract = jax.eval_shape(lambda: state(0, size))
        places = jax.tree.map(lambda _: PLACE, abstract)
        return checkpoints.restore(step or checkpoints.latest(), abstract, places)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        for step in (2, 3):
            checkpoints.save(step, state(step), {'step': step})
    return directory


def test_the_newest_step_is_put_aside_and_outlives_those_that_follow(tmp_path):
    kept = tmp_path / 'last_good'
    with contextlib.closing(Checkpoints(tmp_path / 'checkpoints', keep=2)) as checkpoints:
        checkpoints.put_aside(kept, 9)
        assert not kept.exists()  # nothing yet
        for step in (1, 2, 3):
            checkpoints.save(step, {'w': jnp.full(3, float(step))}, {'step': step})
            checkpoints.put_aside(kept, 2)
        checkpoints.save(4, {'w': jnp.full(3, 4.0)}, {'step': 4})
    assert [p.name for p in kept.iterdir()] == ['2']
    assert json.loads((kept / '2' / 'host' / 'metadata').read_text()) == {'step': 2}
    with ocp.CheckpointManager(kept) as manager:
        restored = manager.restore(2, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    assert (restored.state['w'] == 2).all()


def test_keep_every_fourth_checkpoint_beside_the_newest_two(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path, keep_every=4)) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, state(step), {})
    assert checkpoint.complete_steps(tmp_path) == [4, 8, 9, 10]


def damages(directory):
    """(what, function of a checkpoint's directory) for each way in which each of its parts can be lost or cut."""
    for path in sorted(directory.rglob('*')):
        part = path.relative_to(directory)
        if path.is_dir():
            yield f'no {part}/', lambda where, part=part: shutil.rmtree(where / part)
        else:
            yield f'no {part}', lambda where, part=part: (where / part).unlink()
            for share in (0, 0.5, 0.9):
                size = int(path.stat().st_size * share)
                yield f'{share} of {part}', lambda where, part=part, size=size: os.truncate(where / part, size)
    yield 'an empty directory', lambda where: (shutil.rmtree(where), where.mkdir())


def test_newest_checkpoint_cut_or_incomplete_is_told_with_the_one_to_continue_from(saved, tmp_path):
    told = 0
    for number, (what, damage) in enumerate(damages(saved / '3')):
        directory = tmp_path / f'my run {number}'
        shutil.copytree(saved, directory)
        damage(directory / '3')
        try:
            found, host = restore(directory)
        except ValueError as error:
            line = rf'checkpoint 3 is damaged \(.{{1,160}}\); delete it to continue from 2: rm -r \'{directory / "3"}\''
            assert re.fullmatch(line, str(error)), (what, error)
            told += 1
            shutil.rmtree(directory / '3')
            found, host = restore(directory)
            assert host == {'step': 2} and (found['policy']['params']['w'] == 2).all()
        else:  # what was lost is not needed
            assert host == {'step': 3} and (found['policy']['params']['w'] == 3).all(), what
        shutil.rmtree(directory)
    assert told >= 20


def test_the_only_checkpoint_damaged_means_to_start_over(saved, tmp_path):
    shutil.copytree(saved / '3', tmp_path / '3')
    (tmp_path / '3' / 'host' / 'metadata').unlink()
    with pytest.raises(ValueError, match=r'checkpoint 3 is damaged \(.*host.*\); delete it to start over'):
        restore(tmp_path)


@pytest.mark.parametrize(
    'error',
    [
        PermissionError(errno.EACCES, 'Permission denied', '/c/3/state'),
        ValueError('Error opening "/c/3/state": [OS error 24: Too many open files]'),
        ValueError('Error reading "/c/3/state": [OS error 5: Input/output error]'),
    ],
)
def test_a_disk_that_does_not_let_a_checkpoint_be_read_is_not_damage(saved, monkeypatch, error):
    def fail(*_, **__):
        raise Exception('while reading') from error

    monkeypatch.setattr(ocp.CheckpointManager, 'restore', fail)
    monkeypatch.setattr(ocp.Checkpointer, 'restore', fail)
    for read in (lambda: restore(saved, 3), lambda: checkpoint.read_params(saved / '3')):
        with pytest.raises(OSError, match=r'Permission denied|Too many open files|Input/output error') as raised:
            read()
        assert '3' in raised.value.filename and 'rm -r' not in str(raised.value)


def test_a_checkpoint_that_was_dropped_meanwhile_is_not_to_be_deleted(saved):
    for read in (lambda: restore(saved, 1), lambda: checkpoint.read_params(saved / '1')):
        with pytest.raises(FileNotFoundError, match=rf'^checkpoint 1 is gone from {saved}, which has 2, 3$'):
            read()


def test_another_model_is_not_taken_for_damage(saved):
    with pytest.raises(ValueError, match='does not match the configured model'):
        restore(saved, size=4)


def test_incomplete_checkpoints_are_not_seen(saved, tmp_path):
    shutil.copytree(saved, tmp_path / 'c')
    (tmp_path / 'c' / '4.orbax-checkpoint-tmp').mkdir()
    (tmp_path / 'c' / '5.orbax-checkpoint-tmp-17').mkdir()
    assert checkpoint.complete_steps(tmp_path / 'c') == [2, 3]
    assert restore(tmp_path / 'c')[1] == {'step': 3}
    assert checkpoint.complete_steps(tmp_path / 'nothing') == []


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, bad):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        broken = state(1)
        broken['policy']['params']['b'] = broken['policy']['params']['b'].at[1, 0].set(bad)
        with pytest.raises(ValueError, match=r'after step 1 are not finite .* there is no checkpoint before it'):
            checkpoints.save(1, broken, {})
        checkpoints.save(1, state(1), {})
        with pytest.raises(ValueError, match=rf'after step 2 .* the last checkpoint is of step 1 in {tmp_path}'):
            checkpoints.save(2, broken, {})
    assert checkpoint.complete_steps(tmp_path) == [1]


def test_full_disk_while_a_checkpoint_is_written_is_one_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def save(*_, **__):
        raise ValueError('RESOURCE_EXHAUSTED: write failed [OS error 28: No space left on device]')

    monkeypatch.setattr(checkpoints._manager, 'save', save)
    with pytest.raises(OSError) as raised:
        checkpoints.save(1, state(1, 1000), {})
    expected = rf'{tmp_path}: no space left on this disk \(.* are free, and a checkpoint takes 3\.9 KiB\); free some'
    assert re.match(expected, str(raised.value))
    checkpoints.close()


def test_disk_needed_by_checkpoints_and_exported_weights_is_told_and_refused(tmp_path, monkeypatch, capsys):
    made, size = state(0, 256 * 1024), 2**20 + 20
    free = [10 * size]
    monkeypatch.setattr(disk.shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=free[0]))
    with contextlib.closing(Checkpoints(tmp_path / 'c', keep_every=5)) as checkpoints:
        checkpoints.require_space(made, made['policy']['params'], 20, 1)
        line = f'checkpoints and weights in {tmp_path} will take up to'
        assert f'{line} 9.0 MiB; 10.0 MiB are free' in capsys.readouterr().err  # 2 + 2 + 4 and what is exported
        free[0] = 8 * size
        with pytest.raises(disk.DiskFull, match=r'up to 9\.0 MiB; 8\.0 MiB are free: free some space'):
            checkpoints.require_space(made, made['policy']['params'], 20, 1)
        checkpoints.save(5, made, {})
    with contextlib.closing(Checkpoints(tmp_path / 'c', keep_every=5)) as checkpoints:
        checkpoints.require_space(made, made['policy']['params'], 20, 1)
        assert f'{line} 8.0 MiB' in capsys.readouterr().err  # one is there


@pytest.mark.parametrize(
    ('steps', 'every', 'done', 'aside', 'needed'),
    [
        (1, 1, (), None, 1),
        (10, 4, (), None, 3),  # 4, 8 and 10
        (10, 5, (), None, 2),
        (20, 1, (), None, 4),  # two kept, one put aside, one that is being written
        (20, 1, (8, 9), 6, 1),
        (20, 1, (8, 9), 8, 2),  # a link to what is there
        (10, 4, (4, 7), None, 2),  # 7: told to stop there
    ],
)
def test_disk_needed_is_that_of_checkpoints_to_come(tmp_path, capsys, steps, every, done, aside, needed):
    made = state(0, 256 * 1024)
    with contextlib.closing(Checkpoints(tmp_path / 'c')) as checkpoints:
        for step in done:
            checkpoints.save(step, made, {})
    if aside:
        (tmp_path / 'last_good' / str(aside)).mkdir(parents=True)
    with contextlib.closing(Checkpoints(tmp_path / 'c')) as checkpoints:
        checkpoints.require_space(made, made['policy']['params'], steps, every)
    assert f'will take up to {needed + 1}.0 MiB' in capsys.readouterr().err


def test_the_weights_of_one_checkpoint_are_read_alone(saved, tmp_path):
    read = checkpoint.read_params(saved / '2')
    assert isinstance(read['w'], np.ndarray) and (read['w'] == 2).all() and read['b'].shape == (2, 2)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:  # of launch.sft
        checkpoints.save(1, state(7)['policy'], {})
    assert (checkpoint.read_params(tmp_path / '1')['w'] == 7).all()
    (tmp_path / '1' / 'state' / 'manifest.ocdbt').unlink()
    with pytest.raises(ValueError, match=r'checkpoint 1 is damaged \(.*\); delete it to start over'):
        checkpoint.read_params(tmp_path / '1')


def test_an_error_is_one_line_without_the_tracebacks_of_orbax(saved, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, 'unraisablehook', shown.append)
    checkpoint._silence_threads.cache_clear()
    absl, tasks = logging.getLogger('absl'), logging.getLogger('asyncio')
    monkeypatch.setattr(absl, 'filters', [])
    monkeypatch.setattr(tasks, 'filters', [])
    restore(saved)

    def error(module):
        """As raised by a function of that file."""
        names = {}
        exec(compile('def fail(): raise ValueError("disk")', f'lib/{module}.py', 'exec'), names)
        try:
            names['fail']()
        except ValueError:
            return sys.exc_info()

    def passes(log, path, info, level=logging.ERROR, text='failed'):
        return bool(log.filter(log.makeRecord(log.name, level, path, 1, text, (), info)))

    infos = {name: error(name) for name in ('orbax/x', 'other')} | {'none': None}
    found = {(path, name): passes(absl, path, infos[name]) for path in ('lib/orbax/x.py', 'a.py') for name in infos}
    assert {key for key, passed in found.items() if not passed} == {
        ('lib/orbax/x.py', 'orbax/x'),
        ('lib/orbax/x.py', 'other'),
    }
    assert passes(absl, 'lib/orbax/x.py', None, logging.WARNING)  # it may be of use
    assert [passes(tasks, 'events.py', infos[name]) for name in infos] == [False, True, True]
    assert not passes(tasks, 'events.py', None, text='Task was destroyed: <coro=<f() at lib/orbax/x.py:1>>')

    with warnings.catch_warnings(record=True) as warned:
        checkpoint._silence_threads.cache_clear()
        checkpoint._silence_threads()
        warnings.warn("coroutine 'read' was never awaited", RuntimeWarning, stacklevel=1)
        warnings.warn('another', RuntimeWarning, stacklevel=1)
    assert [str(each.message) for each in warned] == ['another']

    def met(info):
        sys.unraisablehook(types.SimpleNamespace(exc_type=info[0], exc_value=info[1], exc_traceback=info[2]))

    for info in (infos['orbax/x'], infos['other'], (RuntimeError, RuntimeError('Event loop is closed'), None)):
        met(info)
    assert [each.exc_value for each in shown] == [infos['other'][1]]
