"""Hugging Face directories: reads their safetensors, and writes what transformers loads."""

import json
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.models import config, transformer
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.weights.names import NAMES, flat_tree, shape_in_file, tensors_of
from zerosearch_jax.weights.trees import gather, open_safetensors, require_finite, write_safetensors

# ---------------------------------------------------------------- files


class SafetensorsFiles:
    """The tensors of a Hugging Face directory: `model.safetensors`, or the shards of its index."""

    def __init__(self, directory: pathlib.Path):
        index = directory / 'model.safetensors.index.json'
        if (directory / 'model.safetensors').is_file():  # the one that transformers prefers
            files = ['model.safetensors']
        elif index.is_file():
            try:
                files = sorted(set(settings.read_json(index)['weight_map'].values()))
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f'{index}: not an index of safetensors files') from error
        else:
            raise FileNotFoundError(f'{directory}: put model.safetensors, or its index and shards, there')
        self._slices = {}
        for file in files:
            if not isinstance(file, str) or pathlib.PurePath(file).name != file:
                raise ValueError(f'{index}: shard {file!r} is not a file name of this directory')
            handle = open_safetensors(directory / file)
            self._slices |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
        self.shapes = {name: tuple(s.get_shape()) for name, s in self._slices.items()}

    @staticmethod
    def name_in_file(key: str) -> str:
        return NAMES[key].hf

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads one slice of one tensor, in the file's dtype."""
        return self._slices[name][index]


# ---------------------------------------------------------------- save


def save(
    params: dict, cfg: ModelConfig, directory: str | pathlib.Path, dtype: str = 'float32', shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a Hugging Face model directory: config.json and safetensors that `transformers` loads.

    Arrays are gathered one tensor at a time; a host holds one file's tensors. In a multi-process run all processes
    call this and process 0 writes. Earlier weights in the directory are replaced; other files stay.

    Args:
      params: weights of `transformer.layout(cfg)`; adapters must be merged before.
      directory: created if missing.
      dtype: 'float32' or 'bfloat16', in the file.
      shard_bytes: size above which the weights are split over several files.

    Raises:
      ValueError: another dtype, params that do not fit the layout, or a weight that is not finite in this dtype.
    """
    if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f"dtype {dtype!r}: weights are written as 'float32' or 'bfloat16'")
    flat = flat_tree(params)
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
            arrays = {name: _to_file(name, flat[key], index, key, dtype) for name, key, index in tensors}
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
    expected = {key: p.shape for key, p in flat_tree(transformer.layout(cfg)).items()}
    if lora := [key for key in shapes if '_lora_' in key]:
        raise ValueError(f'{lora[0]}: merge the adapter into its kernel before saving the model')
    for key in sorted(expected.keys() | shapes.keys()):
        if expected.get(key) != shapes.get(key):
            raise ValueError(f'{key}: params have shape {shapes.get(key)}, the configuration says {expected.get(key)}')


def _plan(flat: dict, itemsize: int, shard_bytes: int) -> list[list[tuple[str, str, tuple[int, ...]]]]:
    """Splits the tensors (name, key, index) over files of at most `shard_bytes`, or one tensor."""
    files, size = [[]], 0
    for key, leaf in flat.items():
        nbytes = int(np.prod(shape_in_file(key, leaf.shape))) * itemsize
        for name, index in tensors_of(key, NAMES[key].hf, leaf.shape):
            if files[-1] and size + nbytes > shard_bytes:
                files.append([])
                size = 0
            files[-1].append((name, key, index))
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
    names = 'model.safetensors', 'model-*-of-*.safetensors', 'model.safetensors.index.json'
    for old in [path for name in names for path in directory.glob(name)]:
        if old.name not in new:
            old.unlink()


def _to_file(name: str, leaf: jax.Array | np.ndarray, index: tuple[int, ...], key: str, dtype: str) -> np.ndarray:
    if isinstance(leaf, np.ndarray):  # a device would be sent the whole stack
        leaf, index = leaf[index], ()
    for i in index:
        leaf = jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False)
    array = gather(leaf)
    return require_finite(name, (array.T if NAMES[key].transpose else array).astype(jnp.dtype(dtype)))
