"""The model in tunix, in float32 on one device. Its rotary frequencies are not SmolLM2's; the work is the same."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params


def load(path: pathlib.Path):
    """The model, its configuration and its mesh."""
    hf = json.loads((path / 'config.json').read_text())
    cfg = llama.ModelConfig(
        num_layers=hf['num_hidden_layers'],
        vocab_size=hf['vocab_size'],
        embed_dim=hf['hidden_size'],
        hidden_dim=hf['intermediate_size'],
        num_heads=hf['num_attention_heads'],
        head_dim=hf['hidden_size'] // hf['num_attention_heads'],
        num_kv_heads=hf['num_key_value_heads'],
        rope_theta=100_000,
        norm_eps=hf['rms_norm_eps'],
        weight_tying=hf['tie_word_embeddings'],
    )
    mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return llama_params.create_model_from_safe_tensors(str(path), cfg, mesh, dtype=jnp.float32), cfg, mesh
