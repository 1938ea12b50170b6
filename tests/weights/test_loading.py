"""Loading by slices, GGUF against safetensors, saving, and every way in which a file can be wrong."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import traverse_util
from helpers import FIXTURES
from safetensors.numpy import load_file, save_file

from zerosearch_jax import sharding
from zerosearch_jax.models import transformer
from zerosearch_jax.sharding import make_mesh
from zerosearch_jax.weights import huggingface, loading, names, trees

FAMILIES = ['llama', 'llama3scaled', 'qwen2', 'qwen3', 'qwen3_moe', 'gemma3_text']


def fixture(family):
    path = FIXTURES / f'parity_{family}'
    return path, loading.read_config(path)


def load(path, cfg, mesh=None, **kwargs):
    return loading.load(path, cfg, mesh or make_mesh(), progress=False, **kwargs)


def assert_trees_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def edited(tmp_path, family, edit):
    """A copy of a fixture whose tensors went through `edit(dict)`."""
    path, cfg = fixture(family)
    copy = tmp_path / 'edited'
    shutil.copytree(path, copy)
    tensors = load_file(copy / 'model.safetensors')
    edit(tensors)
    save_file(tensors, copy / 'model.safetensors')
    return copy, cfg


# ---------------------------------------------------------------- safetensors in


def test_kernels_are_transposed_and_stacked():
    path, cfg = fixture('qwen2')
    tensors, params = load_file(path / 'model.safetensors'), load(path, cfg)
    np.testing.assert_array_equal(params['layers']['up'][1], tensors['model.layers.1.mlp.up_proj.weight'].T)
    np.testing.assert_array_equal(params['layers']['k_bias'][0], tensors['model.layers.0.self_attn.k_proj.bias'])
    np.testing.assert_array_equal(params['embed'], tensors['model.embed_tokens.weight'])


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_sharded_equals_unsharded(family, shape):
    path, cfg = fixture(family)
    mesh = make_mesh(shape)
    params = load(path, cfg, mesh)
    assert_trees_equal(params, load(path, cfg))
    wanted = sharding.shardings(transformer.layout(cfg), mesh)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, params, wanted))


def test_every_read_is_one_layer_of_one_shard(monkeypatch):
    """No host reads, nor a callback makes, more than the shard that it is asked for; replicas share one read."""
    path, cfg = fixture('qwen3')
    reads, arrays = [], []
    read, make = huggingface.SafetensorsFiles.read, jax.make_array_from_callback

    def spy_read(self, name, index):
        reads.append((name, out := read(self, name, index)))
        return out

    def spy_make(shape, target, callback):
        def spy(index):
            out = callback(index)
            arrays.append((out.shape, target.shard_shape(shape)))
            return out

        return make(shape, target, spy)

    monkeypatch.setattr(huggingface.SafetensorsFiles, 'read', spy_read)
    monkeypatch.setattr(jax, 'make_array_from_callback', spy_make)
    load(path, cfg, make_mesh((2, 2, 2)))
    assert arrays and all(got == wanted for got, wanted in arrays)
    gates = [out for name, out in reads if name == 'model.layers.1.mlp.gate_proj.weight']
    assert len(gates) == 4  # 8 devices, of which 2 replicas each
    assert {out.shape for out in gates} == {(cfg.mlp_size // 2, cfg.hidden_size // 2)}


def test_replicas_do_not_share_memory():
    """Donating the weights must not write into a buffer that another device still reads."""
    path, cfg = fixture('llama')
    params = load(path, cfg, make_mesh((8, 1, 1)))
    before = jax.tree.map(np.array, params)
    double = jax.jit(lambda p: jax.tree.map(lambda x: 2 * x, p), donate_argnums=0)
    doubled = double(params)
    for x, y in zip(jax.tree.leaves(doubled), jax.tree.leaves(before), strict=True):
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, 2 * y[shard.index])


def test_dtype():
    path, cfg = fixture('qwen3')
    half = load(path, cfg, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    assert_trees_equal(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), load(path, cfg)))


def test_tied_checkpoint_may_repeat_its_head(tmp_path):
    def repeat(tensors):
        tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()
        tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(4, np.float32)

    path, cfg = edited(tmp_path, 'qwen2', repeat)
    params = load(path, cfg)
    assert 'head' not in params
    assert_trees_equal(params, load(*fixture('qwen2')))


def test_safetensors_with_a_head_of_its_own_though_tied_are_refused(tmp_path):
    def own(tensors):
        tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'] + np.eye(128, 32, k=-96, dtype=np.float32)

    path, cfg = edited(tmp_path, 'qwen2', own)
    with pytest.raises(ValueError, match=r'lm_head\.weight is not model\.embed_tokens\.weight.*tie_word_embeddings'):
        load(path, cfg)
    untied = dataclasses.replace(cfg, tie_embeddings=False)  # as the message says
    assert not np.array_equal(load(path, untied)['head'].T, load(path, untied)['embed'])


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_nan_weights_are_not_loaded(tmp_path, value, dtype):
    def spoil(tensors):
        tensors['model.layers.1.mlp.up_proj.weight'][3, 5] = value

    path, cfg = edited(tmp_path, 'llama', spoil)
    with pytest.raises(ValueError, match=r'edited: tensor model\.layers\.1\.mlp\.up_proj\.weight .* not finite'):
        load(path, cfg, dtype=dtype)


def test_float8_kernels_without_scales_are_refused(tmp_path):
    import ml_dtypes

    def quantize(tensors):
        name = 'model.layers.0.mlp.up_proj.weight'
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)

    path, cfg = edited(tmp_path, 'llama', quantize)
    with pytest.raises(ValueError, match=r'layers\.0\.mlp\.up_proj\.weight has numbers of type F8_E4M3; quantized'):
        load(path, cfg)


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda t: t.pop('model.layers.1.mlp.up_proj.weight'), r'model\.layers\.1\.mlp\.up_proj\.weight is missing'),
        (lambda t: t.update({'model.layers.2.mlp.up_proj.weight': np.ones(2)}), r'model\.layers\.2.* no place'),
        (lambda t: t.update({'model.norm.weight': np.ones(31)}), r'model\.norm\.weight has shape \(31,\), .*\(32,\)'),
    ],
)
def test_wrong_tensors_are_named(tmp_path, edit, message):
    path, cfg = edited(tmp_path, 'llama', edit)
    with pytest.raises(ValueError, match=message):
        load(path, cfg)


def test_wrong_files(tmp_path):
    path, cfg = fixture('llama')
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        loading.read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'put model\.safetensors'):
        load(tmp_path, cfg)
    (tmp_path / 'model.safetensors').write_bytes((path / 'model.safetensors').read_bytes()[:5000])
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        load(tmp_path, cfg)
    (tmp_path / 'model.safetensors').unlink()
    for shard, error in (('a.safetensors', FileNotFoundError), ('../a.safetensors', ValueError)):
        (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'x': shard}}))
        with pytest.raises(error, match=r'a\.safetensors'):
            load(tmp_path, cfg)
    (tmp_path / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(ValueError, match='not an index of safetensors files'):
        load(tmp_path, cfg)
    (tmp_path / 'config.json').write_text('{"model_type": "llama", "hidden_size": 8}')
    with pytest.raises(ValueError, match=r'config\.json: it lacks vocab_size, intermediate_size, .*rms_norm_eps'):
        loading.read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match='no such file'):
        loading.read_config(tmp_path / 'missing.gguf')
    (tmp_path / 'junk.gguf').write_bytes(b'junk' * 100)
    with pytest.raises(ValueError, match='not a readable GGUF'):
        loading.read_config(tmp_path / 'junk.gguf')


DAMAGED = {
    'empty': ('', 'is not JSON'),
    'cut': ('{"model_type": "lla', 'is not JSON'),
    'html': ('<!DOCTYPE html><html>404</html>', 'is not JSON'),
    'list': ('[]', 'must hold a JSON object, not a list'),
    'nested': ('[' * 100_000, 'nested too deep'),
}


@pytest.mark.parametrize(('text', 'message'), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize('name', ['config.json', 'model.safetensors.index.json'])
def test_json_that_is_empty_cut_html_or_a_list_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f'{name}.*{message}'):
        loading.read_config(tmp_path) if name == 'config.json' else load(tmp_path, fixture('llama')[1])


@pytest.mark.parametrize('values', [{'rope_parameters': ['a']}, {'rope_scaling': 'linear'}, {'layer_types': 6}])
def test_values_of_another_kind_inside_a_gemma_config_are_told_with_the_file(tmp_path, values):
    written = json.loads((FIXTURES / 'parity_gemma3_text' / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(written | values))
    with pytest.raises(ValueError, match=f'{tmp_path}/config.json: '):
        loading.read_config(tmp_path)


def test_a_disk_that_takes_no_file_is_told_with_its_path(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise safetensors.SafetensorError('Error while serializing: I/O error')

    monkeypatch.setattr('safetensors.numpy.save_file', fail)
    with pytest.raises(OSError, match=r'a\.safetensors.* cannot be written: Error while serializing'):
        trees.save_tree(tmp_path / 'a.safetensors', {'a': np.zeros(2)})


def test_mesh_that_does_not_divide():
    path, cfg = fixture('llama')
    with pytest.raises(ValueError, match='does not divide'):
        load(path, dataclasses.replace(cfg, vocab_size=127), make_mesh((1, 1, 2)))


# ---------------------------------------------------------------- out


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('shard_bytes', [10**9, 20_000])
def test_save_then_load(family, shard_bytes, tmp_path):
    path, cfg = fixture(family)
    params = load(path, cfg, make_mesh((2, 2, 2)))
    huggingface.save(params, cfg, tmp_path, shard_bytes=shard_bytes)
    assert loading.read_config(tmp_path) == cfg
    assert_trees_equal(load(tmp_path, cfg), params)
    ours, theirs = {}, load_file(path / 'model.safetensors')
    for file in tmp_path.glob('*.safetensors'):
        ours |= load_file(file)
        assert sum(x.nbytes for x in load_file(file).values()) <= shard_bytes
    assert ours.keys() == theirs.keys()
    assert_trees_equal(ours, theirs)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_save_bfloat16(tmp_path):
    path, cfg = fixture('qwen2')
    params = load(path, cfg)
    huggingface.save(params, cfg, tmp_path, dtype='bfloat16')
    assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == 'bfloat16'
    assert_trees_equal(load(tmp_path, cfg), jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params))
    assert (tmp_path / 'model.safetensors').stat().st_size < 0.6 * (path / 'model.safetensors').stat().st_size


def test_arrays_of_numpy_are_saved_without_a_device(tmp_path, monkeypatch):
    path, cfg = fixture('qwen2')
    params = jax.tree.map(np.asarray, load(path, cfg))
    monkeypatch.setattr(jax.lax, 'dynamic_index_in_dim', None)
    huggingface.save(params, cfg, tmp_path)
    assert_trees_equal(load(tmp_path, cfg), params)


def test_save_over_another_save(tmp_path):
    """Files of an earlier save must not shadow those of this one, whichever was split; other files stay."""
    path, cfg = fixture('llama')
    (tmp_path / 'tokenizer.json').write_text('{}')
    (tmp_path / 'model_before.safetensors').write_bytes(b'of somebody')
    params = load(path, cfg)
    for i, shard_bytes in enumerate((10**9, 20_000, 50_000, 10**9)):
        params = jax.tree.map(lambda x, i=i: x + i, params)
        huggingface.save(params, cfg, tmp_path, shard_bytes=shard_bytes)
        assert_trees_equal(load(tmp_path, cfg), params)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'config.json',
        'model.safetensors',
        'model_before.safetensors',
        'tokenizer.json',
    ]


def test_save_refuses(tmp_path):
    path, cfg = fixture('llama')
    params = load(path, cfg)
    with pytest.raises(ValueError, match='float16'):
        huggingface.save(params, cfg, tmp_path, dtype='float16')
    with pytest.raises(ValueError, match='merge the adapter'):
        layers = params['layers'] | {'q_lora_a': params['layers']['q']}
        huggingface.save(params | {'layers': layers}, cfg, tmp_path)
    with pytest.raises(ValueError, match='head'):
        huggingface.save({k: v for k, v in params.items() if k != 'head'}, cfg, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nan_weights_are_never_saved(tmp_path, value):
    path, cfg = fixture('llama')
    params = load(path, cfg)
    layers = params['layers'] | {'q': params['layers']['q'].at[1, 2, 3].set(value)}
    with pytest.raises(ValueError, match=r'model\.layers\.1\.self_attn\.q_proj\.weight .* not finite'):
        huggingface.save(params | {'layers': layers}, cfg, tmp_path)
    with pytest.raises(ValueError, match=r'a\.safetensors: layers\.q .* not finite'):
        trees.save_tree(tmp_path / 'a.safetensors', {'layers': {'q': layers['q'].astype(jnp.bfloat16)}})
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_for_bfloat16_is_not_saved(tmp_path):
    path, cfg = fixture('llama')
    params = load(path, cfg)
    params['embed'] = params['embed'].at[0, 0].set(np.finfo(np.float32).max)
    huggingface.save(params, cfg, tmp_path / 'float32')
    with pytest.raises(ValueError, match=r'embed_tokens\.weight .* not finite'):
        huggingface.save(params, cfg, tmp_path / 'bfloat16', 'bfloat16')


def test_trees(tmp_path):
    tree = {'layers': {'q_lora_a': jnp.arange(6.0).reshape(2, 3).T, 'q_lora_b': jnp.ones((2, 2), jnp.bfloat16)}}
    trees.save_tree(tmp_path / 'new' / 'adapter.safetensors', tree, {'rank': '3'})
    loaded, metadata = trees.load_tree(tmp_path / 'new' / 'adapter.safetensors')
    assert metadata == {'rank': '3'}
    assert loaded['layers']['q_lora_b'].dtype == jnp.bfloat16
    assert_trees_equal(loaded, tree)
    assert len(list((tmp_path / 'new').iterdir())) == 1
    with pytest.raises(ValueError, match='dot'):
        trees.save_tree(tmp_path / 'x', {'a.b': jnp.ones(2)})
    with pytest.raises(ValueError, match='rank'):
        trees.save_tree(tmp_path / 'x', {'a': jnp.ones(2)}, {'rank': 3})
    with pytest.raises(FileNotFoundError):
        trees.load_tree(tmp_path / 'x')
    (tmp_path / 'x').write_bytes(b'junk')
    with pytest.raises(ValueError, match='safetensors'):
        trees.load_tree(tmp_path / 'x')


# ---------------------------------------------------------------- GGUF


def llama_cpp_permute(weight, heads):
    """What llama.cpp does to query and key rows of the llama architecture when it converts."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, family, *, quantized=False, drop=(), extra=()):
    """Converts a fixture as llama.cpp does."""
    gguf = pytest.importorskip('gguf')
    directory, cfg = fixture(family)
    tensors = load_file(directory / 'model.safetensors')
    writer = gguf.GGUFWriter(path, cfg.family)
    writer.add_block_count(cfg.num_layers)
    writer.add_context_length(cfg.max_position)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.mlp_size)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.num_kv_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    for key, value in extra:
        writer.add_string(key, value)
    for key, param in traverse_util.flatten_dict(transformer.layout(cfg), sep='.').items():
        for layer in range(cfg.num_layers if key.startswith('layers.') else 1):
            name, array = names.NAMES[key].gguf.format(layer), tensors[names.NAMES[key].hf.format(layer)]
            if cfg.family == 'llama' and key in ('layers.q', 'layers.k'):
                array = llama_cpp_permute(array, cfg.num_heads if key == 'layers.q' else cfg.num_kv_heads)
            if name in drop:
                continue
            if quantized and param.axes[-1] and array.ndim == 2:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_gguf_equals_safetensors(family, tmp_path):
    directory, cfg = fixture(family)
    path = write_gguf(tmp_path / 'model.gguf', family)
    assert loading.read_config(path) == cfg
    for mesh in (make_mesh(), make_mesh((1, 4, 2))):
        assert_trees_equal(load(path, cfg, mesh), load(directory, cfg))


def test_gguf_quantized_slices(tmp_path):
    """Slices of a dequantized tensor are the same on any mesh, and near the original."""
    directory, cfg = fixture('llama')
    path = write_gguf(tmp_path / 'model.gguf', 'llama', quantized=True)
    whole = load(path, cfg)
    assert_trees_equal(load(path, cfg, make_mesh((2, 2, 2))), whole)
    exact = load(directory, cfg)
    assert np.abs(whole['layers']['q'] - exact['layers']['q']).max() < 0.02
    assert np.abs(whole['layers']['q'] - exact['layers']['q']).max() > 0


def test_gguf_llama3_rope(tmp_path):
    """The scaling of Llama 3.x comes back from the frequency divisors that llama.cpp stores in its place."""
    from zerosearch_jax.models import layers
    from zerosearch_jax.models.config import PRESETS

    gguf = pytest.importorskip('gguf')
    cfg = PRESETS['llama3.2-1b']
    plain = dataclasses.replace(cfg, rope_scaling=None)
    divisors = np.asarray(layers.rope_frequencies(plain)) / np.asarray(layers.rope_frequencies(cfg))

    def write(path, divisors):
        writer = gguf.GGUFWriter(path, 'llama')
        writer.add_block_count(cfg.num_layers)
        writer.add_context_length(cfg.max_position)
        writer.add_embedding_length(cfg.hidden_size)
        writer.add_feed_forward_length(cfg.mlp_size)
        writer.add_head_count(cfg.num_heads)
        writer.add_head_count_kv(cfg.num_kv_heads)
        writer.add_rope_freq_base(cfg.rope_theta)
        writer.add_layer_norm_rms_eps(cfg.norm_eps)
        writer.add_tensor('token_embd.weight', np.zeros((cfg.vocab_size, 1), np.int8))
        writer.add_tensor('rope_freqs.weight', divisors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    assert loading.read_config(write(tmp_path / 'a.gguf', divisors)) == cfg
    with pytest.raises(ValueError, match='rope_freqs'):
        loading.read_config(write(tmp_path / 'b.gguf', divisors * np.linspace(1, 2, len(divisors), dtype=np.float32)))


def test_gguf_refusals(tmp_path):
    path = write_gguf(tmp_path / 'a.gguf', 'qwen2', drop=['blk.1.attn_k.bias'])
    with pytest.raises(ValueError, match=r'blk\.1\.attn_k\.bias is missing'):
        load(path, loading.read_config(path))
    path = write_gguf(tmp_path / 'b.gguf', 'qwen2', extra=[('qwen2.rope.scaling.type', 'yarn')])
    with pytest.raises(ValueError, match='scaling'):
        loading.read_config(path)
    path = write_gguf(tmp_path / 'd.gguf', 'qwen2', extra=[('qwen2.attention.head_count', 'four')])
    with pytest.raises(ValueError, match=r"d\.gguf: metadata qwen2\.attention\.head_count must be .*'four'"):
        loading.read_config(path)
    path = write_gguf(tmp_path / 'c.gguf', 'qwen2', drop=['token_embd.weight'])
    with pytest.raises(ValueError, match='token_embd'):
        loading.read_config(path)
