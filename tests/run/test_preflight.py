"""What is wrong with a configuration is told before anything is loaded, the cheap first."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import common, tiny
from zerosearch_jax import pretrained, settings
from zerosearch_jax.data import sources
from zerosearch_jax.policy import PolicyConfig
from zerosearch_jax.run import preflight
from zerosearch_jax.search import remote
from zerosearch_jax.search.remote import EngineConfig
from zerosearch_jax.simulator import load
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.writers import EndpointConfig
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl, sft
from zerosearch_jax.weights import trees

POLICY, SIMULATOR = PolicyConfig('tiny'), SimulatorConfig(model='tiny')


@pytest.fixture(autouse=True)
def nothing_long(monkeypatch):
    """Neither weights nor questions are loaded, and every probe is noted."""
    probed = []

    def fail(*_, **__):
        raise AssertionError('loaded')

    monkeypatch.setattr(pretrained, 'load_model', fail)
    monkeypatch.setattr(sources, 'load_questions', fail)
    monkeypatch.setattr(remote, 'probe', lambda cfg: probed.append(cfg.kind))
    monkeypatch.setattr(load, 'probe', lambda cfg, _: probed.append(f'simulator: {cfg.kind}'))
    monkeypatch.delenv(remote.SERPAPI_KEY, raising=False)
    return probed


# name: (a change of configs/tiny.py, what the one line says)
WRONG = {
    'wrong simulator id': ({'simulator.model': 'smolm2'}, "config.simulator.model: model 'smolm2'"),
    'wrong policy id': ({'policy.model': 'smolm2'}, "config.policy.model: model 'smolm2'"),
    'wrong template': ({'simulator.template': 'tunde'}, "config.simulator.template = 'tunde' is no file"),
    'adapter name of the policy': ({'policy.adapter': 'smol'}, "config.policy.adapter: adapter 'smol': no such file"),
    'adapter name of the simulator': ({'simulator.adapter': 'smol'}, "config.simulator.adapter: adapter 'smol'"),
    'corpus that is not there': (
        {'data.corpus': 'corpsu.jsonl', 'data.train': 'toy.jsonl'},
        'corpsu.jsonl is not here',
    ),
    'corpus of an unknown form': ({'data.corpus': 'wrold'}, 'wrold: unknown source'),
    'missing key of a paid engine': ({'engine.kind': 'serpapi'}, remote.SERPAPI_KEY),
    'no address of an endpoint': ({'simulator.kind': 'endpoint', 'endpoint.url': ''}, 'set config.endpoint.url'),
    'mesh against devices': ({'mesh': (1, 64, 1)}, 'mesh (1, 64, 1) needs 64 devices'),
    'mesh of the simulator against devices': (
        {'mesh': (1, 4, 1), 'policy.lora_rank': 0, 'simulator.mesh': (1, 1, 2)},
        'config.simulator.mesh = (1, 1, 2) must have the 4 devices of config.mesh',
    ),
    'mesh of a simulator against its heads': (
        {'mesh': (5, 1, 1), 'policy.lora_rank': 0, 'simulator.mesh': (1, 1, 5)},
        'config.simulator.model: on mesh (1, 1, 5) ',
    ),
    'mesh of the policy against devices': ({'rollout.mesh': (2, 1, -1)}, 'config.rollout.mesh: mesh (2, 1, -1)'),
    'mesh of the policy against its width': (
        {'mesh': (5, 1, 1), 'rollout.mesh': (1, 5, 1)},
        'config.policy.model: on mesh (1, 5, 1) ',
    ),
    'mesh of a simulator without an engine': (
        {'simulator.mesh': (1, 1, 1)},
        'one engine serves policy and simulator; set config.rollout.mesh',
    ),
    'seed -1': ({'seed': -1}, 'config.seed must not be negative, got -1'),
}


def changed(values):
    made = tiny.get_config()
    for name, value in values.items():
        made.update_from_flattened_dict({name: value})
    return made


@pytest.mark.parametrize('name', WRONG)
def test_told_before_anything_is_loaded(name, tmp_path, nothing_long):
    values, line = WRONG[name]
    with pytest.raises((ValueError, OSError)) as raised:
        made = changed(values)
        rl.train(train_config.parse(made), tmp_path, settings.to_json(made))
    assert line in str(raised.value) and '\n' not in str(raised.value)
    assert nothing_long == []  # the network is asked last


def test_the_outside_is_asked_before_weights_are_loaded_and_not_where_it_is_not_used(tmp_path, nothing_long):
    made = changed({'simulator.kind': 'endpoint', 'simulator.model': 'served', 'endpoint.url': 'http://h/v1'})
    made.engine.kind = 'search_r1'
    with pytest.raises(AssertionError, match='loaded'):
        rl.train(train_config.parse(made), tmp_path, settings.to_json(made))
    assert nothing_long == ['search_r1', 'simulator: endpoint']
    (tmp_path / 'checkpoints' / str(made.rl.steps)).mkdir(parents=True)  # done: nobody will be asked
    with pytest.raises(AssertionError, match='loaded'):
        rl.train(train_config.parse(made), tmp_path, settings.to_json(made))
    assert nothing_long == ['search_r1', 'simulator: endpoint']


def test_the_process_that_asks_an_engine_needs_its_key_and_no_other(monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    preflight.check((1, 1, 1), {'policy': POLICY}, engine=EngineConfig('serpapi'))


def test_idle_devices_are_told(capsys):
    preflight.check((1, 2, 1), {'policy': POLICY})
    assert f'mesh 1x2x1 uses 2 of {jax.device_count()} devices; -1 in config.mesh' in capsys.readouterr().err
    preflight.check((1, -1, 1), {'policy': POLICY})
    assert 'devices' not in capsys.readouterr().err


def test_fine_tuning_too_tells_a_wrong_model_and_template(tmp_path):
    from configs import sft as experiment

    for section, field, line in (
        ('model', 'model', "config.model.model: model 'nope'"),
        ('model', 'adapter', "config.model.adapter: adapter 'nope'"),
        ('simulator', 'template', "config.simulator.template = 'nope' is no file"),
    ):
        made = experiment.get_config('simulator')
        made.model.model = 'tiny'
        made[section][field] = 'nope'
        with pytest.raises((ValueError, OSError), match=line):
            sft.train(sft.parse(made), tmp_path, settings.to_json(made))


@pytest.mark.parametrize(
    ('fields', 'line'),
    [
        (
            {'adapter': 'search_simulator', 'template': 'tuned', 'blind_noise': True},
            "with template='told';",
        ),
        ({'adapter': 'search_simulator', 'template': 'told', 'words': 25}, 'with words=30, blind_noise=True;'),
        ({'kind': 'endpoint', 'template': 'told'}, 'that for models without'),
        (
            {'kind': 'endpoint', 'template': 'told', 'adapter': 'search_simulator'},
            'that for models without',
        ),
        ({'kind': 'self', 'model': '', 'template': 'tuned'}, 'that for models without'),
        ({'model': 'tiny', 'template': 'tuned'}, ''),
        ({'adapter': 'search_simulator', **common.simulator()}, ''),
        ({'adapter': 'smollm2_simulator', 'template': 'tuned'}, ''),  # what it was taught is not known
        ({'kind': 'endpoint'}, ''),
        ({'kind': 'oracle', 'template': 'told'}, ''),
    ],
    ids=str,
)
def test_a_wording_that_a_simulator_was_not_taught_is_said(fields, line, capsys):
    asked = SimulatorConfig(**fields)
    preflight.check((1, 1, 1), {'policy': POLICY}, simulator=asked, endpoint=EndpointConfig('http://127.0.0.1:1/v1'))
    said = capsys.readouterr().err
    assert line in said and ('fine-tun' in said) == bool(line)


def test_a_whole_model_that_was_fine_tuned_otherwise_is_said(tmp_path, capsys):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'config.json').write_text(json.dumps({'model_type': 'qwen2'}))
    (tmp_path / 'config.json').write_text(json.dumps({'simulator': {'template': 'told'}, 'sft': {}, 'rollout': {}}))
    for template, said in (('told', False), ('prompted', True)):
        preflight._check_wording(SimulatorConfig(model=str(tmp_path / 'model'), template=template))
        assert ("was fine-tuned with template='told'" in capsys.readouterr().err) == said


@pytest.mark.parametrize('metadata', ['[1]', '{"policy": "x"}', 'x', '{"simulator": 1}'])
def test_metadata_of_another_program_is_no_configuration(metadata, tmp_path):
    trees.save_tree(tmp_path / 'adapter.safetensors', {'a': np.zeros(1)}, {'config': metadata})
    preflight.check_adapter('policy', PolicyConfig('tiny', str(tmp_path / 'adapter.safetensors')))


def test_rows_that_leave_devices_idle_are_said(capsys):
    for count, idle in ((0, False), (1, True), (4, False), (6, True)):
        preflight.check((1, 4, 1), {'policy': POLICY}, rows={'rl.rows_per_micro': count})
        line = f'config.rl.rows_per_micro = {count} is no multiple of data x fsdp = 4'
        assert (line in capsys.readouterr().err) == idle


def test_a_model_that_is_cut_is_told_by_its_field(tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'config.json').write_text(json.dumps({'model_type': 'qwen2'})[:9])
    broken = dataclasses.replace(SIMULATOR, model=str(tmp_path / 'model'))
    with pytest.raises(ValueError, match=r'config\.simulator\.model: '):
        preflight.check((1, 1, 1), {'policy': POLICY}, simulator=broken, endpoint=EndpointConfig())
    assert preflight.check((1, 1, 1), {'policy': POLICY}, simulator=SIMULATOR, engine=EngineConfig()) is None
