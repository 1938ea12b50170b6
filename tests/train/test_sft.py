"""Supervised fine-tuning end to end on a tiny model: it learns, resumes exactly, stops early, and exports the best."""

import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from configs.common import sections
from zerosearch_jax import settings, sharding
from zerosearch_jax.run import disk, jsonl, trained
from zerosearch_jax.train import sft
from zerosearch_jax.weights import loading, trees


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp('pairs') / 'pairs.jsonl'
    made = []
    for i in range(24):
        label = ('useful', 'noisy')[i % 2]
        made.append(
            {'prompt': f'{i % 5}\n{label} documents:', 'completion': f'Doc 1: {label} {i % 3}', 'fold': i // 2 % 4}
        )
    path.write_text('\n'.join(map(json.dumps, made)))
    return str(path)


def config(rows, **changes):
    made = sections(sft.Config)
    made.model.update(model='tiny', lora_rank=4)
    made.demos.update(source=rows, count=0, held_out=6, folds=(0, 1, 2), held_out_folds=(3,))
    made.optimizer.update(learning_rate=3e-2, weight_decay=0.0)
    made.sft.update(**{'steps': 8, 'batch': 4, 'evaluate_every': 2, 'row_length': 128} | changes)
    return made


def run(workdir, made):
    return sft.train(sft.parse(made), workdir, settings.to_json(made))


def adapter(path):
    tree, _ = trees.load_tree(path)
    return {name: np.asarray(leaf, np.float32) for name, leaf in tree['layers'].items()}


def timeless(workdir):
    written = jsonl.read_jsonl(workdir / 'metrics.jsonl')
    return [{key: value for key, value in row.items() if not key.startswith('speed')} for row in written]


@pytest.fixture(scope='module')
def whole(rows, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    return run(workdir, config(rows)), workdir


def test_it_learns_what_it_is_shown(whole):
    losses = [row['loss/held_out'] for row in timeless(whole[1]) if 'loss/held_out' in row]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.3
    assert (whole[1] / 'curves.png').stat().st_size > 1000


@pytest.mark.thorough
def test_an_interrupted_run_ends_as_the_one_that_was_not(whole, rows, tmp_path, monkeypatch):
    learn = sft._Learner.learn

    def dies(self, sequences):
        if self.step == 5:
            raise KeyboardInterrupt
        return learn(self, sequences)

    made = config(rows)
    monkeypatch.setattr(sft._Learner, 'learn', dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, made)
    monkeypatch.undo()
    path = run(tmp_path, made)
    first, second = adapter(whole[0]), adapter(path)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert timeless(tmp_path) == timeless(whole[1])


def test_a_run_that_is_done_needs_no_space(whole, rows, monkeypatch):
    full = types.SimpleNamespace(free=0)
    monkeypatch.setattr(disk.shutil, 'disk_usage', lambda _: full)
    assert run(whole[1], config(rows)) == whole[0]


@pytest.mark.thorough
def test_it_stops_early_and_exports_the_best(rows, tmp_path):
    made = config(rows, steps=40, patience=2, evaluate_every=1)
    made.optimizer.learning_rate = 0.5  # too high: the held-out loss soon rises
    path = run(tmp_path, made)
    losses = [row['loss/held_out'] for row in timeless(tmp_path)]
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 2 < 40
    assert json.loads((tmp_path / 'config.json').read_text()) == json.loads(settings.to_json(made))
    short = tmp_path / 'short'  # a constant rate: the first steps of a shorter run are the same
    made.sft.update(steps=best, patience=0)
    expected = adapter(run(short, made))
    assert all(np.array_equal(expected[name], value) for name, value in adapter(path).items())


def test_stopping_early_needs_held_out_demonstrations(rows, tmp_path):
    made = config(rows, steps=2, patience=1)
    made.demos.held_out = 0
    with pytest.raises(ValueError, match=r'config\.sft\.patience watches the held-out loss'):
        run(tmp_path, made)


def test_what_is_taught_from_a_run_names_the_files_that_it_began_with(whole, rows, tmp_path):
    made = config(rows, steps=1)
    made.model.model = str(whole[1])
    assert trained.find(str(run(tmp_path, made))).base == 'tiny'
    model = json.loads((tmp_path / 'config.json').read_text())['model']
    assert (model['model'], model['adapter']) == ('tiny', str(whole[0]))
    run(tmp_path, made)


def test_folds_and_labels_are_kept_apart(rows):
    cfg = sft.parse(config(rows))
    taught, held_out = sft._read(cfg)
    assert len(taught) == 18 and len(held_out) == 6
    assert [item.label for item in taught] == ['useful', 'noisy'] * 9
    assert not {item.id for item in taught} & {item.id for item in held_out}
    without = dataclasses.replace(cfg, demos=dataclasses.replace(cfg.demos, held_out_folds=(), folds=(), count=10))
    taught, held_out = sft._read(without)
    assert (len(taught), len(held_out)) == (10, 6)
    assert not {item.id for item in taught} & {item.id for item in held_out}


def test_all_weights_can_be_trained_and_are_exported_whole(rows, tmp_path):
    made = config(rows, steps=1)
    made.model.lora_rank = 0
    made.optimizer.learning_rate = 1e-3
    path = run(tmp_path, made)
    assert path == pathlib.Path(tmp_path) / 'model'
    cfg = loading.read_config(path)
    loaded = loading.load(path, cfg, sharding.make_mesh())
    assert sum(x.size for x in jax.tree.leaves(loaded)) > 10_000


def test_what_is_longer_than_a_row_is_left_out_and_said(rows, tmp_path, capsys):
    lines = pathlib.Path(rows).read_text().splitlines()
    long = json.loads(lines[0]) | {'completion': 'x' * 200}
    (tmp_path / 'long.jsonl').write_text('\n'.join([*lines, json.dumps(long), json.dumps(long | {'label': 'noisy'})]))
    made = config(str(tmp_path / 'long.jsonl'), steps=1)
    run(tmp_path / 'run', made)
    said = capsys.readouterr().err
    assert '2 demonstrations of more than 128 tokens (a row, or the model) are left out' in said
    assert '18 demonstrations' in said


def test_rows_that_would_teach_a_control_token_or_nothing_are_refused_or_counted(rows, tmp_path, capsys):
    bad = tmp_path / 'bad.jsonl'
    bad.write_text(
        pathlib.Path(rows).read_text() + '\n' + json.dumps({'prompt': 'a', 'completion': '<|im_end|>', 'fold': 3})
    )
    with pytest.raises(ValueError, match=r"bad.jsonl:25: a text holds '<.im_end.>'"):
        run(tmp_path / 'run', config(str(bad), steps=1))
    untrue = [{'query': 'q', 'golden_answers': ['x'], 'label': 'useful', 'documents': ['one']}]
    untrue.append(untrue[0] | {'golden_answers': ['one'], 'label': 'noisy'})
    bad.write_text('\n'.join(map(json.dumps, untrue)))
    made = config(str(bad), steps=1)
    made.demos.update(folds=(), held_out_folds=(), held_out=0)
    with pytest.raises(ValueError, match='no demonstration is left'):
        run(tmp_path / 'run', made)
    said = '2 of 2 searches are left out: too few documents of which their label is true'
    assert said in capsys.readouterr().err and said in (tmp_path / 'run' / 'log.txt').read_text()


@pytest.mark.parametrize('folds', [(), (0, 3)])
def test_held_out_folds_that_would_be_trained_on_are_refused(rows, tmp_path, folds):
    made = config(rows)
    made.demos.folds = folds
    with pytest.raises(ValueError, match=r'held_out_folds = \(3,\) overlap'):
        run(tmp_path, made)


def test_nothing_to_train_on_is_said(rows, tmp_path):
    made = config(rows)
    made.demos.update(held_out=24, folds=(), held_out_folds=())
    with pytest.raises(ValueError, match='held_out = 24 leaves none of 24'):
        run(tmp_path, made)
    made = config(rows)
    made.demos.folds = (9,)
    with pytest.raises(ValueError, match='no demonstration is left'):
        run(tmp_path, made)
    made.demos.update(source='world:simulators', held_out_folds=(8,))
    with pytest.raises(ValueError, match='there are world:policy, alone, and world:simulator'):
        run(tmp_path, made)
    made.demos.source = 'world:policy'
    with pytest.raises(ValueError, match='held_out_folds is for a simulator'):
        run(tmp_path, made)
