"""Advantages of trajectories and turns from their rewards, and of tokens from token rewards and values.

Functions for trajectories (`ByTrajectory`) take rewards float [N], group ids int [N] and valid bool [N] (False: failed,
excluded from every statistic, with advantage 0) and return float32 [N]. algorithms.ALGORITHMS names them.
"""

from collections.abc import Callable, Sequence

import numpy as np

EPSILON = 1e-6
ByTrajectory = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def reinforce(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The reward itself: REINFORCE without a baseline, the published form (arXiv 2505.04588 §3.6; difference D13)."""
    return np.where(valid, rewards, 0.0).astype(np.float32)


def reinforce_baseline(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the batch (Williams 1992, with a constant baseline)."""
    if not valid.any() or np.ptp(rewards[valid]) <= EPSILON:  # exactly zero, in spite of rounding
        return np.zeros(len(rewards), np.float32)
    return np.where(valid, rewards - rewards[valid].mean(), 0.0).astype(np.float32)


def reinforce_plus_plus(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(r - mean) / (std + 1e-6) over the whole batch (REINFORCE++: Hu et al., arXiv 2501.03262, eq. 9)."""
    return np.where(valid, _standard_score(rewards, valid), 0.0).astype(np.float32)


def leave_one_out(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the group's other members (RLOO: Ahmadian et al., arXiv 2402.14740, §4.1)."""
    return _by_group(rewards, groups, valid, lambda own: (own - own.mean()) * len(own) / (len(own) - 1))


def grpo(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(r - mean) / (std + 1e-6) within the group, unbiased std (Shao et al., arXiv 2402.03300, eq. 3).

    A group of equal rewards, or of one, gives exactly zero.
    """
    return _by_group(rewards, groups, valid, lambda own: (own - own.mean()) / (own.std(ddof=1) + EPSILON))


def dr_grpo(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the group, not divided by its std (Liu et al., arXiv 2503.20783, §3.2)."""
    return _by_group(rewards, groups, valid, lambda own: own - own.mean())


def _standard_score(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    own = rewards[valid]
    if len(own) < 2 or np.ptp(own) <= EPSILON:
        return np.zeros(len(rewards))
    return (rewards - own.mean()) / (own.std(ddof=1) + EPSILON)


def _by_group(rewards, groups, valid, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The function of every group's valid rewards; zero for groups of equal rewards."""
    advantages = np.zeros(len(rewards), np.float32)
    for group in np.unique(groups):
        members = (groups == group) & valid
        own = rewards[members]
        if len(own) > 1 and np.ptp(own) > EPSILON:
            advantages[members] = function(own)
    return advantages


def returns_to_go(rewards: np.ndarray) -> np.ndarray:
    """The return-to-go of each turn or token: its reward plus all later ones."""
    return np.cumsum(rewards[::-1])[::-1]


def by_turn(rewards: Sequence[np.ndarray], groups: np.ndarray) -> list[np.ndarray]:
    """The return-to-go of each turn, minus the mean return of the group's other trajectories.

        A[i, k] = G[i, k] - mean over others j of G[j, 0]        G[i, k] = r[i, k] + r[i, k + 1] + ...

    The baseline depends on the other samples alone, which are independent of this one: its product with the gradient of
    a turn's log-prob has mean zero, and A gives an unbiased policy gradient. (A baseline for each turn number, the mean
    of the rewards of turn k, gives another gradient: the sum of these baselines grows with every turn, which punishes
    another turn by what turns earn.)

    Args:
      rewards: for each trajectory the rewards of its turns.
      groups: int [N].

    Returns:
      for each trajectory one number for each turn, float32; 0 if the trajectory is alone in its group.
    """
    whole = leave_one_out(np.array([r.sum() for r in rewards]), groups, np.ones(len(rewards), bool))
    compared = [np.count_nonzero(groups == group) > 1 for group in groups]
    earned = [np.cumsum([0.0, *r[:-1]]) for r in rewards]  # before each turn, so no part of its return-to-go
    return [(c * (a - e)).astype(np.float32) for a, c, e in zip(whole, compared, earned, strict=True)]


def zero_variance(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Bool [N]: trajectories whose group has equal valid rewards; group-relative algorithms learn nothing from them."""
    equal = {g: np.ptp(rewards[(groups == g) & valid]) <= EPSILON for g in np.unique(groups[valid])}
    return np.array([equal.get(g, True) for g in groups])


def zero_variance_share(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> float:
    """Share of groups with equal valid rewards, among the groups with a valid trajectory."""
    equal = zero_variance(rewards, groups, valid)
    shares = [equal[groups == g].all() for g in np.unique(groups[valid])]
    return float(np.mean(shares)) if shares else 0.0


def gae(
    rewards: np.ndarray, values: np.ndarray, *, discount: float = 1.0, trace: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Generalized advantage estimation over one sequence (Schulman et al., arXiv 1506.02438, eq. 16).

    Args:
      rewards: [T], one for each action token; observation tokens are not part of the sequence.
      values: [T], of the state before each token; the value after the last one is 0.
      discount: gamma, for each token.
      trace: lambda.

    Returns:
      advantages and returns (the targets of the values), float32 [T].
    """
    advantages, following, value = np.zeros(len(rewards)), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + discount * value - values[t]
        following = delta + discount * trace * following
        advantages[t], value = following, values[t]
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def whiten(advantages: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The sequences' advantages, normalized to mean 0 and unbiased std 1 over all their tokens."""
    flat = np.concatenate(list(advantages)) if advantages else np.zeros(0)
    if len(flat) < 2 or np.ptp(flat) <= EPSILON:
        return [np.zeros_like(a) for a in advantages]
    mean, deviation = flat.mean(), flat.std(ddof=1)
    return [((a - mean) / (deviation + EPSILON)).astype(np.float32) for a in advantages]
