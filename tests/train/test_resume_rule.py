"""What a resumed run may change: what the steps so far do not depend on; the rest is told with both values."""

import json
import pathlib
import re
import types

import jax
import pytest

from configs import tiny
from zerosearch_jax import settings, sharding
from zerosearch_jax.evaluate import report
from zerosearch_jax.policy import PolicyConfig
from zerosearch_jax.run import jsonl, trained
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl

DONE = 2  # of four steps


def changed(values):
    made = tiny.get_config()
    made.rl.steps, made.curriculum.kind = 4, 'constant'
    for name, value in values.items():
        made.update_from_flattened_dict({name: value})
    return made


@pytest.fixture
def workdir(tmp_path):
    """Of a run that did two of four steps; `begin(values)` of another configuration."""

    def begin(values=()):
        (tmp_path / 'config.json').write_text(settings.to_json(changed(dict(values))))
        (tmp_path / 'checkpoints' / str(DONE)).mkdir(parents=True, exist_ok=True)
        jsonl.write_jsonl(tmp_path / 'metrics.jsonl', [{'step': DONE}])
        return tmp_path

    return begin


def resume(workdir, values):
    made = changed(dict(values))
    train_config.check_steps(train_config.parse(made), workdir)
    with claim(workdir, train_config.Config, settings.to_json(made), free=settings.MAY_CHANGE_IN_A_RUN) as names:
        return names


ALLOWED = {
    'other rl.steps': {'rl.steps': 9},
    'fewer rl.steps': {'rl.steps': 3},
    'run.*': {'run.checkpoint_every': 5, 'run.keep_every': 10, 'run.trajectories': 0, 'run.tensorboard': False},
    'evaluation.*': {'evaluation.questions': 9, 'evaluation.every': 2, 'evaluation.before': False},
    'alarms.stop': {'alarms.stop': True, 'alarms.kl': 0.0},
    'an endpoint that moved': {'endpoint.url': 'http://elsewhere:1/v1'},
    'an engine that moved': {'engine.url': 'http://elsewhere:1/retrieve'},
    'where it is computed': {
        'mesh': (1, -1, 1),
        'rollout.mesh': (-1, 1, 1),
        'rl.rows_per_micro': 2,
        'prices.l4_hour': 1.0,
    },
}
REFUSED = {
    'rl.clip': {'rl.clip': 0.3},
    'optimizer': {'optimizer.learning_rate': 1.0, 'optimizer.b1': 0.5},
    'the simulator': {'simulator.temperature': 0.1},
    'the seed': {'seed': 1},
}


@pytest.mark.parametrize('name', ALLOWED)
def test_resume_with(name, workdir, capsys):
    here = workdir()
    assert sorted(resume(here, ALLOWED[name])) == sorted(ALLOWED[name])
    assert json.loads((here / 'config.json').read_text()) == json.loads(settings.to_json(changed(ALLOWED[name])))
    said = capsys.readouterr().err
    assert all(f'{field} = ' in said for field in ALLOWED[name])


@pytest.mark.parametrize('name', REFUSED)
def test_resume_is_refused_with_field_old_and_new_value(name, workdir):
    here = workdir()
    with pytest.raises(ValueError, match='holds a run with another configuration') as raised:
        resume(here, REFUSED[name])
    before = settings.parse_json(settings.to_json(changed({})))
    for field, value in REFUSED[name].items():
        section, _, leaf = field.partition('.')
        old = before[section][leaf] if leaf else before[section]
        assert f'{field} = {json.dumps(value)} (it was {json.dumps(old)})' in str(raised.value)


@pytest.mark.parametrize(
    ('values', 'what'),
    [
        ({'curriculum.kind': 'exponential'}, "config.curriculum.kind = 'exponential'"),
        ({'curriculum.kind': 'matched'}, "config.curriculum.kind = 'matched'"),
        ({'optimizer.schedule': 'cosine'}, "config.optimizer.schedule = 'cosine'"),
    ],
)
def test_schedules_that_depend_on_rl_steps_say_so(workdir, values, what):
    with pytest.raises(ValueError) as raised:
        resume(workdir(values), values | {'rl.steps': 9})
    assert what in str(raised.value) and 'rl.steps = 9 (it was 4)' in str(raised.value)
    assert '2 steps are done' in str(raised.value) and '--config.policy.adapter=' in str(raised.value)


@pytest.mark.parametrize(
    'values',
    [
        {'curriculum.kind': 'exponential', 'curriculum.start': 0.3, 'curriculum.end': 0.3},
        {'curriculum.kind': 'adaptive'},
        {'curriculum.kind': 'step', 'curriculum.at': 0.9},  # the change is yet to come, with either number
        {'optimizer.warmup_steps': 1},
    ],
)
def test_schedules_whose_past_is_the_same_allow_other_rl_steps(workdir, values):
    assert resume(workdir(values), values | {'rl.steps': 9}) == ['rl.steps']


def test_evaluations_asked_otherwise_are_put_aside_and_not_compared(tmp_path):
    for step in (0, 2):
        jsonl.write_jsonl(report.evaluation_file(tmp_path, step), [{'step': step}])
    report.put_evaluations_aside(tmp_path)
    assert report.evaluations(tmp_path) == {}
    jsonl.write_jsonl(report.evaluation_file(tmp_path, 2), [{'step': 2}, {'step': 2}])
    report.put_evaluations_aside(tmp_path)
    report.put_evaluations_aside(tmp_path)  # there is nothing more
    kept = sorted(str(path.relative_to(tmp_path / 'evaluation')) for path in tmp_path.rglob('step_*'))
    assert kept == ['before_1/step_000000.jsonl', 'before_1/step_000002.jsonl', 'before_2/step_000002.jsonl']


def test_putting_evaluations_aside_is_ended_after_a_crash_and_replaces_none_of_before(tmp_path, monkeypatch):
    for step in (0, 2):
        jsonl.write_jsonl(report.evaluation_file(tmp_path, step), [{'step': step}])
    (tmp_path / 'evaluation' / 'before_2').mkdir()  # before_1 was deleted
    replace = pathlib.Path.replace

    def killed(path, target):
        monkeypatch.undo()
        replace(path, target)
        raise KeyboardInterrupt

    for name in ('replace', 'rename'):  # in the midst of them, and when all are moved
        monkeypatch.setattr(pathlib.Path, name, killed if name == 'replace' else lambda *_: 1 / 0)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            report.put_evaluations_aside(tmp_path)
        monkeypatch.undo()
    report.put_evaluations_aside(tmp_path)
    kept = sorted(str(path.relative_to(tmp_path / 'evaluation')) for path in tmp_path.rglob('*'))
    assert [each for each in kept if 'before' in each] == [
        *('before_2', 'before_3', 'before_3/step_000000.jsonl', 'before_3/step_000002.jsonl')
    ]


def test_evaluations_are_put_aside_before_the_new_configuration_is_that_of_the_run(workdir, monkeypatch):
    made = changed({'evaluation.questions': 9})
    place, asked = workdir(), []
    monkeypatch.setattr(rl.trackers, 'check', lambda _: None)
    monkeypatch.setattr(rl, '_train', lambda *_: None)
    aside = lambda _: asked.append(settings.read_json(place / 'config.json')['evaluation']['questions'])  # noqa: E731
    monkeypatch.setattr(report, 'put_evaluations_aside', aside)
    for _ in range(2):
        rl.train(train_config.parse(made), place, settings.to_json(made))
    assert len(asked) == 1 and asked[0] != 9  # once, and while the old one was there


def test_rows_that_process_0_cannot_cut_back_are_told_to_all(tmp_path, monkeypatch):
    (tmp_path / 'metrics.jsonl').write_text('no\n{}\n')
    cfg, sent = train_config.parse(changed({})), []
    monkeypatch.setattr(sharding, 'from_first_process', lambda value: sent.append(value) or value)
    with pytest.raises(ValueError, match=r'metrics.jsonl:1: not a JSON object'):
        rl._writer(cfg, tmp_path, 1)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    monkeypatch.setattr(sharding, 'from_first_process', lambda _: sent[0])
    with pytest.raises(OSError, match=r'process 0: .*metrics.jsonl:1: not a JSON object'):
        rl._writer(cfg, tmp_path, 1)
    monkeypatch.setattr(sharding, 'from_first_process', lambda _: (None, None))
    assert rl._writer(cfg, tmp_path, 1) is None


def test_keep_every_is_a_multiple_of_checkpoint_every():
    with pytest.raises(ValueError, match=r'config\.run: keep_every = 5 must be a multiple of checkpoint_every = 2'):
        train_config.parse(changed({'run.keep_every': 5, 'run.checkpoint_every': 2}))


def test_a_resumed_learner_is_told_how_updates_fitted_into_memory():
    told = []
    learner = types.SimpleNamespace(state={}, shardings={}, resume=told.append, place='1x1x1 cpu')
    elsewhere = {'fit': ['none', 8], 'fit_on': '1x8x1 NVIDIA H100'}  # of more memory: it is found anew
    for fit in ({'fit': ['dots', 2], 'fit_on': '1x1x1 cpu'}, elsewhere, {}):  # an earlier version's does not say
        host = {'step': 2, 'history': [], 'rung': [], **fit}
        checkpoints = types.SimpleNamespace(restore=lambda *_, host=host: ({}, host))
        rl._restore(types.SimpleNamespace(learner=learner, weights=[]), checkpoints, 2)
    assert told == [['dots', 2], None]


def test_a_run_whose_first_weights_have_changed_is_not_resumed(tmp_path):
    adapter = tmp_path / 'adapter.safetensors'
    adapter.write_bytes(b'first')
    policy = PolicyConfig(adapter=str(adapter))
    (*_, first), learner = trained.marks(policy), types.SimpleNamespace(state={}, shardings={}, place='1x1x1 cpu')
    host = {'step': 2, 'history': [], 'rung': [], 'weights': trained.marks(policy)}
    checkpoints, learner.resume = types.SimpleNamespace(restore=lambda *_: ({}, host)), lambda fit: None

    def restore():
        return rl._restore(types.SimpleNamespace(learner=learner, weights=trained.marks(policy)), checkpoints, 2)

    assert restore() == rl.Past()
    adapter.write_bytes(b'other')
    with pytest.raises(ValueError, match=rf'began with other weights: .*{re.escape(first)}; now there are'):
        restore()
