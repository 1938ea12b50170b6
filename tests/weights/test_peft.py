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


@pytest.mark.parametrize(
    'changes',
    [
        {'use_dora': True},
        {'peft_type': 'IA3'},
        {'rank_pattern': {'q_proj': 4}},
        {'bias': 'lora_only'},
        {'lora_bias': True},
        {'init_lora_weights': 'pissa'},
        {'init_lora_weights': 'pissa_niter_16'},
        {'init_lora_weights': 'olora'},
        {'init_lora_weights': 'corda'},
        {'init_lora_weights': 'loftq'},
        {'alora_invocation_tokens': [1, 2]},
        {'use_qalora': True},
        {'layer_replication': [[0, 1], [0, 2]]},
        {'trainable_token_indices': [3]},
        {'modules_to_save': ['lm_head']},
        {'target_parameters': ['mlp.experts']},
        {'a_setting_of_next_year': 1},
    ],
    ids=lambda changes: '-'.join(f'{k}={v}' for k, v in changes.items()),
)
def test_what_is_not_plain_lora_is_refused(adapter, tmp_path, changes):
    peft.save(tmp_path, adapter, 'base')
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf'adapter_config\.json: {next(iter(changes))} = .* is not supported'):
        peft.load(tmp_path, TINY)


@pytest.mark.parametrize('init', [True, False, None, 'gaussian', 'eva', 'orthogonal'])
def test_harmless_settings_of_peft_are_allowed(adapter, tmp_path, init):
    """What peft 0.18 writes where nothing is asked for, and initial weights that leave the base as it is."""
    peft.save(tmp_path, adapter, 'base')
    plain = {'lora_dropout': 0.05, 'peft_version': '0.18.0', 'exclude_modules': ['x'], 'qalora_group_size': 16}
    plain |= {'megatron_core': 'megatron.core', 'eva_config': {'rho': 2.0}, 'loftq_config': {}, 'lora_bias': False}
    off = ('auto_mapping', 'revision', 'alora_invocation_tokens', 'arrow_config', 'corda_config', 'layer_replication')
    off += ('layers_pattern', 'layers_to_transform', 'modules_to_save', 'target_parameters', 'a_setting_to_come')
    rewrite(tmp_path, **plain, **dict.fromkeys(off), init_lora_weights=init)
    jax.tree.map(np.testing.assert_array_equal, peft.load(tmp_path, TINY), adapter)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'r': 0}, 'r must be a positive whole number, got 0'),
        ({'r': None}, 'r must be a positive whole number, got None'),
        ({'r': 2.5}, 'r must be a positive whole number, got 2.5'),
        ({'lora_alpha': None}, 'lora_alpha must be a positive number, got None'),
        ({'lora_alpha': '16'}, "lora_alpha must be a positive number, got '16'"),
        ({'r': 4}, r'lora_A\.weight is \(3, 64\); .* it is \(4, 64\)'),
    ],
    ids=['r 0', 'r null', 'r 2.5', 'alpha null', 'alpha text', 'r is compared with the tensors'],
)
def test_r_and_alpha(adapter, tmp_path, changes, message):
    peft.save(tmp_path, adapter, 'base')
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        peft.load(tmp_path, TINY)


def test_nan_weights_of_an_adapter_are_neither_saved_nor_loaded(adapter, tmp_path):
    peft.save(tmp_path, adapter, 'base')
    name = 'base_model.model.model.layers.1.mlp.down_proj.lora_B.weight'
    file = tmp_path / 'adapter_model.safetensors'
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name] * np.nan}, file)
    with pytest.raises(ValueError, match=rf'{name} .* not finite'):
        peft.load(tmp_path, TINY)
    adapter['layers']['down_lora_b'][1, 0, 0] = np.inf
    with pytest.raises(ValueError, match=rf'{name} .* not finite'):
        peft.save(tmp_path / 'other', adapter, 'base')
    assert not (tmp_path / 'other').exists()
    save_file({f'layers.{key}': value for key, value in adapter['layers'].items()}, tmp_path / 'own.safetensors')
    with pytest.raises(ValueError, match=r'own\.safetensors.*: down_lora_b .* not finite'):
        pretrained.load_adapter(str(tmp_path / 'own.safetensors'), TINY, MESH)


def test_a_file_that_is_no_adapter_of_ours_is_refused(adapter, tmp_path):
    peft.save(tmp_path, adapter, 'base')
    half = {f'layers.{key}': value for key, value in adapter['layers'].items() if key != 'q_lora_b'}
    save_file(half, tmp_path / 'half.safetensors')
    for name in ('adapter_model', 'half'):
        with pytest.raises(ValueError, match='no adapter of ours; for one of peft give its directory'):
            pretrained.load_adapter(str(tmp_path / f'{name}.safetensors'), TINY, MESH)


def test_the_export_of_an_adapter_is_in_float32(tmp_path):
    """In bfloat16 what a few steps at a small rate change is rounded away."""
    model = pretrained.load_model('tiny', MESH)
    made = make_trainable(model, PolicyConfig(lora_rank=2), MESH, 0).params
    moved = jax.tree.map(lambda w: w + 1e-6, made)
    file = export_weights(moved, model, True, tmp_path, '{}')
    jax.tree.map(np.testing.assert_array_equal, trees.load_tree(file)[0], moved)
    peft.save(tmp_path / 'peft', pretrained.load_adapter(str(file), TINY, MESH), 'tiny')
    jax.tree.map(np.testing.assert_array_equal, peft.load(tmp_path / 'peft', TINY), jax.tree.map(np.asarray, moved))


def test_damaged_files_are_named(adapter, tmp_path):
    peft.save(tmp_path, adapter, 'base')
    file = tmp_path / 'adapter_model.safetensors'
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r'adapter_model\.safetensors: not a whole safetensors file'):
        peft.load(tmp_path, TINY)
    file.write_bytes(whole)
    config = tmp_path / 'adapter_config.json'
    for text in ('', '{"peft_type": "LO', '<html>', '[]'):
        config.write_text(text)
        for read in (peft.base, lambda directory: peft.load(directory, TINY)):
            with pytest.raises(ValueError, match=r'adapter_config\.json (is not JSON|must hold a JSON object)'):
                read(tmp_path)
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


@pytest.mark.thorough
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
