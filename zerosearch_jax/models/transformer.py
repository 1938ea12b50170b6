"""The decoder as a layout and pure functions: `hidden` for training and scoring, `logits` for its head.

    tokens [B, T] --embed--> x [B, T, D] --L x (attention, mlp)--> hidden [B, T, D] --head--> logits [B, T, V]

The cached forms (prefill, decode) are in generate/programs.py; they run the same `block`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zerosearch_jax.models import attention, experts, layers
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.sharding import Param, constrain, is_param

REMAT_POLICIES: dict[str, Callable | None] = {
    'none': None,  # keep every activation
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matrix products, recompute the rest
    'full': jax.checkpoint_policies.nothing_saveable,  # keep only the input of each layer
}


def layout(cfg: ModelConfig) -> dict:
    """The weights of a model. Per-layer weights are stacked on a leading axis; kernels are [in, out]."""
    L, D, F, V = cfg.num_layers, cfg.hidden_size, cfg.mlp_size, cfg.vocab_size
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim

    def norm(*shape):
        return Param(shape, (None,) * len(shape), 'zeros' if cfg.norm_from_one else 'ones')

    stack = {
        'attn_norm': norm(L, D),
        'q': Param((L, D, heads), (None, 'embed', 'heads')),
        'k': Param((L, D, kv_heads), (None, 'embed', 'kv_heads')),
        'v': Param((L, D, kv_heads), (None, 'embed', 'kv_heads')),
        'o': Param((L, heads, D), (None, 'heads', 'embed')),
        'mlp_pre_norm' if cfg.post_norms else 'mlp_norm': norm(L, D),
    }
    if cfg.num_experts:
        stack |= experts.layout(cfg)
    else:
        stack |= {
            'gate': Param((L, D, F), (None, 'embed', 'mlp')),
            'up': Param((L, D, F), (None, 'embed', 'mlp')),
            'down': Param((L, F, D), (None, 'mlp', 'embed')),
        }
    if cfg.qkv_bias:
        stack |= {
            'q_bias': Param((L, heads), (None, 'heads'), 'zeros'),
            'k_bias': Param((L, kv_heads), (None, 'kv_heads'), 'zeros'),
            'v_bias': Param((L, kv_heads), (None, 'kv_heads'), 'zeros'),
        }
    if cfg.qk_norm:
        stack |= {
            'q_norm': norm(L, cfg.head_dim),
            'k_norm': norm(L, cfg.head_dim),
        }
    if cfg.post_norms:
        stack |= {'attn_post_norm': norm(L, D), 'mlp_post_norm': norm(L, D)}
    tree = {
        'embed': Param((V, D), ('vocab', 'embed'), 'embedding'),
        'layers': stack,
        'final_norm': norm(D),
    }
    if not cfg.tie_embeddings:
        tree['head'] = Param((D, V), ('embed', 'vocab'))
    return tree


def num_parameters(cfg: ModelConfig) -> int:
    """Count of weights, tied embeddings counted once."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(layout(cfg), is_leaf=is_param))


def embed(params: dict, tokens_BxT: jax.Array, dtype) -> jax.Array:
    """Token embeddings [B, T, D]."""
    return constrain(_rows_of(params['embed'], tokens_BxT, dtype), 'batch', None, None)


def scaled(x_BxTxD: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Token embeddings as the first layer takes them: Gemma's times sqrt(D), rounded to their dtype."""
    return x_BxTxD * jnp.asarray(cfg.hidden_size**0.5, x_BxTxD.dtype) if cfg.scaled_embedding else x_BxTxD


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows_of(table_VxD: jax.Array, tokens_BxT: jax.Array, dtype) -> jax.Array:
    """Rows of a table in `dtype`, with a gradient that is summed in float32: bfloat16 cannot count a frequent token."""
    # Gathering from a table sharded over fsdp makes XLA rematerialize it whole; unshard that axis first.
    return constrain(table_VxD.astype(dtype), 'vocab', None)[tokens_BxT]


def _rows_backward(dtype, residuals, g_BxTxD):
    table_VxD, tokens_BxT = residuals
    zeros_VxD = constrain(jnp.zeros(table_VxD.shape, jnp.float32), 'vocab', None)
    return zeros_VxD.at[tokens_BxT].add(g_BxTxD.astype(jnp.float32)).astype(table_VxD.dtype), None


_rows_of.defvjp(lambda table, tokens, dtype: (_rows_of(table, tokens, dtype), (table, tokens)), _rows_backward)


TOKENS = ('batch', None, None)  # the logical axes of x in training


def block(layer: dict, x_BxTxD, positions_BxT, cfg: ModelConfig, attend: Callable, *, axes=TOKENS, sliding=False):
    """One layer; `attend(q, k, v) -> [B, T, H * E]` decides what the queries see (training mask or cache).

    `axes` are the logical axes of x; `sliding`: whether the layer has a window.
    """

    def add(x, out, name):
        return x + (layers.norm(out, layer[name], cfg) if cfg.post_norms else out)

    with jax.named_scope('attention'):
        normed = layers.norm(x_BxTxD, layer['attn_norm'], cfg)
        q, k, v = layers.qkv(layer, normed, positions_BxT, cfg, sliding)
        x_BxTxD = add(x_BxTxD, layers.linear(layer, 'o', attend(q, k, v)), 'attn_post_norm')
    with jax.named_scope('mlp'):
        normed = layers.norm(x_BxTxD, layer['mlp_pre_norm' if cfg.post_norms else 'mlp_norm'], cfg)
        mlp = experts.mlp(layer, normed, cfg, axes) if cfg.num_experts else layers.mlp(layer, normed, cfg.gelu)
        return add(x_BxTxD, mlp, 'mlp_post_norm')


def hidden(
    params: dict,
    cfg: ModelConfig,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    segments_BxT: jax.Array,
    prefixes_BxT: jax.Array,
    *,
    dtype=jnp.float32,
    remat: str = 'none',
    form: str = 'chunked',
) -> jax.Array:
    """Final normed hidden states [B, T, D] of packed rows.

    Args:
      params: weights, optionally with low-rank adapters beside their kernels (models/lora.py).
      tokens_BxT: token ids; several sequences may share a row.
      positions_BxT: position of each token in its own sequence.
      segments_BxT: which sequence of the row a token belongs to, from 1; 0 is padding.
      prefixes_BxT: the other segment that it attends to; its own if nothing is shared.
      dtype: compute dtype.
      remat: key of REMAT_POLICIES.
      form: key of attention.TRAINING.
    """

    attend = attention.causal_attention(segments_BxT, prefixes_BxT, form, positions_BxT, cfg.window)

    def layer_step(x, stacked):
        layer, sliding = stacked
        x = block(layer, x, positions_BxT, cfg, functools.partial(attend, sliding=sliding), sliding=sliding)
        return constrain(x, *TOKENS), None

    if remat != 'none':
        layer_step = jax.checkpoint(layer_step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    stacked = params['layers'], jnp.asarray(cfg.sliding) if cfg.window else None
    x_BxTxD, _ = jax.lax.scan(layer_step, scaled(embed(params, tokens_BxT, dtype), cfg), stacked)
    return layers.norm(x_BxTxD, params['final_norm'], cfg)


def head(params: dict) -> jax.Array:
    """The output projection [D, V]: its own matrix, or the transposed embedding if tied."""
    return params['head'] if 'head' in params else params['embed'].T


def logits(params: dict, hidden_BxTxD: jax.Array) -> jax.Array:
    """Float32 logits [B, T, V]."""
    return project(hidden_BxTxD, head(params).astype(hidden_BxTxD.dtype))


def project(hidden_BxTxD: jax.Array, head_DxV: jax.Array) -> jax.Array:
    """Float32 logits [B, T, V] with a given head."""
    out = jnp.einsum('btd,dv->btv', hidden_BxTxD, head_DxV, preferred_element_type=jnp.float32)
    return constrain(out, 'batch', None, 'vocab')
