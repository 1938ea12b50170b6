"""Safetensors files: opens and writes any, and saves and loads small trees of arrays (adapters)."""

import os
import pathlib

import jax
import numpy as np
from flax import traverse_util


def gather(array) -> np.ndarray:
    """The whole array on this host, wherever its shards are."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def require_finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array itself; raises ValueError with its name if it holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise ValueError(f'{name} holds numbers that are not finite; such weights are neither read nor written')
    return array


def open_safetensors(path: pathlib.Path):
    """A safetensors file of floating-point weights, opened for numpy.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is truncated, or holds other types: float8 and integers mean little without their scales.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    try:
        file = safe_open(path, framework='np')
    except SafetensorError as error:
        raise ValueError(f'{path}: not a whole safetensors file ({error})') from error
    for name in file.keys():  # noqa: SIM118 (not a mapping)
        if (kind := file.get_slice(name).get_dtype()) not in ('F32', 'BF16', 'F16', 'F64'):
            raise ValueError(f'{path}: tensor {name} has numbers of type {kind}; quantized weights are not supported')
    return file


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a file with the permissions of new files; the library would allow only its owner to read it."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors writes the memory of an array and ignores its strides
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, metadata=metadata)
    except SafetensorError as error:  # of the disk
        raise OSError(f'{path} cannot be written: {error}') from error
    path.chmod(mode)


# ---------------------------------------------------------------- small trees


def save_tree(path: str | pathlib.Path, tree: dict, metadata: dict[str, str] | None = None) -> None:
    """Writes a nested dict of arrays (an adapter) as one safetensors file with dotted names, atomically.

    In a multi-process run all processes call this and process 0 writes.

    Raises:
      ValueError: a key contains a dot, a metadata value is not a string, or a weight is not finite.
    """
    tuples = traverse_util.flatten_dict(tree)
    if bad := [key for key in tuples if any('.' in part for part in key)]:
        raise ValueError(f'{bad[0]}: a name with a dot cannot be stored')
    if bad := [key for key, value in (metadata or {}).items() if not isinstance(value, str)]:
        raise ValueError(f'metadata {bad[0]!r} must be a string')
    named = (('.'.join(key), leaf) for key, leaf in tuples.items())
    arrays = {name: require_finite(f'{path}: {name}', gather(leaf)) for name, leaf in named}
    if jax.process_index() == 0:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f'.{path.name}.tmp')
        write_safetensors(scratch, arrays, {'format': 'pt', **(metadata or {})})
        os.replace(scratch, path)


def tree_metadata(path: str | pathlib.Path) -> dict[str, str]:
    """The metadata of a file written by `save_tree`; raises as load_tree does."""
    with open_safetensors(pathlib.Path(path)) as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != 'format'}


def load_tree(path: str | pathlib.Path) -> tuple[dict, dict[str, str]]:
    """The nested dict of numpy arrays, and the metadata, of a file written by `save_tree`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as in open_safetensors.
    """
    with open_safetensors(pathlib.Path(path)) as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return traverse_util.unflatten_dict(flat, sep='.'), tree_metadata(path)
