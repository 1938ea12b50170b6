"""The curriculum: the share of simulated searches that return noisy documents rises during training."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Noise probabilities at the start and the end of training, and the base of the exponential between them.

    A base above 1 rises late, below 1 early; at 1 the formula is 0 / 0 and its limit, a straight line, is used.
    """

    start: float = 0.0
    end: float = 0.5
    base: float = 4.0

    def __post_init__(self) -> None:
        for name in ('start', 'end'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be a probability in [0, 1], got {getattr(self, name)}')
        if not 0 < self.base < math.inf:
            raise ValueError(f'base must be positive and finite, got {self.base}')


def noise_probability(cfg: Curriculum, step: int, total_steps: int) -> float:
    """The probability that a search made at this step returns noisy documents.

    `p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s)`; ZeroSearch, arXiv:2505.04588, Eq. 1.

    Args:
      cfg: p_s, p_e and b.
      step: i, the optimizer step, counted from 1; from `total_steps` on the result is p_e.
      total_steps: m.

    Raises:
      ValueError: a negative step, or no steps at all.
    """
    if step < 0 or total_steps < 1:
        raise ValueError(f'need step >= 0 and total_steps >= 1, got {step} and {total_steps}')
    if step >= total_steps:
        return cfg.end
    fraction = step / total_steps
    log_base = math.log(cfg.base)
    # expm1 keeps the ratio exact for bases close to 1
    ramp = math.expm1(fraction * log_base) / math.expm1(log_base) if log_base else fraction
    return cfg.start + ramp * (cfg.end - cfg.start)


def is_noisy(uniform: float, p: float) -> bool:
    """Whether a search with this draw from [0, 1) returns noisy documents: never at p = 0, always at p = 1."""
    return uniform < p


def mean_noise(cfg: Curriculum, total_steps: int) -> float:
    """The mean noise probability over steps 1 to `total_steps`."""
    return math.fsum(noise_probability(cfg, i, total_steps) for i in range(1, total_steps + 1)) / total_steps
