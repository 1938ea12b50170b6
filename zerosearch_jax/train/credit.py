"""What tokens are credited with, beside the advantage of their trajectory."""

import numpy as np

from zerosearch_jax.rl.config import RLConfig
from zerosearch_jax.text.trajectory import TokenSequence


def k1_penalties(rl: RLConfig, sequences: list[TokenSequence], reference: list[np.ndarray] | None):
    """What k1 takes off the reward of every sampled token: kl (log pi - log ref); and the mean divergence."""
    if reference is None or rl.kl_estimator != 'k1':
        return [np.zeros(int(sampled(s).sum()), np.float32) for s in sequences], {}
    gaps = [(s.logprobs[s.weights > 0] - r)[sampled(s)] for s, r in zip(sequences, reference, strict=True)]
    return [rl.kl * gap for gap in gaps], {'kl': float(np.concatenate(gaps).mean())}


def per_token(rl: RLConfig, sequence: TokenSequence, advantage: np.ndarray) -> np.ndarray:
    """A trajectory's advantage, or one a sampled token, on all its weighted tokens."""
    own = sampled(sequence)
    of_observations = advantage if rl.observations == 'policy' else 1.0
    advantages = np.full(own.shape, of_observations, np.float32)
    advantages[own] = advantage
    return advantages


def sampled(sequence: TokenSequence) -> np.ndarray:
    """Of the weighted tokens, those that the policy sampled."""
    return ~np.isnan(sequence.logprobs[sequence.weights > 0])
