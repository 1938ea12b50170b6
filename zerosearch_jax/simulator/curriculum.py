"""The curriculum: the probability of noisy documents changes during training.

All kinds are pure functions of (configuration, step, total steps, rewards of the steps before, seed):

    exponential   p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s); ZeroSearch, arXiv:2505.04588, Eq. 1
    linear        its limit for b -> 1
    constant      p_s
    step          p_s, and p_e from the fraction `at` of training on
    reversed      the values of exponential, last first
    shuffled      the values of exponential in an order drawn at random: the same noise, without a curriculum
    matched       the mean of exponential at every step: the same noise in total, without a change
    adaptive      p_s, moved by `increment` towards p_e whenever the mean reward of `window` steps reaches `threshold`
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from zerosearch_jax.data.rows import permutation


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Noise probabilities at the start and the end of training, and the curve between them."""

    # p_i = p_s + (b^(i/m) - 1) / (b - 1) (p_e - p_s) at step i of m, or as docs/simulator.md says
    kind: Literal['exponential', 'linear', 'constant', 'step', 'reversed', 'shuffled', 'matched', 'adaptive'] = (
        'exponential'
    )
    start: float = 0.0  # p_s
    end: float = 0.5  # p_e
    base: float = 4.0  # b: above 1 the noise rises late, below 1 early
    at: float = 0.5  # for step: the fraction of training
    threshold: float = 0.5  # for adaptive: the mean reward that moves the noise ...
    window: int = 5  # ... over this many steps; the count starts again after every move
    increment: float = 0.05  # for adaptive: the change of the noise

    def __post_init__(self) -> None:
        for name in ('start', 'end', 'at', 'increment'):
            if not 0 <= getattr(self, name) <= 1:
                noun = 'a probability' if name in ('start', 'end') else 'a number'
                raise ValueError(f'{name} must be {noun} in [0, 1], got {getattr(self, name)}')
        if not 0 < self.base < math.inf:
            raise ValueError(f'base must be positive and finite, got {self.base}')
        if self.window < 1:
            raise ValueError(f'window must be at least 1, got {self.window}')


def noise_probability(
    cfg: Curriculum, step: int, total_steps: int, rewards: Sequence[float] = (), seed: int = 0
) -> float:
    """The probability that a search made at this step returns noisy documents.

    Args:
      cfg: the kind and its numbers.
      step: i, the step of the training, counted from 1; from `total_steps` on the result is that of the last step.
      total_steps: m.
      rewards: mean rewards of steps 1 to i - 1 (adaptive reads them, later ones are ignored).
      seed: of the run, for the order of `shuffled`.

    Raises:
      ValueError: a negative step, no steps, or missing rewards.
    """
    if step < 0 or total_steps < 1:
        raise ValueError(f'need step >= 0 and total_steps >= 1, got {step} and {total_steps}')
    if cfg.kind == 'adaptive':
        if len(rewards) < step - 1:
            raise ValueError(f'an adaptive curriculum needs the rewards of {step - 1} steps, got {len(rewards)}')
        return _adaptive(cfg, rewards[: max(step - 1, 0)])
    step = min(step, total_steps)
    if cfg.kind == 'shuffled':
        return _exponential(cfg, 1 + int(permutation(total_steps, seed, 0)[max(step, 1) - 1]), total_steps)
    return _FIXED[cfg.kind](cfg, step, total_steps)


def _exponential(cfg: Curriculum, step: int, total: int) -> float:
    if step >= total:
        return cfg.end
    fraction, log_base = step / total, math.log(cfg.base)
    # expm1 keeps the ratio exact for bases close to 1, for which the formula is 0 / 0 and its limit is linear
    ramp = math.expm1(fraction * log_base) / math.expm1(log_base) if log_base else fraction
    return cfg.start + ramp * (cfg.end - cfg.start)


def _linear(cfg: Curriculum, step: int, total: int) -> float:
    return _exponential(dataclasses.replace(cfg, base=1.0), step, total)


def _step(cfg: Curriculum, step: int, total: int) -> float:
    return cfg.start if step < cfg.at * total else cfg.end


def _reversed(cfg: Curriculum, step: int, total: int) -> float:
    return _exponential(cfg, total + 1 - max(step, 1), total)


def _matched(cfg: Curriculum, step: int, total: int) -> float:
    return math.fsum(_exponential(cfg, i, total) for i in range(1, total + 1)) / total


_FIXED: dict[str, Callable[[Curriculum, int, int], float]] = {
    'exponential': _exponential,
    'linear': _linear,
    'constant': lambda cfg, step, total: cfg.start,
    'step': _step,
    'reversed': _reversed,
    'matched': _matched,
}


def _adaptive(cfg: Curriculum, rewards: Sequence[float]) -> float:
    """The noise after these rewards: it moves after every `window` steps whose mean reward reaches the threshold."""
    noise, since = cfg.start, []
    for reward in rewards:
        since.append(reward)
        if len(since) >= cfg.window and math.fsum(since[-cfg.window :]) / cfg.window >= cfg.threshold:
            since.clear()
            if cfg.end >= cfg.start:
                noise = min(noise + cfg.increment, cfg.end)
            else:
                noise = max(noise - cfg.increment, cfg.end)
    return noise


def is_noisy(uniform: float, p: float) -> bool:
    """Whether a search with this random number in [0, 1) is noisy: never at p = 0, always at p = 1."""
    return uniform < p
