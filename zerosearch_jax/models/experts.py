"""A mixture of experts in place of the MLP: each token passes through the k experts that its router weighs most.

Tokens are sorted by expert, and `jax.lax.ragged_dot` multiplies each run of them by its expert's kernel. The result is
exact: no expert has a capacity, and no token is dropped. Each device does this for its own tokens; an expert's kernels
are split like those of an MLP. X is the number of experts, N = B T; other letters are those of models/layers.py.

    x [N, D] --sort k copies--> [N k, D] --gate, up--> [N k, F] --down--> [N k, D] --unsort, weigh, sum--> [N, D]

XLA has no ragged product on CPUs and GPUs, where every token is multiplied by the kernels of all experts.
"""

import functools

import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.sharding import Param

KERNELS = ('expert_gate', 'expert_up', 'expert_down')


def layout(cfg: ModelConfig) -> dict[str, Param]:
    """The weights of the experts and routers of all layers."""
    L, X, D, F = cfg.num_layers, cfg.num_experts, cfg.hidden_size, cfg.mlp_size
    return {
        'router': Param((L, D, X), (None, 'embed', None)),
        'expert_gate': Param((L, X, D, F), (None, None, 'embed', 'mlp')),
        'expert_up': Param((L, X, D, F), (None, None, 'embed', 'mlp')),
        'expert_down': Param((L, X, F, D), (None, None, 'mlp', 'embed')),
    }


def mlp(layer: dict, x_BxTxD: jax.Array, cfg: ModelConfig, axes: tuple) -> jax.Array:
    """The weighed sum of each token's experts [B, T, D]; `axes` are the logical axes of x.

    If x is split along the embedding, as in generation, partial products are summed and no kernel moves. Otherwise
    each device gathers the rows of its kernels.
    """
    embed = axes[-1]
    placed = {'router': (embed, None), 'expert_down': (None, 'mlp', embed), 'expert_down_scale': (None, embed)}
    for name in ('expert_gate', 'expert_up'):
        placed |= {name: (None, embed, 'mlp'), f'{name}_scale': (None, 'mlp')}
    weights = {name: layer[name] for name in placed if name in layer}
    own = jax.shard_map(
        functools.partial(_own_tokens, cfg=cfg, embed=embed),
        in_specs=({name: sharding.spec(*placed[name]) for name in weights}, sharding.spec(*axes)),
        out_specs=sharding.spec(*axes),
    )
    return own(weights, x_BxTxD)


def _own_tokens(weights: dict, x_BxTxD: jax.Array, *, cfg: ModelConfig, embed: str | None) -> jax.Array:
    x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
    weights_NxK, chosen_NxK = route(weights['router'], x_NxD, cfg, embed)
    chosen = chosen_NxK.reshape(-1)
    order, sizes_X = jnp.argsort(chosen, stable=True), jnp.bincount(chosen, length=cfg.num_experts)

    def product(name, rows):
        out = jax.lax.ragged_dot(rows, weights[name].astype(rows.dtype), sizes_X)
        scales = weights.get(f'{name}_scale')
        return out if scales is None else out * scales[chosen[order]].astype(rows.dtype)

    rows = x_NxD[order // cfg.experts_per_token]
    gate, up = (_whole(product(name, rows), embed) for name in ('expert_gate', 'expert_up'))
    out = product('expert_down', jax.nn.silu(gate) * up)[jnp.argsort(order)]
    out_NxKxD = out.reshape(*chosen_NxK.shape, -1) * weights_NxK[..., None].astype(out.dtype)
    return _whole(jnp.sum(out_NxKxD, axis=1), 'mlp').reshape(x_BxTxD.shape)


def route(router_DxX: jax.Array, x_NxD: jax.Array, cfg: ModelConfig, embed: str | None = None) -> tuple:
    """Weights [N, k] and numbers [N, k] of each token's experts, in float32: rounding would send tokens elsewhere."""
    products = jnp.matmul(*(x.astype(jnp.float32) for x in (x_NxD, router_DxX)), precision=jax.lax.Precision.HIGHEST)
    weights_NxK, chosen_NxK = jax.lax.top_k(jax.nn.softmax(_whole(products, embed)), cfg.experts_per_token)
    if cfg.normalize_experts:
        weights_NxK /= jnp.sum(weights_NxK, axis=-1, keepdims=True)
    return weights_NxK, chosen_NxK


def _whole(x: jax.Array, axis: str | None) -> jax.Array:
    """The sum of the devices' parts of a product over a logical axis; None: it is not split."""
    return jax.lax.psum(x, sharding.RULES.get(axis, ()))
