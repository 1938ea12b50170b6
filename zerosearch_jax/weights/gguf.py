"""GGUF files: configuration, metadata, and tensors dequantized a slice of rows at a time."""

import dataclasses
import functools
import pathlib

import numpy as np

from zerosearch_jax.models import config, layers
from zerosearch_jax.models.config import ModelConfig, RopeScaling, positive
from zerosearch_jax.weights.names import NAMES


class GgufFile:
    """The tensors of a GGUF file, dequantized to float32 a slice of rows at a time."""

    def __init__(self, path: pathlib.Path, cfg: ModelConfig):
        reader = open_gguf(path)
        self._tensors = {t.name: t for t in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}
        self._rows = {}
        if gguf_value(reader, 'general.architecture') == 'llama':
            # llama.cpp stores these for adjacent rotary pairs; ours are half a head apart
            self._rows = {
                'attn_q': _rotate_half_rows(cfg.num_heads, cfg.head_dim),
                'attn_k': _rotate_half_rows(cfg.num_kv_heads, cfg.head_dim),
            }

    @staticmethod
    def name_in_file(key: str) -> str:
        return NAMES[key].gguf

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
    """A gguf.GGUFReader of a file; the last one is cached, since parsing takes seconds and three callers need it.

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


def read_gguf_config(path: pathlib.Path) -> ModelConfig:
    reader = open_gguf(path)
    family = gguf_value(reader, 'general.architecture')
    known = [name for name, found in config.FAMILIES.items() if not found.read]  # nothing more to read
    if family not in known:
        raise ValueError(f'{path}: architecture {family!r} is not supported; supported: {", ".join(known)}')

    def get(key: str, *default):
        value = gguf_value(reader, f'{family}.{key}', *default)
        if value is None:
            raise ValueError(f'{path}: no metadata {family}.{key}; this GGUF file is incomplete')
        return value

    def size(key: str, *default) -> int:
        return positive(f'{path}: metadata {family}.{key}', get(key, *default), int)

    shapes = {t.name: [int(n) for n in t.shape] for t in reader.tensors}
    if 'token_embd.weight' not in shapes:
        raise ValueError(f'{path}: no tensor token_embd.weight; this GGUF file is incomplete')
    heads, hidden = size('attention.head_count'), size('embedding_length')
    head_dim = size('attention.key_length', hidden // heads)
    if get('rope.dimension_count', head_dim) != head_dim or get('attention.value_length', head_dim) != head_dim:
        raise ValueError(f'{path}: partial rotary embeddings and values of another size than keys are not supported')
    if get('rope.scaling.type', 'none') != 'none' or get('expert_count', 0):
        raise ValueError(f'{path}: {family}.rope.scaling and experts are not supported in GGUF')
    cfg = ModelConfig(
        family=family,
        vocab_size=shapes['token_embd.weight'][1],
        hidden_size=hidden,
        mlp_size=size('feed_forward_length'),
        num_layers=size('block_count'),
        num_heads=heads,
        num_kv_heads=size('attention.head_count_kv', heads),
        head_dim=head_dim,
        rope_theta=float(get('rope.freq_base', 10000.0)),
        # stored in single precision: 9.99999974e-06 was 1e-05
        norm_eps=float(f'{get("attention.layer_norm_rms_epsilon"):.6g}'),
        tie_embeddings='output.weight' not in shapes,
        max_position=size('context_length', 32768),
        **config.FAMILIES[family].traits,
    )
    return _with_llama3_scaling(cfg, reader, path)


def _with_llama3_scaling(cfg: ModelConfig, reader, path: pathlib.Path) -> ModelConfig:
    """The configuration with Llama-3 scaling: files have the divisors of the rotary frequencies, not the parameters.

    Only the factor differs between the published models; it is the largest divisor, and the others are checked.
    """
    divisors = next((t.data for t in reader.tensors if t.name == 'rope_freqs.weight'), None)
    if divisors is None:
        return cfg
    scaled = dataclasses.replace(cfg, rope_scaling=RopeScaling(float(divisors.max()), 1.0, 4.0, 8192))
    ours = np.asarray(layers.rope_frequencies(cfg)) / np.asarray(layers.rope_frequencies(scaled))
    if ours.shape != divisors.shape or not np.allclose(ours, divisors, rtol=1e-3):
        raise ValueError(f'{path}: the rope_freqs of this file are not the scaling of Llama 3.1, 3.2 or 3.3')
    return scaled
