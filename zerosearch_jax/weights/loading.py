"""Loads a model's configuration and weights from a Hugging Face directory or a GGUF file.

Every shard of every array reads exactly the slice that it needs. So no host holds the whole model, or a whole stacked
weight of which it owns only a part.
"""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zerosearch_jax import sharding
from zerosearch_jax.models import config, transformer
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.weights.gguf import GgufFile, read_gguf_config
from zerosearch_jax.weights.huggingface import SafetensorsFiles
from zerosearch_jax.weights.names import DERIVED, NAMES, flat_tree, shape_in_file, stacked, tensors_of
from zerosearch_jax.weights.trees import require_finite

# ---------------------------------------------------------------- configuration


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """The configuration of a Hugging Face directory or a GGUF file.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: a model that this library does not implement.
    """
    path = pathlib.Path(path)
    return read_gguf_config(path) if path.suffix == '.gguf' else config.read(path)


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
      A tree of arrays as in `transformer.layout(cfg)`.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: a tensor is missing, superfluous, of another shape or not finite, or the mesh does not divide it.
    """
    from tqdm import tqdm

    path = pathlib.Path(path)
    layout = transformer.layout(cfg)
    targets = flat_tree(sharding.abstract(layout, mesh, dtype))
    source = GgufFile(path, cfg) if path.suffix == '.gguf' else SafetensorsFiles(path)
    _check(path, source, {key: target.shape for key, target in targets.items()})
    if cfg.tie_embeddings:
        _check_head(path, source)
    hidden = None if progress and jax.process_index() == 0 else True  # None: only where there is a terminal
    bar = tqdm(targets.items(), desc=f'loading {path.name}', disable=hidden)
    return traverse_util.unflatten_dict({key: _array(path, source, key, target) for key, target in bar}, sep='.')


def _array(path: pathlib.Path, source, key: str, target: jax.ShapeDtypeStruct) -> jax.Array:
    """One weight as a sharded array, its callback filling a shard layer by layer."""
    name, transpose, levels = source.name_in_file(key), NAMES[key].transpose, stacked(key)
    shards: dict[tuple, np.ndarray] = {}  # replicas ask for the same index

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        found = source.read(name, index[::-1]).T if transpose else source.read(name, index)
        return require_finite(f'{path}: tensor {name}', found.astype(target.dtype, copy=False))

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [slice(*s.indices(size)) for s, size in zip(index, target.shape, strict=True)]
        where = tuple((s.start, s.stop) for s in bounds)
        if where not in shards:
            out = np.empty([stop - start for start, stop in where], target.dtype)
            for row in np.ndindex(out.shape[:levels]):
                numbers = (start + i for (start, _), i in zip(where, row, strict=False))
                out[row] = read(name.format(*numbers), tuple(bounds[levels:]))
            shards[where] = out
        return shards[where]

    return jax.make_array_from_callback(target.shape, target.sharding, shard)


def _check(path: pathlib.Path, source, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the file has exactly the tensors of the layout, in its shapes."""
    expected = {}
    for key, shape in shapes.items():
        for name, _ in tensors_of(key, source.name_in_file(key), shape):
            expected[name] = shape_in_file(key, shape)
    if missing := [name for name in expected if name not in source.shapes]:
        raise ValueError(f'{path}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)} are)')
    for name, shape in expected.items():
        if source.shapes[name] != shape:
            raise ValueError(f'{path}: tensor {name} has shape {source.shapes[name]}, the configuration says {shape}')
    # a tied checkpoint may repeat its embedding as the head: _check_head
    allowed = {*expected, source.name_in_file('head')}
    extra = sorted(n for n in source.shapes if n not in allowed and not n.endswith(DERIVED))
    if extra:
        raise ValueError(f'{path}: tensor {extra[0]} has no place in this model ({len(extra)} such tensors)')


def _check_head(path: pathlib.Path, source, rows: int = 8192) -> None:
    """Raises ValueError if the file of a tied model has a head of its own, which would be lost."""
    head, embed = source.name_in_file('head'), source.name_in_file('embed')
    size, width = source.shapes[embed]
    blocks = ((slice(i, min(i + rows, size)), slice(0, width)) for i in range(0, size, rows))
    if head in source.shapes and not (
        source.shapes[head] == (size, width)
        and all(np.array_equal(source.read(head, block), source.read(embed, block)) for block in blocks)
    ):
        raise ValueError(
            f'{path}: {head} is not {embed}, though config.json has tie_word_embeddings = true; set it to false'
        )
