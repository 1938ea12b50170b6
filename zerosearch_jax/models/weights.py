"""Weights in and out: Hugging Face safetensors (both ways), GGUF (in), and flat safetensors for small trees.

Loading streams: every shard of every array asks the file for exactly the slice that it needs, so no host holds the
model, nor a stacked weight that it owns only a part of.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zerosearch_jax import sharding
from zerosearch_jax.models import config, layers, transformer
from zerosearch_jax.models.config import ModelConfig, RopeScaling


class Name(NamedTuple):
    """Where files keep a weight of `transformer.layout`; {} is a layer. Their kernels are [out, in]."""

    hf: str
    gguf: str
    transpose: bool = False


NAMES: dict[str, Name] = {
    'embed': Name('model.embed_tokens.weight', 'token_embd.weight'),
    'layers.attn_norm': Name('model.layers.{}.input_layernorm.weight', 'blk.{}.attn_norm.weight'),
    'layers.q': Name('model.layers.{}.self_attn.q_proj.weight', 'blk.{}.attn_q.weight', True),
    'layers.k': Name('model.layers.{}.self_attn.k_proj.weight', 'blk.{}.attn_k.weight', True),
    'layers.v': Name('model.layers.{}.self_attn.v_proj.weight', 'blk.{}.attn_v.weight', True),
    'layers.o': Name('model.layers.{}.self_attn.o_proj.weight', 'blk.{}.attn_output.weight', True),
    'layers.q_bias': Name('model.layers.{}.self_attn.q_proj.bias', 'blk.{}.attn_q.bias'),
    'layers.k_bias': Name('model.layers.{}.self_attn.k_proj.bias', 'blk.{}.attn_k.bias'),
    'layers.v_bias': Name('model.layers.{}.self_attn.v_proj.bias', 'blk.{}.attn_v.bias'),
    'layers.q_norm': Name('model.layers.{}.self_attn.q_norm.weight', 'blk.{}.attn_q_norm.weight'),
    'layers.k_norm': Name('model.layers.{}.self_attn.k_norm.weight', 'blk.{}.attn_k_norm.weight'),
    'layers.mlp_norm': Name('model.layers.{}.post_attention_layernorm.weight', 'blk.{}.ffn_norm.weight'),
    'layers.gate': Name('model.layers.{}.mlp.gate_proj.weight', 'blk.{}.ffn_gate.weight', True),
    'layers.up': Name('model.layers.{}.mlp.up_proj.weight', 'blk.{}.ffn_up.weight', True),
    'layers.down': Name('model.layers.{}.mlp.down_proj.weight', 'blk.{}.ffn_down.weight', True),
    'final_norm': Name('model.norm.weight', 'output_norm.weight'),
    'head': Name('lm_head.weight', 'output.weight', True),
}

# Derived from the configuration, so ignored where a file carries them too.
DERIVED = ('rotary_emb.inv_freq', 'rope_freqs.weight')


# ---------------------------------------------------------------- files


class SafetensorsFiles:
    """The tensors of a Hugging Face directory: `model.safetensors`, or the shards of its index."""

    def __init__(self, directory: pathlib.Path):
        from safetensors import SafetensorError, safe_open

        index = directory / 'model.safetensors.index.json'
        if (directory / 'model.safetensors').is_file():  # the one that transformers prefers
            files = ['model.safetensors']
        elif index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text())['weight_map'].values()))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f'{index}: not an index of safetensors files') from error
        else:
            raise FileNotFoundError(f'{directory}: put model.safetensors, or its index and shards, there')
        self._slices = {}
        for file in files:
            if pathlib.PurePath(file).name != file:
                raise ValueError(f'{index}: shard {file!r} is not a file name of this directory')
            if not (directory / file).is_file():
                raise FileNotFoundError(f'{directory / file}: no such file, but the index names it')
            try:
                handle = safe_open(directory / file, framework='np')
            except SafetensorError as error:
                raise ValueError(f'{directory / file}: not a whole safetensors file ({error})') from error
            self._slices |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
        self.shapes = {name: tuple(s.get_shape()) for name, s in self._slices.items()}

    @staticmethod
    def name(path: str) -> str:
        return NAMES[path].hf

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads one slice of one tensor, in the file's dtype."""
        return self._slices[name][index]


class GgufFile:
    """The tensors of a GGUF file, dequantized to float32 a slice of rows at a time."""

    def __init__(self, path: pathlib.Path, cfg: ModelConfig):
        reader = open_gguf(path)
        self._tensors = {t.name: t for t in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}
        self._rows = {}
        if gguf_value(reader, 'general.architecture') == 'llama':
            # llama.cpp stores these for rotary pairs that lie side by side; ours are half a head apart
            self._rows = {
                'attn_q': _rotate_half_rows(cfg.num_heads, cfg.head_dim),
                'attn_k': _rotate_half_rows(cfg.num_kv_heads, cfg.head_dim),
            }

    @staticmethod
    def name(path: str) -> str:
        return NAMES[path].gguf

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Dequantizes one slice of one tensor; blocks run along the last dimension, so only its rows are cut before."""
        from gguf import dequantize

        tensor, kind = self._tensors[name], name.split('.')[-2]
        if len(self.shapes[name]) == 1:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type)).reshape(self.shapes[name])[index]
        rows = self._rows[kind][index[0]] if kind in self._rows else index[0]
        return np.asarray(dequantize(np.ascontiguousarray(tensor.data[rows]), tensor.tensor_type))[:, index[1]]


def _rotate_half_rows(heads: int, head_dim: int) -> np.ndarray:
    """Row of the interleaved file for every row of the rotate-half kernel."""
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def open_gguf(path: str | pathlib.Path):
    """A gguf.GGUFReader of a file; the last one is kept, for parsing it costs seconds and three callers want it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not GGUF, or the package `gguf` is missing.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    return _open_gguf(path, path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=1)
def _open_gguf(path: pathlib.Path, mtime_ns: int, size: int):
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f'{path}: reading GGUF needs the package gguf; run: pip install gguf') from error
    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f'{path}: not a readable GGUF file ({error})') from error


def gguf_value(reader, key: str, default=None):
    """One metadata value of a GGUF file."""
    return reader.fields[key].contents() if key in reader.fields else default


# ---------------------------------------------------------------- configuration


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """The configuration of a Hugging Face directory or a GGUF file.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: a model that this library does not implement.
    """
    path = pathlib.Path(path)
    return _gguf_config(path) if path.suffix == '.gguf' else config.read(path)


def _gguf_config(path: pathlib.Path) -> ModelConfig:
    reader = open_gguf(path)
    family = gguf_value(reader, 'general.architecture')
    if family not in config.FAMILIES:
        raise ValueError(f'{path}: architecture {family!r} is not supported; supported: {", ".join(config.FAMILIES)}')

    def get(key: str, *default):
        value = gguf_value(reader, f'{family}.{key}', *default)
        if value is None:
            raise ValueError(f'{path}: no metadata {family}.{key}; this GGUF file is incomplete')
        return value

    shapes = {t.name: [int(n) for n in t.shape] for t in reader.tensors}
    if 'token_embd.weight' not in shapes:
        raise ValueError(f'{path}: no tensor token_embd.weight; this GGUF file is incomplete')
    heads, hidden = get('attention.head_count'), get('embedding_length')
    head_dim = get('attention.key_length', hidden // heads)
    if get('rope.dimension_count', head_dim) != head_dim or get('attention.value_length', head_dim) != head_dim:
        raise ValueError(f'{path}: partial rotary embeddings and values of another size than keys are not supported')
    if get('rope.scaling.type', 'none') != 'none' or get('expert_count', 0):
        raise ValueError(f'{path}: {family}.rope.scaling and experts are not supported in GGUF')
    cfg = ModelConfig(
        family=family,
        vocab_size=shapes['token_embd.weight'][1],
        hidden_size=hidden,
        mlp_size=get('feed_forward_length'),
        num_layers=get('block_count'),
        num_heads=heads,
        num_kv_heads=get('attention.head_count_kv', heads),
        head_dim=head_dim,
        rope_theta=float(get('rope.freq_base', 10000.0)),
        # stored in single precision: 9.99999974e-06 was 1e-05
        norm_eps=float(f'{get("attention.layer_norm_rms_epsilon"):.6g}'),
        tie_embeddings='output.weight' not in shapes,
        max_position=get('context_length', 32768),
        **config.FAMILIES[family].traits,
    )
    return _with_llama3_scaling(cfg, reader, path)


def _with_llama3_scaling(cfg: ModelConfig, reader, path: pathlib.Path) -> ModelConfig:
    """Llama-3.x files carry the divisors of the rotary frequencies, not the four numbers that they came from.

    Only the factor differs between the published models; it is the largest divisor, and the rest is checked.
    """
    divisors = next((t.data for t in reader.tensors if t.name == 'rope_freqs.weight'), None)
    if divisors is None:
        return cfg
    scaled = dataclasses.replace(cfg, rope_scaling=RopeScaling(float(divisors.max()), 1.0, 4.0, 8192))
    ours = np.asarray(layers.rope_frequencies(cfg)) / np.asarray(layers.rope_frequencies(scaled))
    if ours.shape != divisors.shape or not np.allclose(ours, divisors, rtol=1e-3):
        raise ValueError(f'{path}: the rope_freqs of this file are not the scaling of Llama 3.1, 3.2 or 3.3')
    return scaled


# ---------------------------------------------------------------- load


def load(path: str | pathlib.Path, cfg: ModelConfig, mesh, dtype=jnp.float32, progress: bool = True) -> dict:
    """The weights of a Hugging Face directory or GGUF file, each shard read straight to its device.

    Args:
      path: what `download.resolve` returns.
      cfg: what `read_config(path)` returns.
      mesh: from sharding.make_mesh.
      dtype: dtype of the arrays.
      progress: shows a bar over the arrays.

    Returns:
      A tree of arrays after `transformer.layout(cfg)`.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: a tensor is missing, superfluous or of another shape, or the mesh does not divide it.
    """
    from tqdm import tqdm

    path = pathlib.Path(path)
    layout = transformer.layout(cfg)
    targets = _flat(sharding.abstract(layout, mesh, dtype))
    source = GgufFile(path, cfg) if path.suffix == '.gguf' else SafetensorsFiles(path)
    _check(path, source, {key: target.shape for key, target in targets.items()})
    hidden = None if progress and jax.process_index() == 0 else True  # None: only where there is a terminal
    bar = tqdm(targets.items(), desc=f'loading {path.name}', disable=hidden)
    return traverse_util.unflatten_dict({key: _array(source, key, target) for key, target in bar}, sep='.')


def _array(source, key: str, target: jax.ShapeDtypeStruct) -> jax.Array:
    """One weight as a sharded array, its callback filling a shard layer by layer."""
    name, transpose = source.name(key), NAMES[key].transpose
    shards: dict[tuple, np.ndarray] = {}  # replicas ask for the same index

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        return source.read(name, index[::-1]).T if transpose else source.read(name, index)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [slice(*s.indices(size)) for s, size in zip(index, target.shape, strict=True)]
        where = tuple((s.start, s.stop) for s in bounds)
        if where not in shards:
            out = np.empty([stop - start for start, stop in where], target.dtype)
            if not key.startswith('layers.'):
                out[...] = read(name, tuple(bounds))
            else:
                for row, layer in enumerate(range(*where[0])):
                    out[row] = read(name.format(layer), tuple(bounds[1:]))
            shards[where] = out
        return shards[where]

    return jax.make_array_from_callback(target.shape, target.sharding, shard)


def _check(path: pathlib.Path, source, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the file has exactly the tensors of the layout, in its shapes."""
    expected = {}
    for key, shape in shapes.items():
        for name, _ in _tensors(key, source.name(key), shape):
            expected[name] = _file_shape(key, shape)
    if missing := [name for name in expected if name not in source.shapes]:
        raise ValueError(f'{path}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)} are)')
    for name, shape in expected.items():
        if source.shapes[name] != shape:
            raise ValueError(f'{path}: tensor {name} has shape {source.shapes[name]}, the configuration says {shape}')
    # a tied checkpoint may repeat its embedding as the head; transformers ignores that copy, and so do we
    allowed = {*expected, source.name('head')}
    extra = sorted(n for n in source.shapes if n not in allowed and not n.endswith(DERIVED))
    if extra:
        raise ValueError(f'{path}: tensor {extra[0]} has no place in this model ({len(extra)} such tensors)')


def _tensors(key: str, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None]]:
    """The file's tensors that make up one weight: (name, layer), one a layer where it is stacked."""
    if not key.startswith('layers.'):
        yield name, None
        return
    for layer in range(shape[0]):
        yield name.format(layer), layer


def _file_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = shape[1:] if key.startswith('layers.') else shape
    return shape[::-1] if NAMES[key].transpose else shape


# ---------------------------------------------------------------- save


def save(
    params: dict, cfg: ModelConfig, directory: str | pathlib.Path, dtype: str = 'float32', shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a Hugging Face model directory: config.json and safetensors that `transformers` loads.

    Arrays are gathered one tensor at a time; a host holds one file's tensors. In a multi-process run all processes
    call this and process 0 writes. Weights that lay in the directory before are replaced; other files stay.

    Args:
      params: weights of `transformer.layout(cfg)`; adapters must be merged before.
      directory: made where missing.
      dtype: 'float32' or 'bfloat16', in the file.
      shard_bytes: size above which the weights are split over several files.

    Raises:
      ValueError: another dtype, or params that do not fit the layout.
    """
    if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f"dtype {dtype!r}: weights are written as 'float32' or 'bfloat16'")
    flat = _flat(params)
    _check_layout({key: tuple(leaf.shape) for key, leaf in flat.items()}, cfg)
    files = _plan(flat, jnp.dtype(dtype).itemsize, shard_bytes)
    names = [f'model-{i:05d}-of-{len(files):05d}.safetensors' for i in range(1, len(files) + 1)]
    names = names if len(files) > 1 else ['model.safetensors']
    writer = jax.process_index() == 0
    directory = pathlib.Path(directory)
    if writer:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(dir=directory, prefix='.saving-'))
    try:
        for file, tensors in zip(names, files, strict=True):
            arrays = {name: _to_file(flat[key], layer, NAMES[key].transpose, dtype) for name, key, layer in tensors}
            if writer:
                write_safetensors(scratch / file, arrays, {'format': 'pt'})
        if writer:
            (scratch / 'config.json').write_text(json.dumps(config.to_hf(cfg, dtype=dtype), indent=2) + '\n')
            if len(files) > 1:
                index = _index(flat, names, files, jnp.dtype(dtype).itemsize)
                (scratch / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n')
            _publish(scratch, directory)
    finally:
        if writer:
            shutil.rmtree(scratch, ignore_errors=True)


def _check_layout(shapes: dict[str, tuple[int, ...]], cfg: ModelConfig) -> None:
    expected = {key: p.shape for key, p in _flat(transformer.layout(cfg)).items()}
    if lora := [key for key in shapes if '_lora_' in key]:
        raise ValueError(f'{lora[0]}: merge the adapter into its kernel before saving the model')
    for key in sorted(expected.keys() | shapes.keys()):
        if expected.get(key) != shapes.get(key):
            raise ValueError(f'{key}: params have shape {shapes.get(key)}, the configuration says {expected.get(key)}')


def _plan(flat: dict, itemsize: int, shard_bytes: int) -> list[list[tuple[str, str, int | None]]]:
    """Splits the tensors (name, key, layer) over files of at most `shard_bytes`, or one tensor."""
    files, size = [[]], 0
    for key, leaf in flat.items():
        nbytes = int(np.prod(_file_shape(key, leaf.shape))) * itemsize
        for name, layer in _tensors(key, NAMES[key].hf, leaf.shape):
            if files[-1] and size + nbytes > shard_bytes:
                files.append([])
                size = 0
            files[-1].append((name, key, layer))
            size += nbytes
    return files


def _index(flat: dict, names: list[str], files: list, itemsize: int) -> dict:
    return {
        'metadata': {'total_size': sum(leaf.size for leaf in flat.values()) * itemsize},
        'weight_map': {name: file for file, tensors in zip(names, files, strict=True) for name, _, _ in tensors},
    }


def _publish(scratch: pathlib.Path, directory: pathlib.Path) -> None:
    """Moves the finished files in, then removes weights of an earlier save that would shadow them."""
    new = sorted(path.name for path in scratch.iterdir())
    for name in new:
        os.replace(scratch / name, directory / name)
    for old in [*directory.glob('model*.safetensors'), *directory.glob('model.safetensors.index.json')]:
        if old.name not in new:
            old.unlink()


def _to_file(leaf: jax.Array, layer: int | None, transpose: bool, dtype: str) -> np.ndarray:
    array = _gather(leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False))
    return (array.T if transpose else array).astype(jnp.dtype(dtype))


def _gather(array) -> np.ndarray:
    """The whole array on this host, wherever its shards are."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a file that whoever may read new files here may read; the library makes it its owner's alone."""
    from safetensors.numpy import save_file

    # safetensors writes the memory of an array whatever its strides
    path.touch()
    mode = path.stat().st_mode
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, metadata=metadata)
    path.chmod(mode)


# ---------------------------------------------------------------- small trees


def save_tree(path: str | pathlib.Path, tree: dict, metadata: dict[str, str] | None = None) -> None:
    """Writes a nested dict of arrays (an adapter) as one safetensors file with dotted names, atomically.

    In a multi-process run all processes call this and process 0 writes.

    Raises:
      ValueError: a key contains a dot, or a metadata value is not a string.
    """
    tuples = traverse_util.flatten_dict(tree)
    if bad := [key for key in tuples if any('.' in part for part in key)]:
        raise ValueError(f'{bad[0]}: a name with a dot cannot be stored')
    if bad := [key for key, value in (metadata or {}).items() if not isinstance(value, str)]:
        raise ValueError(f'metadata {bad[0]!r} must be a string')
    arrays = {'.'.join(key): _gather(leaf) for key, leaf in tuples.items()}
    if jax.process_index() == 0:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f'.{path.name}.tmp')
        write_safetensors(scratch, arrays, {'format': 'pt', **(metadata or {})})
        os.replace(scratch, path)


def tree_metadata(path: str | pathlib.Path) -> dict[str, str]:
    """The metadata of a file written by `save_tree`; raises as load_tree."""
    with _open_tree(path) as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != 'format'}


def load_tree(path: str | pathlib.Path) -> tuple[dict, dict[str, str]]:
    """The nested dict of numpy arrays, and the metadata, of a file written by `save_tree`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not safetensors.
    """
    with _open_tree(path) as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return traverse_util.unflatten_dict(flat, sep='.'), tree_metadata(path)


def _open_tree(path: str | pathlib.Path):
    from safetensors import SafetensorError, safe_open

    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such file; it should be one written by save_tree')
    try:
        return safe_open(path, framework='np')
    except SafetensorError as error:
        raise ValueError(f'{path}: not a whole safetensors file ({error})') from error


def _flat(tree: dict) -> dict:
    return traverse_util.flatten_dict(tree, sep='.')
