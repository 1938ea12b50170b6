"""Loading a model for one of its two roles, policy or simulator: weights, tokenizer, adapter, and a policy's engine."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.generate.sampling import Truncation
from zerosearch_jax.models import download, lora, peft, transformer, weights
from zerosearch_jax.models.config import PRESETS, ModelConfig
from zerosearch_jax.search import prompts
from zerosearch_jax.search.rollout import RolloutConfig
from zerosearch_jax.text import stop
from zerosearch_jax.text.tokenizer import Tokenizer, byte_tokenizer

SHIPPED_ADAPTERS = pathlib.Path(__file__).parent / 'adapters'


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The model that is trained, or that answers."""

    model: str = 'smollm2-135m-instruct'  # name, hub id, directory or .gguf file; 'tiny': random weights, for tests
    adapter: str = (
        ''  # LoRA adapter to start from: a .safetensors file, a directory of peft, or the name of a shipped one
    )
    lora_rank: int = 0  # 0: train all weights
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # compute; master weights are float32


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model: its configuration, tokenizer and weights on the mesh."""

    cfg: ModelConfig
    tokenizer: Tokenizer
    params: dict

    @property
    def token_bytes(self) -> list[bytes]:
        """Bytes of every id that the model can sample; ids beyond the tokenizer's have none."""
        known = self.tokenizer.token_bytes
        return known + [b''] * (self.cfg.vocab_size - len(known))


def load_model(reference: str, mesh: jax.sharding.Mesh, dtype='float32') -> Model:
    """Loads weights and tokenizer.

    Args:
      reference: what `download.resolve` takes, or 'tiny' for random weights and the byte tokenizer.
      mesh: where the weights are put, each shard straight to its device.
      dtype: of the weights; float32 for those that are trained.

    Raises:
      FileNotFoundError, ValueError: with what to put where.
    """
    if reference == 'tiny':
        cfg = PRESETS['tiny']
        params = sharding.init(transformer.layout(cfg), jax.random.key(0), mesh, dtype)
        return Model(cfg, byte_tokenizer(), params)
    path = download.resolve(reference)
    cfg = weights.read_config(path)
    return Model(cfg, Tokenizer.load(path), weights.load(path, cfg, mesh, dtype))


def find_adapter(reference: str) -> pathlib.Path:
    """The file of an adapter, or its directory in peft's format.

    Raises:
      FileNotFoundError: neither of them, nor the name of a shipped adapter.
    """
    path = pathlib.Path(reference)
    if not path.suffix and not path.is_dir():
        path = SHIPPED_ADAPTERS / f'{reference}.safetensors'
    if not path.exists():
        shipped = ', '.join(sorted(p.stem for p in SHIPPED_ADAPTERS.glob('*.safetensors')))
        raise FileNotFoundError(f'adapter {reference!r}: no such file; shipped adapters: {shipped or "none"}')
    return path


def load_adapter(reference: str, cfg: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """Reads a LoRA adapter into float32 shards.

    Raises:
      FileNotFoundError: neither a file, nor a directory of `peft`, nor the name of a shipped adapter.
      ValueError: it was made for a model of other sizes.
    """
    path = find_adapter(reference)
    tree = peft.load(path, cfg) if path.is_dir() else weights.load_tree(path)[0]
    rank = next(w.shape[-1] for name, w in tree['layers'].items() if name.endswith('_lora_a'))
    targets = tuple(name.removesuffix('_lora_a') for name in tree['layers'] if name.endswith('_lora_a'))
    layout = lora.layout(cfg, rank, targets)
    for name, param in layout['layers'].items():
        if tree['layers'][name].shape != param.shape:
            raise ValueError(
                f'adapter {reference!r}: {name} is {tree["layers"][name].shape}, but the model needs {param.shape}; '
                'use the model that it was made for'
            )
    place = sharding.shardings(layout, mesh)
    return jax.tree.map(lambda w, s: jax.device_put(w.astype(jnp.float32), s), tree, place)


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A policy's weights: `params` are trained, `frozen` are not ({} if all are); `layout` is of params."""

    params: dict
    frozen: dict
    layout: dict


def trainable(model: Model, cfg: PolicyConfig, mesh: jax.sharding.Mesh, seed: int) -> Trainable:
    """Splits a loaded model as the configuration asks: a (new or given) adapter over frozen weights, or all weights.

    Raises:
      ValueError: the given adapter has another rank than `lora_rank`.
    """
    adapter = load_adapter(cfg.adapter, model.cfg, mesh) if cfg.adapter else None
    if not cfg.lora_rank:
        merged = model.params if adapter is None else jax.jit(lora.merge)(lora.combine(model.params, adapter))
        return Trainable(merged, {}, transformer.layout(model.cfg))
    layout = lora.layout(model.cfg, cfg.lora_rank)
    if adapter is None:
        adapter = sharding.init(layout, jax.random.key(seed), mesh)
    elif jax.tree.map(jnp.shape, adapter) != jax.tree.map(lambda p: p.shape, layout, is_leaf=sharding.is_param):
        raise ValueError(f'config.policy.lora_rank = {cfg.lora_rank} differs from adapter {cfg.adapter!r}')
    return Trainable(adapter, model.params, layout)


def export(params: dict, model: Model, adapter: bool, directory: pathlib.Path, resolved: str) -> pathlib.Path:
    """Writes trained weights: `adapter.safetensors` in bfloat16, the configuration beside it, or `model/` in float32.

    Args:
      params: the weights that were trained.
      model: what they belong to.
      adapter: whether they are an adapter.
      directory: of the run.
      resolved: its configuration as JSON text.

    Returns:
      The file or the directory: what config.policy.adapter or config.policy.model takes.
    """
    if adapter:
        path = directory / 'adapter.safetensors'
        half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        weights.save_tree(path, half, {'config': resolved})
    else:
        path = directory / 'model'
        weights.save(params, model.cfg, path)
        model.tokenizer.save(path)
    return path


def open_policy(model: Model, size: RolloutConfig, mesh: jax.sharding.Mesh, *, dtype: str, capacity: int = 0) -> Engine:
    """An engine for a policy: it stops at the tags of the protocol; load weights before use.

    Args:
      model: whose sizes and tokenizer it takes.
      size: slots, memory and budgets.
      mesh: of the weights.
      dtype: compute and cache dtype.
      capacity: tokens of a slot; 0: prompt and response of `size`.
    """
    return Engine(
        model.cfg,
        mesh,
        slots=size.slots,
        cache_bytes=int(size.cache_gib * 2**30) or None,
        capacity=capacity or size.prompt_tokens + size.response_tokens,
        stop=stop.compile_table(prompts.STOP_STRINGS, model.token_bytes),
        eos_ids=model.tokenizer.eos_ids,
        steps=size.decode_steps,
        dtype=dtype,
        truncation=Truncation(top_p=size.top_p),
    )


def policy_params(model: Model, cfg: PolicyConfig, mesh: jax.sharding.Mesh) -> dict:
    """The weights of a policy that is not trained: the model's, with the configured adapter beside them."""
    if not cfg.adapter:
        return model.params
    return lora.combine(model.params, load_adapter(cfg.adapter, model.cfg, mesh))
