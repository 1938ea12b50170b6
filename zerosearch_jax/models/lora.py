"""Low-rank adapters as extra leaves of the same parameter tree.

An adapter of kernel `q` is the pair `q_lora_a` [L, in, rank], `q_lora_b` [L, rank, out] in `layers`; the layer computes
x W + (x A) B. There is no alpha, because changing it acts like changing the learning rate: adapters have alpha / rank
= 1 (Hu et al., arXiv 2106.09685). Experts have no adapters: of a mixture, attention alone is adapted.
"""

import jax
import jax.numpy as jnp

from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.sharding import Param

TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


def layout(cfg: ModelConfig, rank: int, targets: tuple[str, ...] | None = None) -> dict:
    """The adapter's own layout; B starts at zero, so a new adapter changes nothing. None: all targets of the model."""
    kernels = transformer.layout(cfg)['layers']
    known = tuple(name for name in TARGETS if name in kernels)
    targets = known if targets is None else targets
    if set(targets) - set(known) or rank < 1:
        raise ValueError(f'LoRA needs rank >= 1 and targets among {", ".join(known)}; got rank {rank}, {targets}')
    tree = {}
    for name in targets:
        (layers, size_in, size_out), (_, axis_in, axis_out) = kernels[name].shape, kernels[name].axes
        tree[f'{name}_lora_a'] = Param((layers, size_in, rank), (None, axis_in, None))
        tree[f'{name}_lora_b'] = Param((layers, rank, size_out), (None, None, axis_out), 'zeros')
    return {'layers': tree}


def combine(base: dict, adapter: dict) -> dict:
    """One tree for the forward pass: the base's leaves and the adapter's. No copy. An empty base gives the adapter."""
    if not base:
        return adapter
    return {**base, **adapter, 'layers': {**base['layers'], **adapter.get('layers', {})}}


def merge(params: dict) -> dict:
    """Folds every adapter pair of a combined tree into its kernel: W + A B. Same structure as the base."""
    stack = params['layers']
    merged = {name: w for name, w in stack.items() if '_lora_' not in name}
    for name in TARGETS:
        if f'{name}_lora_a' in stack:
            delta = jnp.einsum(
                'lir,lro->lio',
                stack[f'{name}_lora_a'].astype(jnp.float32),
                stack[f'{name}_lora_b'].astype(jnp.float32),
                precision=jax.lax.Precision.HIGHEST,
            )
            merged[name] = (merged[name].astype(jnp.float32) + delta).astype(merged[name].dtype)
    return {**params, 'layers': merged}


def merged(params: dict) -> dict:
    """The merged weights; without an adapter the weights themselves, without a copy."""
    return jax.jit(merge)(params) if any('_lora_' in name for name in params['layers']) else params
