"""Credit of tokens: from the rewards of trajectories, or of their turns, to one advantage for each token.

And what an update weighs them with: the trainer's log-probs, and which trajectories are trained on.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zerosearch_jax.rl import advantages, algorithms
from zerosearch_jax.rl.config import RLConfig
from zerosearch_jax.text.trajectory import Segment, TokenSequence, turns_of


class Earned(NamedTuple):
    """The rewards of a trajectory's turns. If credit is by trajectory, it counts as one turn."""

    rewards: np.ndarray  # float64 [turns]
    turns: np.ndarray  # int [sampled tokens]

    def by_token(self, penalty: np.ndarray) -> np.ndarray:
        """The reward of every sampled token: that of its turn on the last token, minus each token's penalty."""
        rewards, ends = np.zeros(len(self.turns)) - penalty, np.diff(self.turns, append=len(self.rewards)) > 0
        rewards[ends] += self.rewards[self.turns[ends]]
        return rewards


def earned(rl: RLConfig, episode: Sequence[Segment], reward: float | np.ndarray) -> Earned:
    """From one number, for the last turn, or from one number for each turn."""
    rewards, turns = np.atleast_1d(np.asarray(reward, np.float64)), turns_of(episode)
    if rl.credit == 'trajectory':
        return Earned(rewards.sum(keepdims=True), np.zeros_like(turns))
    count = int(turns.max(initial=0)) + 1
    return Earned(np.concatenate([np.zeros(max(count - len(rewards), 0)), rewards]), turns)


def estimate(
    rl: RLConfig, trained: Sequence[Earned], totals: np.ndarray, groups: np.ndarray, valid: np.ndarray, penalties
) -> Sequence[np.ndarray]:
    """Advantages of the valid trajectories without a critic: one number for each, or one for each sampled token.

    Args:
      rl: the algorithm, and the kind of credit.
      trained: of the valid trajectories.
      totals: float [N], the rewards of all trajectories.
      groups: int [N].
      valid: bool [N].
      penalties: k1_penalties of the valid ones.
    """
    algorithm = algorithms.find_algorithm(rl.algorithm)
    if algorithm.returns and rl.kl_estimator == 'k1':
        to_go = (advantages.returns_to_go(one.rewards)[one.turns] for one in trained)
        return advantages.whiten([g - np.cumsum(p[::-1])[::-1] for g, p in zip(to_go, penalties, strict=True)])
    if rl.credit == 'trajectory':
        shaped = totals.astype(np.float64)
        shaped[valid] -= [p.sum() for p in penalties]
        return algorithm.advantage(shaped, groups, valid)[valid]
    # at the end, so that a penalty is no part of the rewards before a turn
    shaped = [np.append(e.rewards[:-1], e.rewards[-1] - p.sum()) for e, p in zip(trained, penalties, strict=True)]
    return [a[e.turns] for a, e in zip(advantages.by_turn(shaped, groups[valid]), trained, strict=True)]


def k1_penalties(rl: RLConfig, sequences: list[TokenSequence], reference: list[np.ndarray] | None):
    """The k1 penalty of every sampled token, kl (log pi - log ref), and the mean KL divergence."""
    if reference is None or rl.kl_estimator != 'k1':
        return [np.zeros(int(sampled(s).sum()), np.float32) for s in sequences], {}
    gaps = [(s.logprobs[s.weights > 0] - r)[sampled(s)] for s, r in zip(sequences, reference, strict=True)]
    return [rl.kl * gap for gap in gaps], {'kl': float(np.concatenate(gaps).mean())}


def per_token(rl: RLConfig, sequence: TokenSequence, advantage: np.ndarray) -> np.ndarray:
    """A trajectory's advantage, or those of its sampled tokens, on all its weighted tokens."""
    own = sampled(sequence)
    of_observations = advantage if rl.observations == 'policy' else 1.0
    advantages = np.full(own.shape, of_observations, np.float32)
    advantages[own] = advantage
    return advantages


def sampled(sequence: TokenSequence) -> np.ndarray:
    """Which of the weighted tokens the policy sampled."""
    return ~np.isnan(sequence.logprobs[sequence.weights > 0])


def recomputed(sequences: Sequence[TokenSequence], scores: Sequence[np.ndarray], cap: float):
    """Sequences with the trainer's log-probs (`scores`) as old ones, importance weights up to cap, the largest gap."""
    found, importance, largest = [], [], 0.0
    for sequence, own in zip(sequences, scores, strict=True):
        old, active = sequence.logprobs.copy(), sequence.weights > 0
        gap = np.nan_to_num(own - old[active])  # 0 at tokens that were not sampled
        old[active] = np.where(np.isnan(old[active]), np.nan, own)
        found.append(dataclasses.replace(sequence, logprobs=old))
        importance.append(np.minimum(np.exp(gap), cap) if cap else 1.0)
        largest = max(largest, float(np.abs(gap).max(initial=0.0)))
    return found, importance, {'logprob_gap_max': largest}


def deepest(share: float, searches: Sequence[int], valid: np.ndarray) -> np.ndarray:
    """Bool [N]: this share of the N trajectories: valid ones with the most searches, and of equal ones the first.

    Depth-greedy selection of what is trained on (CuSearch, arXiv 2605.11611).
    """
    chosen = np.zeros(len(valid), bool)
    order = np.argsort(-np.where(valid, searches, -1), kind='stable')
    chosen[order[: math.ceil(share * len(valid) - 1e-9)]] = True
    return chosen & valid
