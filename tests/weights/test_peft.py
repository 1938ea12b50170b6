"""Adapters in peft's format: what another reader makes of the files, and what comes back."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT, TINY
from safetensors.numpy import load_file, save_file

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.models import lora
from zerosearch_jax.policy import PolicyConfig, export_weights, make_trainable
from zerosearch_jax.weights import loading, peft, trees

MESH = sharding.make_mesh()


@pytest.fixture
def adapter():
    layout = lora.layout(TINY, 3, ('q', 'down'))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), layout, is_leaf=sharding.is_param)


def test_the_files_mean_what_the_format_says(adapter, tmp_path):
    """W + alpha / r B A, layer by layer, with kernels as linear layers of torch have them."""
    peft.save(tmp_path, adapter, 'base')
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert {'peft_type': 'LORA', 'base_model_name_or_path': 'base', 'r': 3}.items() <= config.items()
    assert config['target_modules'] == ['q_proj', 'down_proj']
    tensors, base = load_file(tmp_path / 'adapter_model.safetensors'), sharding.init(_layout(), jax.random.key(0), MESH)
    merged = lora.merge(lora.combine(base, adapter))
    for target, module in (('q', 'self_attn.q_proj'), ('down', 'mlp.down_proj')):
        for layer in range(TINY.num_layers):
            a, b = (tensors[f'base_model.model.model.layers.{layer}.{module}.lora_{x}.weight'] for x in 'AB')
            delta = config['lora_alpha'] / config['r'] * b @ a
            expected = np.asarray(base['layers'][target][layer]).T + delta
            np.testing.assert_allclose(np.asarray(merged['layers'][target][layer]).T, expected, atol=1e-5)
    assert len(tensors) == 4 * TINY.num_layers


def _layout():
    from zerosearch_jax.models import transformer

    return transformer.layout(TINY)


def test_weights_may_be_read_by_whom_new_files_may(adapter, tmp_path):
    (tmp_path / 'other').write_text('')
    peft.save(tmp_path, adapter, 'base')
    trees.save_tree(tmp_path / 'own.safetensors', adapter)
    for name in ('adapter_model.safetensors', 'own.safetensors'):
        assert (tmp_path / name).stat().st_mode == (tmp_path / 'other').stat().st_mode, name


def test_what_is_written_is_read(adapter, tmp_path):
    peft.save(tmp_path, adapter, 'base')
    jax.tree.map(np.testing.assert_array_equal, peft.load(tmp_path, TINY), adapter)
    loaded = pretrained.load_adapter(str(tmp_path), TINY, MESH)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)


@pytest.mark.parametrize(
    ('changes', 'scale'), [({'lora_alpha': 6}, 2), ({'lora_alpha': 3, 'use_rslora': True}, 3**0.5)]
)
def test_the_scale_of_others_goes_into_b(adapter, tmp_path, changes, scale):
    peft.save(tmp_path, adapter, 'base')
    rewrite(tmp_path, **changes)
    loaded = peft.load(tmp_path, TINY)['layers']
    np.testing.assert_array_equal(loaded['q_lora_a'], adapter['layers']['q_lora_a'])
    np.testing.assert_allclose(loaded['q_lora_b'], scale * adapter['layers']['q_lora_b'], rtol=1e-6)


def rewrite(directory, **changes):
    path = directory / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize('changes', [{'use_dora': True}, {'peft_type': 'IA3'}, {'rank_pattern': {'q_proj': 4}}])
def test_what_is_not_plain_lora_is_refused(adapter, tmp_path, changes):
    peft.save(tmp_path, adapter, 'base')
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match='not supported'):
        peft.load(tmp_path, TINY)


def test_damaged_files_are_named(adapter, tmp_path):
    peft.save(tmp_path, adapter, 'base')
    file = tmp_path / 'adapter_model.safetensors'
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r'adapter_model\.safetensors: not a whole safetensors file'):
        peft.load(tmp_path, TINY)
    file.write_bytes(whole)
    config = tmp_path / 'adapter_config.json'
    config.write_text(json.dumps({'peft_type': 'LORA'}))
    with pytest.raises(ValueError, match=r'adapter_config\.json lacks lora_alpha, r'):
        peft.load(tmp_path, TINY)


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    peft.save(tmp_path, adapter, 'base')
    tensors = load_file(tmp_path / 'adapter_model.safetensors')
    name = next(name for name in tensors if 'layers.1.' in name)
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / 'adapter_model.safetensors')
    with pytest.raises(ValueError, match='is missing'):
        peft.load(tmp_path, TINY)
    extra = name.replace('layers.1.', 'layers.99.')
    save_file(tensors | {extra: tensors[name]}, tmp_path / 'adapter_model.safetensors')
    with pytest.raises(ValueError, match=r'layers\.99'):
        peft.load(tmp_path, TINY)
    with pytest.raises(FileNotFoundError, match='adapter_config'):
        peft.load(tmp_path / 'nothing', TINY)


def test_the_command_writes_both_forms(tmp_path):
    model = pretrained.load_model('tiny', MESH)
    made = make_trainable(model, PolicyConfig(lora_rank=2), MESH, 0).params
    made['layers']['q_lora_b'] += 0.5
    file = export_weights(made, model, True, tmp_path, '{}')
    for flags in ([], ['--merge', '--dtype=float32']):
        command = [
            sys.executable,
            '-m',
            'launch.export',
            str(file),
            str(tmp_path / f'out{len(flags)}'),
            '--base=tiny',
            *flags,
        ]
        subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    merged = lora.merge(lora.combine(model.params, pretrained.load_adapter(str(tmp_path / 'out0'), TINY, MESH)))
    written = loading.load(tmp_path / 'out2', loading.read_config(tmp_path / 'out2'), MESH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), written, merged)
