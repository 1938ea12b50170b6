"""The algorithms, by their parts: an advantage, how tokens are averaged, which ratio is clipped, a loss.

config.rl.algorithm is a name of `ALGORITHMS`, or the dotted name of a user's `Algorithm`. How tokens are averaged and
the parts of the loss can also be set separately, so that an ablation changes one of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.rl import advantages, losses
from zerosearch_jax.text.trajectory import Batch, TokenSequence


class Algorithm(NamedTuple):
    """The choices that define an algorithm."""

    advantage: advantages.ByTrajectory | None  # None: a critic estimates it (GAE)
    aggregate: str = 'token'  # see `weigh_tokens`
    ratio: str = 'token'  # see losses.LossConfig
    loss: Callable = losses.policy_loss  # any function with its arguments and results
    min_group: int = 1  # fewest samples of a question; comparing a single one would give advantage 0
    # with the KL in the reward, the advantage of a token is its return-to-go, normalized over all tokens of a step
    returns: bool = False


ALGORITHMS = {
    'reinforce': Algorithm(advantages.reinforce),
    'reinforce_baseline': Algorithm(advantages.reinforce_baseline),
    'reinforce_plus_plus': Algorithm(advantages.reinforce_plus_plus, returns=True),
    'rloo': Algorithm(advantages.leave_one_out, min_group=2),
    'grpo': Algorithm(advantages.grpo, aggregate='sequence', min_group=2),  # arXiv 2402.03300, eq. 3
    'dr_grpo': Algorithm(advantages.dr_grpo, aggregate='budget', min_group=2),  # arXiv 2503.20783, §3.2
    'gspo': Algorithm(advantages.grpo, aggregate='sequence', ratio='sequence', min_group=2),  # arXiv 2507.18071, eq. 5
    'ppo': Algorithm(None),
}


def find_algorithm(name: str) -> Algorithm:
    """An algorithm by its name, or by the dotted name of a user's.

    Raises:
      ValueError: it is neither.
    """
    found = settings.resolve_name(name, ALGORITHMS, 'algorithm')
    if not isinstance(found, Algorithm):
        raise ValueError(f'algorithm = {name!r} is a {type(found).__name__}, not a rl.algorithms.Algorithm')
    if found.aggregate not in ('token', 'sequence', 'budget', 'micro') or found.ratio not in ('token', 'sequence'):
        raise ValueError(f'algorithm = {name!r}: there is no aggregate {found.aggregate!r} with ratio {found.ratio!r}')
    return found


def weigh_tokens(sequences: Sequence[TokenSequence], aggregate: str, micro: int) -> list[TokenSequence]:
    """The sequences, with the weights by which an update sums their tokens.

    token: unchanged, which gives the mean over all tokens. sequence: divided by the sequence's sum, so that all
    sequences count equally. budget: unchanged; the sum is divided by the budget of tokens. micro: divided by the tokens
    of every `micro` sequences, as in the published system, which averages the means of micro-batches (difference D12).
    """
    sizes = [float(s.weights.sum()) for s in sequences]
    parts = [sum(sizes[i // micro * micro : (i // micro + 1) * micro]) for i in range(len(sizes))]
    divisors = {'sequence': sizes, 'micro': parts}.get(aggregate, [1.0] * len(sizes))
    return [
        dataclasses.replace(s, weights=s.weights / np.float32(d or 1)) for s, d in zip(sequences, divisors, strict=True)
    ]


class TokenMap:
    """Maps the weighted tokens of sequences to their places in a packed batch, to gather and scatter values."""

    def __init__(self, sequences: Sequence[TokenSequence]):
        weighted = [s.weights > 0 for s in sequences]
        self.sizes = [int(w.sum()) for w in weighted]
        self.numbers = np.arange(len(sequences))  # of sequences: float32 cannot count the tokens of a large step
        self._starts = np.cumsum([0, *map(len, weighted)])
        self._ranks = np.cumsum(np.concatenate([*weighted, np.zeros(0, bool)])) - 1

    def locate(self, numbered: Batch):
        """Finds the places, in the batch that was packed with `numbers` as its advantages."""
        self._active = np.asarray(numbered.weights) > 0
        sequence = np.asarray(numbered.advantages)[self._active].astype(np.int64)
        self._index = self._ranks[self._starts[sequence] + np.asarray(numbered.positions)[self._active]]

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Values [M, R, T] of a batch as one array for each sequence."""
        flat = np.zeros(sum(self.sizes), np.float32)
        flat[self._index] = values[self._active]
        return np.split(flat, np.cumsum(self.sizes)[:-1]) if self.sizes else []

    def scatter(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Arrays, one for each sequence, as values [M, R, T]; 0 elsewhere."""
        placed = np.zeros(self._active.shape, np.float32)
        placed[self._active] = np.concatenate([*values, np.zeros(0)])[self._index]
        return placed
