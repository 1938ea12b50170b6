"""A run's directory: one job at a time, one configuration, and what of it may change; what a full disk says."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import subprocess
import sys

import jax
import pytest
from helpers import ENVIRONMENT, ROOT

from zerosearch_jax import progress
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.run import disk, trained
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.train.config import Config


def test_only_the_first_process_writes_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    with claim(tmp_path / 'run', dict, '{}'):
        assert (tmp_path / 'run').is_dir() and not any((tmp_path / 'run').iterdir())
    monkeypatch.undo()
    with claim(tmp_path / 'run', dict, '{}'):
        assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == ['.lock', 'config.json']


def test_two_processes_in_one_workdir_are_refused(tmp_path):
    """Until the first one is gone, however it went."""
    holds = 'import sys, pathlib\nfrom zerosearch_jax.run.workdir import claim\n'
    holds += 'with claim(pathlib.Path(sys.argv[1]), dict, "{}"):\n    print("held", flush=True)\n    input()'
    command = [sys.executable, '-c', holds, str(tmp_path)]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'cwd': ROOT, 'env': ENVIRONMENT, 'text': True}
    with subprocess.Popen(command, **pipes) as first:
        try:
            assert first.stdout.readline() == 'held\n'
            line = f'{tmp_path} is in use by process {first.pid} on .*; wait for it, stop it, or choose another'
            with pytest.raises(OSError, match=line), claim(tmp_path, dict, '{}'):
                pass
        finally:
            first.kill()
    with claim(tmp_path, dict, '{}'):
        pass


def test_a_second_claim_within_a_process_is_refused_and_the_lock_ends_with_an_error(tmp_path):
    with (
        claim(tmp_path, dict, '{}'),
        pytest.raises(OSError, match='is in use by process'),
        claim(tmp_path, dict, '{}'),
    ):
        pass
    with pytest.raises(ZeroDivisionError), claim(tmp_path, dict, '{}'):
        raise ZeroDivisionError
    with claim(tmp_path, dict, '{}'):
        pass


def test_what_differs_is_told_by_field_with_old_and_new_value(tmp_path):
    old = {'seed': 1, 'rl': {'clip': 0.2, 'kl': 0.1}, 'run': {'trajectories': 8}}
    new = {'seed': 1, 'rl': {'clip': 0.3, 'kl': 0.0, 'epochs': 2}, 'run': {'trajectories': 4}}
    with claim(tmp_path, dict, json.dumps(old)):
        (tmp_path / 'metrics.jsonl').touch()
    line = 'rl.clip = 0.3 (it was 0.2); rl.kl = 0.0 (it was 0.1); rl.epochs = 2 (it was not set); choose another'
    with pytest.raises(ValueError, match=re.escape(line)), claim(tmp_path, dict, json.dumps(new), free=('run',)):
        pass
    assert json.loads((tmp_path / 'config.json').read_text()) == old


@pytest.mark.parametrize('made', ['', 'metrics.jsonl', 'results.jsonl'])
def test_a_job_of_another_kind_does_not_replace_the_configuration(tmp_path, made):
    """Its results have other names, so that those of the run that is there say nothing to it."""
    training = {'schema': Config, 'config_json': '{"seed": 1, "rl": {}, "run": {}}', 'results': ['metrics.jsonl']}
    asked = {'schema': evaluation.Config, 'config_json': '{"seed": 1, "trained": {}}', 'results': ['results.jsonl']}
    for number, (first, second) in enumerate(((training, asked), (asked, training))):
        here = tmp_path / str(number)
        with claim(here, **first):
            (here / made).touch()
        line = f'{here} holds a run of another kind: its config.json has (rl, run|trained); choose another --workdir'
        with pytest.raises(ValueError, match=line), claim(here, **second):
            pass
        assert (here / 'config.json').read_text() == first['config_json']


def test_an_allowed_change_is_logged_and_becomes_the_configuration(tmp_path, capsys):
    old, new = {'seed': 1, 'run': {'trajectories': 8}}, {'seed': 1, 'run': {'trajectories': 4}}
    with claim(tmp_path, dict, json.dumps(old)) as changed:
        assert changed == []
        (tmp_path / 'metrics.jsonl').touch()
    with claim(tmp_path, dict, json.dumps(new), free=('run',)) as changed:
        assert changed == ['run.trajectories']
    assert json.loads((tmp_path / 'config.json').read_text()) == new
    assert 'run.trajectories = 4 (it was 8)' in capsys.readouterr().err


def test_a_field_that_one_configuration_leaves_out_is_at_its_default(tmp_path):
    """As after an update that added it, or where a file of an experiment has not all sections."""
    section = dataclasses.make_dataclass('Section', [('kept', int), ('added', int, 7)])
    schema = dataclasses.make_dataclass('Schema', [('seed', int), ('section', section), ('other', section)])
    texts = {'seed': 1, 'section': {'kept': 2}}, {'seed': 1, 'section': {'kept': 2, 'added': 7}}
    for old, new in (texts, texts[::-1]):
        with claim(tmp_path, schema, json.dumps(old)):
            (tmp_path / 'metrics.jsonl').touch()
        with claim(tmp_path, schema, json.dumps(new)) as changed:
            assert changed == []
    with (
        pytest.raises(ValueError, match=r'section\.added = 8'),
        claim(tmp_path, schema, json.dumps({'seed': 1, 'section': {'kept': 2, 'added': 8}})),
    ):
        pass


def test_what_a_change_calls_for_is_done_before_it_becomes_the_configuration(tmp_path):
    """A start that was killed in between sees the change again."""
    old, new = {'seed': 1, 'run': {'trajectories': 8}}, {'seed': 1, 'run': {'trajectories': 4}}
    with claim(tmp_path, dict, json.dumps(old)):
        (tmp_path / 'metrics.jsonl').touch()
    seen = []

    def killed(changed):
        seen.append((changed, json.loads((tmp_path / 'config.json').read_text())))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), claim(tmp_path, dict, json.dumps(new), free=('run',), prepare=killed):
            pass
    assert seen == [(['run.trajectories'], old)] * 2


def test_lines_are_kept_in_a_run_until_it_is_left(tmp_path):
    with contextlib.suppress(ZeroDivisionError), claim(tmp_path, dict, '{}'):
        progress.log('of the run')
        raise ZeroDivisionError
    progress.log('of what follows')
    assert (tmp_path / 'log.txt').read_text() == 'of the run\n'


def test_a_line_that_a_full_disk_does_not_take_names_the_place(tmp_path):
    (tmp_path / 'log.txt').symlink_to('/dev/full')
    with pytest.raises(disk.DiskFull, match=f'^{tmp_path}.*: no space left'), claim(tmp_path, dict, '{}'):
        progress.log('of the run')


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.ENOSPC, 'No space left on device', 'DIR/metrics.jsonl'),
        OSError(errno.EDQUOT, 'Disk quota exceeded', 'DIR/metrics.jsonl'),
        ValueError('UNKNOWN: Error writing "DIR/metrics.jsonl": [OS error 28: No space left on device]'),
    ],
)
def test_full_disk_is_one_line_with_its_path(tmp_path, error):
    with pytest.raises(disk.DiskFull) as raised, claim(tmp_path, dict, '{}'):
        try:
            raise error
        finally:
            raise RuntimeError('in what followed')
    where = 'DIR/metrics.jsonl' if isinstance(error, OSError) else str(tmp_path)
    assert re.match(rf'{where}: no space left on this disk \(\d.* are free\); free some and', str(raised.value))


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    disk.write_text(tmp_path / 'a.json', 'old')

    def crash(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', crash)
    for write in (disk.write_text, lambda path, _: trained.note_export(path.parent, 1)):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / 'a.json', 'new')
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('a.json', 'old')]


def test_two_processes_may_replace_a_file_at_once(tmp_path, monkeypatch):
    """As the parts of a study do with its report."""
    with disk.replaced(tmp_path / 'a.json') as first:
        monkeypatch.setattr(os, 'getpid', lambda: 1)
        disk.write_text(tmp_path / 'a.json', 'of the second')
        monkeypatch.undo()
        first.write(b'of the first')
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('a.json', 'of the first')]


def test_other_errors_pass_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), disk.explain_full_disk(tmp_path):
        (tmp_path / 'nothing').read_text()


def test_disk_needed_is_told_and_refused_where_it_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, 'disk_usage', lambda _: type('Usage', (), {'free': 3 * 2**30}))
    line = disk.require(tmp_path, 2 * 2**30, 'checkpoints')
    assert line == f'checkpoints in {tmp_path} will take up to 2.0 GiB; 3.0 GiB are free'
    with pytest.raises(disk.DiskFull, match=r'will take up to 4.0 GiB; 3.0 GiB are free: free some space'):
        disk.require(tmp_path, 4 * 2**30, 'checkpoints')
