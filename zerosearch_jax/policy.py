"""The policy: the trained part of a model, the engine that samples from it, and its export."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.generate import capacity as capacities
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.pretrained import Model, load_adapter, open_engines
from zerosearch_jax.text import protocol
from zerosearch_jax.weights import huggingface, trees


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The model that is trained, or that answers questions."""

    model: str = 'smollm2-135m-instruct'  # name, hub id, directory or .gguf file; 'tiny': random weights, for tests
    adapter: str = (
        ''  # LoRA adapter to start from: a .safetensors file, a directory of peft, or the name of a shipped one
    )
    lora_rank: int = 0  # 0: train all weights
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # compute; master weights are float32


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A policy's weights: `params` are trained, `frozen` are not ({} if all are); `layout` is of params."""

    params: dict
    frozen: dict
    layout: dict


def make_trainable(model: Model, cfg: PolicyConfig, mesh: jax.sharding.Mesh, seed: int) -> Trainable:
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


def export_weights(
    params: dict, model: Model, adapter: bool, directory: pathlib.Path, config_json: str
) -> pathlib.Path:
    """Writes trained weights in float32: `adapter.safetensors`, the configuration in it, or `model/`.

    Args:
      params: the weights that were trained.
      model: that they belong to.
      adapter: whether they are an adapter.
      directory: of the run.
      config_json: its configuration as JSON text.

    Returns:
      The file or the directory, for config.policy.adapter or config.policy.model.
    """
    if adapter:
        path = directory / 'adapter.safetensors'
        trees.save_tree(path, params, {'config': config_json})
    else:
        path = directory / 'model'
        huggingface.save(params, model.cfg, path)
        if jax.process_index() == 0:
            model.tokenizer.save(path)
    return path


class EngineSize(Protocol):
    """The fields of a RolloutConfig that set the size of an engine."""

    slots: int
    episodes: int
    mesh: tuple[int, ...]
    cache_gib: float
    grammar: str
    prompt_tokens: int
    response_tokens: int
    decode_steps: int
    top_p: float


def open_policy(model: Model, size: EngineSize, mesh: jax.sharding.Mesh, *, dtype: str, capacity: int = 0) -> Engine:
    """An engine for a policy, which stops at the tags of its grammar; load weights before use.

    Args:
      model: the engine uses its sizes and its tokenizer.
      size: slots, memory and budgets.
      mesh: whose devices it uses.
      dtype: compute and cache dtype.
      capacity: tokens of a slot; 0: prompt and response of `size`.
    """
    return open_beside_policy((), model, size, mesh, dtype=dtype, capacity=capacity)[0]


def open_beside_policy(
    others: Sequence[Role],
    model: Model,
    size: EngineSize,
    mesh: jax.sharding.Mesh,
    *,
    dtype: str,
    capacity: int = 0,
) -> tuple[Engine, ...]:
    """The policy's engine, and one for each other role, an adapter of the same base on the same slots."""
    mesh = sharding.regrouped(mesh, size.mesh, 'config.rollout.mesh')
    return open_engines(
        model,
        mesh,
        (Role(size.slots or size.episodes), *others),
        cache_gib=size.cache_gib or (0 if size.slots else capacities.cache_gib(mesh)),
        capacity=capacity or size.prompt_tokens + size.response_tokens,
        decode_steps=size.decode_steps,
        dtype=dtype,
        stop_strings=protocol.GRAMMARS[size.grammar].stops,
        top_p=size.top_p,
    )


def policy_params(model: Model, cfg: PolicyConfig, mesh: jax.sharding.Mesh) -> dict:
    """The weights of a policy that is not trained: those of the model and of the configured adapter."""
    if not cfg.adapter:
        return model.params
    return lora.combine(model.params, load_adapter(cfg.adapter, model.cfg, mesh))
