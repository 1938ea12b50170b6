"""Advantages: pure functions from rewards to one number a trajectory.

All take rewards float [N], group ids int [N] and valid bool [N] (False: failed, excluded from every statistic, with
advantage 0) and return float32 [N].
"""

from __future__ import annotations

import numpy as np

EPSILON = 1e-6


def reinforce(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The reward itself: REINFORCE without a baseline, the published form (arXiv 2505.04588 §3.6; spec D13)."""
    return np.where(valid, rewards, 0.0).astype(np.float32)


def reinforce_baseline(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the batch (Williams 1992, with a constant baseline)."""
    mean = rewards[valid].mean() if valid.any() else 0.0
    return np.where(valid, rewards - mean, 0.0).astype(np.float32)


def grpo(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(r - mean) / (std + 1e-6) within the group, unbiased std (Shao et al., arXiv 2402.03300, eq. 3).

    A group of equal rewards, or of one, gives exactly zero.
    """
    advantages = np.zeros(len(rewards), np.float32)
    for group in np.unique(groups):
        members = (groups == group) & valid
        own = rewards[members]
        if len(own) > 1 and own.max() - own.min() > EPSILON:
            advantages[members] = (own - own.mean()) / (own.std(ddof=1) + EPSILON)
    return advantages


ADVANTAGES = {'reinforce': reinforce, 'reinforce_baseline': reinforce_baseline, 'grpo': grpo}


def zero_variance_share(rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> float:
    """Share of groups whose rewards are all equal: they teach a group-relative algorithm nothing."""
    spans = [np.ptp(rewards[(groups == g) & valid]) for g in np.unique(groups[valid])]
    return float(np.mean([span <= EPSILON for span in spans])) if spans else 0.0
