"""Samples one token in each row: inverse CDF with one uniform number for each row, optional top-k and top-p.

This needs one uniform number instead of V Gumbel variates, and two short cumulative sums instead of one over V.
"""

import dataclasses

import jax
import jax.numpy as jnp

from zerosearch_jax.sharding import constrain

BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Restriction of the support. The default is none, as training needs: log-probs are of the full softmax."""

    top_k: int = 0  # keep the k most likely tokens; 0: all
    top_p: float = 1.0  # keep the smallest set with at least this probability

    def __post_init__(self):
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f'top_k must be >= 0 and top_p in (0, 1]; got {self.top_k} and {self.top_p}')


FULL_SUPPORT = Truncation()


def sample(
    logits_BxV: jax.Array, uniforms_B: jax.Array, temperature: jax.Array, truncation: Truncation = FULL_SUPPORT
) -> tuple[jax.Array, jax.Array]:
    """Samples each row with its temperature; at 0 it takes the most likely token, the first of equals.

    At 0 the most likely tokens have weight 1 and all others 0, instead of a branch, for which a GPU would wait for the
    host, or an argmax, which on CPU takes longer than all of this.

    Args:
      temperature: of each row [B], or one for all rows.

    Returns:
      tokens int32 [B], and their log-probs float32 [B] under the untruncated log_softmax(logits / temperature)
      (with temperature 1 if it is 0): exactly what the trainer computes.
    """
    temperature_Bx1 = jnp.broadcast_to(temperature, uniforms_B.shape)[:, None]
    greedy_Bx1 = temperature_Bx1 <= 0
    scaled_BxV = logits_BxV.astype(jnp.float32) / jnp.where(greedy_Bx1, 1.0, temperature_Bx1)
    scaled_BxV -= jnp.max(scaled_BxV, axis=-1, keepdims=True)
    weights_BxV = jnp.exp(truncate(scaled_BxV, truncation) * jnp.where(greedy_Bx1, 1e30, 1.0))
    tokens_B = inverse_cdf(weights_BxV, jnp.where(greedy_Bx1[:, 0], 0.0, uniforms_B))
    chosen_B = jnp.take_along_axis(scaled_BxV, tokens_B[:, None], axis=-1)[:, 0]
    return tokens_B, chosen_B - jnp.log(jnp.sum(jnp.exp(scaled_BxV), axis=-1))


def truncate(scaled_BxV: jax.Array, truncation: Truncation) -> jax.Array:
    """Sets logits outside the top-k and the top-p nucleus to -inf. Sorts only if top_p is below 1."""
    if truncation.top_k:
        kth_Bx1 = jax.lax.top_k(scaled_BxV, min(truncation.top_k, scaled_BxV.shape[-1]))[0][:, -1:]
        scaled_BxV = jnp.where(scaled_BxV >= kth_Bx1, scaled_BxV, -jnp.inf)
    if truncation.top_p < 1:
        descending_BxV = -jnp.sort(-scaled_BxV, axis=-1)
        probs_BxV = jax.nn.softmax(descending_BxV, axis=-1)
        before_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV  # the first token is always kept
        lowest_Bx1 = jnp.min(jnp.where(before_BxV < truncation.top_p, descending_BxV, jnp.inf), -1, keepdims=True)
        scaled_BxV = jnp.where(scaled_BxV >= lowest_Bx1, scaled_BxV, -jnp.inf)
    return scaled_BxV


def inverse_cdf(probs_BxV: jax.Array, uniforms_B: jax.Array) -> jax.Array:
    """The token at which the cumulative probability passes the uniform, int32 [B]; never one of probability 0.

    The given numbers need not sum to one.
    """
    b, v = probs_BxV.shape
    probs_BxMxC = jnp.pad(probs_BxV, ((0, 0), (0, -v % BLOCK))).reshape(b, -1, BLOCK)
    # few numbers, whole on every device: a GPU's compiler turns the sum along a sharded dimension into a loop over it
    blocks_BxM = constrain(probs_BxMxC.sum(-1), 'batch', None)
    block_cdf_BxM = jnp.cumsum(blocks_BxM, axis=-1)
    target_B = uniforms_B * block_cdf_BxM[:, -1]
    block_B = _passed(blocks_BxM, block_cdf_BxM, target_B)
    inside_BxC = jnp.take_along_axis(probs_BxMxC, block_B[:, None, None], axis=1)[:, 0]
    below_B = jnp.take_along_axis(jnp.pad(block_cdf_BxM, ((0, 0), (1, 0))), block_B[:, None], axis=1)[:, 0]
    return block_B * BLOCK + _passed(inside_BxC, jnp.cumsum(inside_BxC, axis=-1), target_B - below_B)


def _passed(probs_BxN: jax.Array, cdf_BxN: jax.Array, target_B: jax.Array) -> jax.Array:
    """First index of positive probability with cdf > target; if rounding leaves none, the last positive one.

    A cumulative sum that is computed as a tree (on accelerators) may rise by rounding where zero is added.
    """
    positive_BxN = probs_BxN > 0
    passed_BxN = positive_BxN & (cdf_BxN > target_B[:, None])
    last_B = probs_BxN.shape[-1] - 1 - jnp.argmax(positive_BxN[:, ::-1], axis=-1)
    return jnp.where(jnp.any(passed_BxN, axis=-1), jnp.argmax(passed_BxN, axis=-1), last_B).astype(jnp.int32)
