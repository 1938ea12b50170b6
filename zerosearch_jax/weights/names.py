"""The table of names and shapes of each weight of `transformer.layout` in files."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from flax import traverse_util


class Name(NamedTuple):
    """The names of a weight of `transformer.layout` in files; {} is a layer, a second one an expert.

    Kernels in files are [out, in].
    """

    hf: str
    gguf: str | None  # None: not supported
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
    'layers.attn_post_norm': Name('model.layers.{}.post_attention_layernorm.weight', None),  # Gemma's; others' mlp_norm
    'layers.mlp_pre_norm': Name('model.layers.{}.pre_feedforward_layernorm.weight', None),
    'layers.mlp_post_norm': Name('model.layers.{}.post_feedforward_layernorm.weight', None),
    'layers.gate': Name('model.layers.{}.mlp.gate_proj.weight', 'blk.{}.ffn_gate.weight', True),
    'layers.up': Name('model.layers.{}.mlp.up_proj.weight', 'blk.{}.ffn_up.weight', True),
    'layers.down': Name('model.layers.{}.mlp.down_proj.weight', 'blk.{}.ffn_down.weight', True),
    'layers.router': Name('model.layers.{}.mlp.gate.weight', None, True),
    'layers.expert_gate': Name('model.layers.{}.mlp.experts.{}.gate_proj.weight', None, True),
    'layers.expert_up': Name('model.layers.{}.mlp.experts.{}.up_proj.weight', None, True),
    'layers.expert_down': Name('model.layers.{}.mlp.experts.{}.down_proj.weight', None, True),
    'final_norm': Name('model.norm.weight', 'output_norm.weight'),
    'head': Name('lm_head.weight', 'output.weight', True),
}

# Derived from the configuration, so ignored if a file contains them too.
DERIVED = ('rotary_emb.inv_freq', 'rope_freqs.weight')


def stacked(key: str) -> int:
    """How many leading dimensions of a weight are of different tensors in files: its layers, then its experts."""
    return NAMES[key].hf.count('{}')


def tensors_of(key: str, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The file's tensors of one weight: (name, index), one for each layer, and each expert, if it is stacked."""
    for index in np.ndindex(shape[: stacked(key)]):
        yield name.format(*index), index


def shape_in_file(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of one tensor of a weight of this shape."""
    shape = shape[stacked(key) :]
    return shape[::-1] if NAMES[key].transpose else shape


def flat_tree(tree: dict) -> dict:
    """{'layers.q': array, ...}."""
    return traverse_util.flatten_dict(tree, sep='.')
