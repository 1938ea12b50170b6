"""Intervals and p-values of means: bootstrap over questions and runs, sign-flip test."""

from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 10_000  # of a bootstrap, and of a permutation test


def bootstrap_interval(values: Sequence, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), of DRAWS resamples.

    Args:
      values: one a question, or [questions, runs]: then questions and runs are both drawn anew, so that the interval
        covers the choice of the seeds too. For a paired comparison pass the differences, question by question.
      seed: of the draws.
      level: coverage.
    """
    values = np.asarray(values, np.float64)
    values = values.reshape(len(values), -1)
    generator = np.random.default_rng(seed)
    questions, runs = (generator.integers(0, n, (DRAWS, n)) for n in values.shape)
    means = values[questions[:, :, None], runs[:, None, :]].mean((1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def with_interval(values: Sequence) -> dict:
    """{'mean', 'interval'} of values as bootstrap_interval takes them."""
    return {'mean': float(np.mean(values)), 'interval': bootstrap_interval(values)}


def shown(found: dict | None, sign: str = '', digits: int = 3, scale: float = 1) -> str:
    """'0.438 [0.312, 0.562]', what a mean with its interval looks like everywhere; '' for None. `sign` '+' shows it."""
    if found is None:
        return ''
    mean, low, high = (f'{scale * x:{sign}.{digits}f}' for x in (found['mean'], *found['interval']))
    return f'{mean} [{low}, {high}]'


def stratified_means(strata: Sequence[Sequence[float]], seed: int = 0) -> np.ndarray:
    """The mean over strata of their means, for DRAWS bootstrap draws within each stratum."""
    rng = np.random.default_rng(seed)

    def drawn(values: np.ndarray, count: int) -> np.ndarray:
        return values[rng.integers(0, len(values), (count, len(values)))].mean(1)

    return np.mean([_in_parts(drawn, s) for s in strata], axis=0)


def sign_flip_p(strata: Sequence[Sequence[float]], seed: int = 0) -> float:
    """Two-sided p of paired differences, if the sign of each were a coin's: a permutation test on the mean of means."""
    rng = np.random.default_rng(seed)
    observed = abs(np.mean([np.mean(s) for s in strata]))

    def flipped(values: np.ndarray, count: int) -> np.ndarray:
        return (rng.choice([-1.0, 1.0], (count, len(values))) * values).mean(1)

    means = np.mean([_in_parts(flipped, s) for s in strata], axis=0)
    return float((1 + (np.abs(means) >= observed - 1e-12).sum()) / (DRAWS + 1))


def _in_parts(draw: Callable[[np.ndarray, int], np.ndarray], values: Sequence[float]) -> np.ndarray:
    """DRAWS draws of a statistic of all values, a few million numbers at a time."""
    values = np.asarray(values, float)
    size = max(4_000_000 // len(values), 1)
    return np.concatenate([draw(values, min(size, DRAWS - start)) for start in range(0, DRAWS, size)])
