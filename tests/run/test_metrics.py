import json
import logging
import math
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch_jax.run import curves, trackers
from zerosearch_jax.run.curves import plot_curves
from zerosearch_jax.run.jsonl import read_jsonl
from zerosearch_jax.run.metrics import MetricWriter
from zerosearch_jax.run.trackers import TrackersConfig


def open_writer(workdir, resume_step=0):
    return MetricWriter(workdir, resume_step=resume_step, trackers=TrackersConfig(tensorboard=False))


def test_rows_are_plain_json(tmp_path):
    with open_writer(tmp_path / 'new' / 'run') as writer:
        writer.write(1, {'reward/mean': np.float32(0.5), 'loss/kl': math.nan, 'n': np.int64(3)})
        writer.write(2, {'reward/mean': jnp.asarray(0.25, jnp.bfloat16), 'loss/kl': -math.inf})
        lines = (tmp_path / 'new/run/metrics.jsonl').read_text().splitlines()  # flushed while still open
    assert lines == [
        '{"step": 1, "reward/mean": 0.5, "loss/kl": null, "n": 3}',
        '{"step": 2, "reward/mean": 0.25, "loss/kl": null}',
    ]


def test_append_nested_rows_and_odd_text(tmp_path):
    text = 'line\u2028separator \ud800 </answer>\n"quoted"'
    with open_writer(tmp_path) as writer:
        writer.append('samples', [{'step': 1, 'text': text, 'turns': ({'ids': np.arange(2), 'x': math.inf},)}])
        writer.append('samples', ({'step': s} for s in (2, 3)))
    assert read_jsonl(tmp_path / 'samples.jsonl') == [
        {'step': 1, 'text': text, 'turns': [{'ids': [0, 1], 'x': None}]},
        {'step': 2},
        {'step': 3},
    ]


@pytest.mark.parametrize('bad', [{}, {'step': None}, {'step': 1.0}, {'step': True}])
def test_a_row_without_step_writes_nothing(tmp_path, bad):
    with open_writer(tmp_path) as writer:
        with pytest.raises(ValueError, match=r'samples\.jsonl needs an integer step'):
            writer.append('samples', [{'step': 1}, bad])
        writer.append('samples', [{'step': 2}])
    assert read_jsonl(tmp_path / 'samples.jsonl') == [{'step': 2}]


def test_name_is_no_path(tmp_path):
    with open_writer(tmp_path) as writer, pytest.raises(ValueError, match='plain file name'):
        writer.append('../samples', [])


@pytest.mark.parametrize(('resume', 'kept'), [(-1, []), (0, [0]), (2, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_resume_truncates_every_file(tmp_path, resume, kept):
    with open_writer(tmp_path) as writer:
        for step in range(4):
            writer.write(step, {'x': step / 3})
            writer.append('samples', [{'step': step, 'i': i} for i in range(2)])
    before = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    (tmp_path / 'notes.txt').write_text('mine')
    with open_writer(tmp_path, resume):
        pass
    assert (tmp_path / 'metrics.jsonl').read_bytes() == b''.join(before[: len(kept)])  # byte for byte
    assert [r['step'] for r in read_jsonl(tmp_path / 'samples.jsonl')] == [s for s in kept for _ in range(2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['metrics.jsonl', 'notes.txt', 'samples.jsonl']


@given(cut=st.integers(0, 60))
def test_any_torn_end_is_dropped(tmp_path_factory, cut):
    tmp_path = tmp_path_factory.mktemp('torn')
    whole = b''.join(b'{"step": %d, "t": "\xc3\xa9}"}\n' % s for s in range(3))
    torn = whole[: max(0, len(whole) - cut)]
    (tmp_path / 'metrics.jsonl').write_bytes(torn)
    complete = torn.count(b'"}')
    assert [r['step'] for r in read_jsonl(tmp_path / 'metrics.jsonl')] == list(range(complete))
    with open_writer(tmp_path, resume_step=5) as writer:
        writer.write(6, {})
    assert [r['step'] for r in read_jsonl(tmp_path / 'metrics.jsonl')] == [*range(complete), 6]


@pytest.mark.parametrize('line', ['garbage', '[1]', ''])
def test_damage_before_the_end_is_an_error_and_keeps_the_file(tmp_path, line):
    text = f'{{"step": 1}}\n{line}\n{{"step": 2}}\n'
    (tmp_path / 'metrics.jsonl').write_text(text)
    with pytest.raises(ValueError, match=r'metrics\.jsonl:2: not a JSON object'):
        open_writer(tmp_path, resume_step=1)
    assert (tmp_path / 'metrics.jsonl').read_text() == text


def test_foreign_rows_are_an_error(tmp_path):
    (tmp_path / 'mine.jsonl').write_text('{"question": "q"}\n')
    with pytest.raises(ValueError, match=r'mine\.jsonl:1: a row without an integer step'):
        open_writer(tmp_path)
    assert read_jsonl(tmp_path / 'mine.jsonl') == [{'question': 'q'}]


def test_sigkill_loses_no_written_row(tmp_path):
    code = (
        'import os, signal, sys; from zerosearch_jax.run.metrics import MetricWriter;'
        'from zerosearch_jax.run.trackers import TrackersConfig;'
        'w = MetricWriter(sys.argv[1], trackers=TrackersConfig(tensorboard=False));'
        'w.write(1, {"x": 1.0}); w.write(2, {"x": 2.0}); os.kill(os.getpid(), signal.SIGKILL)'
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=os.getcwd(), check=False)
    assert done.returncode == -signal.SIGKILL
    with open_writer(tmp_path, resume_step=1) as writer:
        writer.write(2, {'x': 2.0})
    assert read_jsonl(tmp_path / 'metrics.jsonl') == [{'step': 1, 'x': 1.0}, {'step': 2, 'x': 2.0}]


def test_tensorboard_events(tmp_path):
    pytest.importorskip('tensorboardX')
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format that is read below)

    with MetricWriter(tmp_path, resume_step=3) as writer:
        writer.write(4, {'reward/mean': np.float32(0.5), 'loss/kl': math.nan})
    (path,) = (tmp_path / 'tensorboard').iterdir()
    data, events = path.read_bytes(), []
    while data:  # a TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], 'little')
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(4, 'reward/mean', 0.5)]
    assert any(e.HasField('session_log') and e.step == 4 for e in events)  # hides steps from 4 on of a past run


def test_without_tensorboard_it_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    with caplog.at_level(logging.WARNING), MetricWriter(tmp_path) as writer:
        writer.write(1, {'x': 1.0})
    assert [r.message for r in caplog.records] == ['tensorboardX is not installed: metrics go to metrics.jsonl only']
    assert read_jsonl(tmp_path / 'metrics.jsonl') == [{'step': 1, 'x': 1.0}]


def test_series_skips_what_is_no_number():
    rows = [{'step': 2, 'a': 1, 'b': None}, {'step': 1, 'a': None, 'b': None, 'c': 'text'}]
    series = curves.series_of(rows)
    assert series.keys() == {'step', 'a'}
    assert series['a'][0][0] == 1 and math.isnan(series['a'][0][1]) and series['a'][1] == (2, 1.0)


def test_curves(tmp_path):
    pytest.importorskip('matplotlib')
    assert plot_curves(tmp_path) is None  # no file
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "unknown": 2.0, "loss/kl": null}\n')
    assert plot_curves(tmp_path) is None  # no known key with a number
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps({'step': 1, 'reward/mean': 0.5, 'rollout/noise': 0.1, 'eval/before/em': 0.2}))
    path = plot_curves(tmp_path)
    assert path == tmp_path / 'curves.png' and path.read_bytes().startswith(b'\x89PNG')


def test_one_point_shows_a_marker_and_a_twin_has_its_own_axis(tmp_path):
    figure = pytest.importorskip('matplotlib.figure').Figure()
    axes = figure.add_subplot()
    curves._draw(axes, curves.PANELS[0], {'run': {'reward/mean': [(1, 0.5)], 'rollout/noise': [(1, 0.1)]}})
    left, right = figure.axes
    assert [line.get_marker() for a in (left, right) for line in a.lines] == ['o', 'o']
    assert list(right.lines[0].get_ydata()) == [0.1]


def test_runs_are_told_apart_by_colour_and_their_metrics_by_dashes():
    figure = pytest.importorskip('matplotlib.figure').Figure()
    axes = figure.add_subplot()
    scores = {'reward/em': [(1, 0.5)], 'reward/f1': [(1, 0.6)], 'rollout/noise': [(1, 0.1)]}
    curves._draw(axes, curves.PANELS[1], {'runs/a': scores, 'runs/b': {'reward/em': [(1, 0.7), (2, 0.8)]}})
    drawn = [(line.get_label(), line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert drawn == [('runs/a: em', 'C0', '-'), ('runs/a: f1', 'C0', '--'), ('runs/b', 'C1', '-')]
    assert figure.axes == [axes]  # no second scale: whose noise it is would not be told


def test_nothing_heavy_is_imported():
    code = (
        'import sys, zerosearch_jax.run.metrics; print([m for m in ("matplotlib", "tensorboardX") if m in sys.modules])'
    )
    out = subprocess.run([sys.executable, '-c', code], cwd=os.getcwd(), capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


# ---------------------------------------------------------------- trackers


def tensorboard_values(directory):
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in directory.iterdir():
        data = path.read_bytes()
        while data:  # a TFRecord: length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], 'little')
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return [(event.step, value) for event in events for value in event.summary.value]


def test_tensorboard_shows_texts_as_they_are_and_the_curves(tmp_path):
    pytest.importorskip('tensorboardX')
    with MetricWriter(tmp_path) as writer:
        writer.write(3, {'reward/mean': 0.5})
        writer.show(3, 'trajectories', ['<think>a</think>\n# b\r```', 'c'])
        writer.draw(3)
    found = [
        (step, value) for step, value in tensorboard_values(tmp_path / 'tensorboard') if value.tag != 'reward/mean'
    ]
    texts = [value.tensor.string_val[0].decode() for _, value in found[:2]]
    assert texts == ['    <think>a</think>\n    # b\n    ```', '    c']  # nothing outside of a block of code
    assert {step for step, _ in found} == {3} and found[2][1].image.encoded_image_string.startswith(b'\x89PNG')
    assert (tmp_path / 'curves.png').exists()


def wandb_runs(workdir):
    return sorted((workdir / 'wandb').glob('offline-run-*'))


def whole_log(run):
    """The records of a run, which the package's own process writes a moment after the run has ended."""
    (log,) = run.glob('*.wandb')
    for _ in range(200):
        if b'reward/mean' in log.read_bytes():
            break
        time.sleep(0.05)
    return log.read_bytes()


def test_a_resumed_run_continues_its_run_of_weights_and_biases(tmp_path, monkeypatch, capsys):
    pytest.importorskip('wandb', reason='wandb is not installed: no offline run')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    (tmp_path / 'config.json').write_text('{"seed": 5}')
    for step in (1, 2):
        cfg = TrackersConfig(tensorboard=False, wandb='zerosearch-test')
        with MetricWriter(tmp_path, resume_step=step - 1, trackers=cfg) as writer:
            writer.write(step, {'reward/mean': 0.25 * step, 'loss/kl': math.nan})
            writer.show(step, 'trajectories', ['<b>bold</b>'])
            writer.draw(step)
    identity = (tmp_path / 'wandb_id').read_text()
    runs = wandb_runs(tmp_path)
    assert len(runs) == 2 and all(run.name.endswith(f'-{identity}') for run in runs)
    told = capsys.readouterr()
    assert told.err.count('Weights & Biases: offline, in ') == 2 and told.out == ''
    for step, run in enumerate(runs, start=1):
        written = whole_log(run)
        assert b'reward/mean' in written and str(0.25 * step).encode() in written and b'zerosearch-test' in written
        (page,) = run.glob('files/media/html/trajectories/*.html')
        assert '&lt;b&gt;bold&lt;/b&gt;' in page.read_text() and list(run.glob('files/media/images/*.png'))


def test_a_project_without_the_package_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    trackers.check('')
    with pytest.raises(ValueError, match=r"project 'x', but its package is missing: pip install -e '.\[wandb\]'"):
        trackers.check('x')
    with pytest.raises(ValueError, match='its package is missing'):
        MetricWriter(tmp_path, trackers=TrackersConfig(wandb='x'))
