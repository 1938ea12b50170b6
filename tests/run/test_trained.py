"""What a run left is found by its directory, its files and its name, and says which model it belongs to."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers import TINY
from safetensors.numpy import save_file

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.policy import PolicyConfig, export_weights, make_trainable
from zerosearch_jax.run import trained
from zerosearch_jax.weights import peft

MESH = sharding.make_mesh()
RUN = json.dumps({'policy': {'model': 'tiny'}, 'rollout': {'prompt': 'reason'}})


@pytest.fixture
def run(tmp_path):
    """A run's directory with an adapter."""
    model = pretrained.load_model('tiny', MESH)
    made = make_trainable(model, PolicyConfig(lora_rank=2), MESH, 0).params
    (tmp_path / 'config.json').write_text(RUN)
    export_weights(made, model, True, tmp_path, RUN)
    return tmp_path


def test_an_adapter_by_directory_and_by_file(run):
    for reference in (run, run / 'adapter.safetensors'):
        found = trained.find(str(reference))
        assert (found.reference, found.is_model, found.base) == (str(run / 'adapter.safetensors'), False, 'tiny')
        assert found.run == json.loads(RUN)
    policy = found.policy_config(PolicyConfig('tiny', dtype='bfloat16'))
    assert policy == PolicyConfig('tiny', str(run / 'adapter.safetensors'), dtype='bfloat16')
    assert found.policy_config(PolicyConfig('other')).model == 'tiny'
    assert found.policy_config(PolicyConfig('other'), ['policy.model']).model == 'other'


def test_a_model_by_the_directory_of_its_run_and_its_own(run):
    model = pretrained.load_model('tiny', MESH)
    (run / 'adapter.safetensors').unlink()
    export_weights(model.params, model, False, run, RUN)
    for reference in (run, run / 'model'):
        found = trained.find(str(reference))
        assert (found.reference, found.is_model, found.base) == (str(run / 'model'), True, 'tiny')
    assert found.policy_config(PolicyConfig('other', 'adapter')) == PolicyConfig(str(run / 'model'))
    shutil.move(run / 'model', run / 'elsewhere')  # next to a configuration that need not be its run's
    assert trained.find(str(run / 'elsewhere')).run == {}


def test_a_shipped_adapter_and_a_peft_directory(run):
    assert trained.find('smollm2_policy').base == 'smollm2-135m-instruct'
    adapter = jax.tree.map(np.asarray, pretrained.load_adapter(str(run / 'adapter.safetensors'), TINY, MESH))
    peft.save(run / 'peft', adapter, 'owner/name')
    found = trained.find(str(run / 'peft'))
    assert (found.is_model, found.base, found.run) == (False, 'owner/name', {})


def test_what_is_not_there_is_told(run):
    (run / 'adapter.safetensors').unlink()
    (run / 'checkpoints').mkdir()
    with pytest.raises(FileNotFoundError, match='has no checkpoint: it has none yet'):
        trained.find(str(run))
    with pytest.raises(FileNotFoundError, match='shipped adapters: miniature_policy'):
        trained.find('nothing')


def test_a_digest_is_of_the_weights_and_not_of_the_run_that_a_header_names(tmp_path):
    def written(value, run):
        path = tmp_path / 'adapter.safetensors'
        save_file({'a': np.full(3, value, np.float32)}, path, metadata={'config': run})
        return pretrained.digest(path)

    assert written(1.0, 'one') == written(1.0, 'another run') != written(2.0, 'one')
    assert pretrained.digest(tmp_path / 'nothing') == ''


def test_a_digest_is_of_a_path_in_the_home_directory_too(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'config.json').write_text('{}')
    assert pretrained.digest(pathlib.Path('~/model')) == pretrained.digest(tmp_path / 'model') != ''


def test_wordings_are_marked_by_their_content_if_they_are_files(tmp_path):
    path, marks = tmp_path / 'mine.json', []
    for text in ('{}', '{"a": 1}'):
        path.write_text(text)
        marks += trained.wordings('search', str(path), 'told')
    assert all(mark.startswith(f'{path} (') for mark in marks) and len({*marks}) == 2
