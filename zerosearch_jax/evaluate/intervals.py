"""Intervals and p-values of means: for one run by resampling its questions, for several runs by Student's t."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

DRAWS = 10_000  # resamples of a bootstrap, and of a permutation test
LEVEL = 0.95  # coverage


class Estimate(NamedTuple):
    """The mean of a table [questions, runs] whose questions and runs are both random samples."""

    mean: float
    error: float  # standard error
    share: float  # share of the variance that comes from the runs; 0 for one run, or if all runs are equal
    freedom: tuple[int, int]  # degrees of freedom: questions - 1, runs - 1

    @classmethod
    def of(cls, values: Sequence) -> 'Estimate':
        """From the mean squares of two crossed random factors; the runs' includes the residual."""
        values = _table(values)
        mean, (questions, runs) = values.mean(), values.shape
        by_question, by_run = values.mean(1) - mean, values.mean(0) - mean
        rest = values - mean - by_question[:, None] - by_run
        of_questions = runs * np.square(by_question).sum() / max(questions - 1, 1)
        of_runs = questions * np.square(by_run).sum() / max(runs - 1, 1)
        of_rest = np.square(rest).sum() / max((questions - 1) * (runs - 1), 1)
        total = max(of_questions - of_rest, 0.0) + of_runs
        share = of_runs / total if total else 0.0
        return cls(float(mean), float((total / values.size) ** 0.5), float(share), (questions - 1, runs - 1))

    def quantile(self, probability: float) -> float:
        """Quantile of (mean - truth) / error: Student's t of the two parts, weighted (Cochran and Cox 1957, §4.14)."""
        of_questions, of_runs = stats.t.ppf(probability, np.maximum(self.freedom, 1))
        return float((1 - self.share) * of_questions + self.share * of_runs)


def _table(values: Sequence) -> np.ndarray:
    """Values float64 [questions, runs]; for one run the second axis may be left out."""
    values = np.asarray(values, np.float64)
    return values.reshape(len(values), -1)


def interval(values: Sequence, within: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, float]:
    """Interval of the mean with coverage LEVEL.

    Args:
      values: for one run, one number for each question: a percentile bootstrap (Efron 1979) covers the choice of the
        questions and not that of the seed. For [questions, runs], Student's t covers both; for [1, runs], one number
        for each run, it covers the seeds. For a paired comparison pass the differences.
      within: bounds of the mean; (0, 1) for a score.
    """
    values = _table(values)
    if values.shape[1] == 1:
        low, high = np.quantile(stratified_means([values[:, 0]]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    else:
        found = Estimate.of(values)
        half = found.quantile((1 + LEVEL) / 2) * found.error
        low, high = found.mean - half, found.mean + half
    low, high = np.clip((low, high), *within)
    return float(low), float(high)


def with_interval(values: Sequence, within: tuple[float, float] = (-np.inf, np.inf)) -> dict:
    """{'mean', 'interval'} of values as in `interval`."""
    return {'mean': float(np.mean(values)), 'interval': interval(values, within)}


def p_value(values: Sequence) -> float:
    """Two-sided p of paired differences [questions, runs], by the interval that ends at 0; for one run sign_flip_p."""
    found = Estimate.of(values)
    if not found.share:
        return sign_flip_p([_table(values).mean(1)])
    ratio, least = abs(found.mean) / found.error, 1e-15
    if ratio >= found.quantile(1 - least):
        return 0.0
    return float(2 * optimize.brentq(lambda p: found.quantile(1 - p) - ratio, least, 0.5))


def detectable(values: Sequence) -> float:
    """The difference that a study like this one would find at the 5 % level with a power of 80 %."""
    found = Estimate.of(values)
    return (found.quantile((1 + LEVEL) / 2) + found.quantile(0.8)) * found.error


def shown(found: dict | None, sign: str = '', digits: int = 3, scale: float = 1) -> str:
    """'0.438 [0.312, 0.562]': a mean with its interval, or the mean alone if there is none; '' for None.

    With `sign` '+' positive numbers have a sign.
    """
    if found is None:
        return ''
    mean, *ends = (f'{scale * x:{sign}.{digits}f}' for x in (found['mean'], *found.get('interval', ())))
    return f'{mean} [{", ".join(ends)}]' if ends else mean


def stratified_means(strata: Sequence[Sequence[float]], seed: int = 0) -> np.ndarray:
    """The mean over strata of their means, for DRAWS bootstrap draws within each stratum."""
    rng = np.random.default_rng(seed)

    def drawn(values: np.ndarray, count: int) -> np.ndarray:
        return values[rng.integers(0, len(values), (count, len(values)))].mean(1)

    return np.mean([_in_parts(drawn, s) for s in strata], axis=0)


def sign_flip_p(strata: Sequence[Sequence[float]], seed: int = 0) -> float:
    """Two-sided p of paired differences by a permutation test: the mean of means under random signs."""
    rng = np.random.default_rng(seed)
    observed = abs(np.mean([np.mean(s) for s in strata]))

    def flipped(values: np.ndarray, count: int) -> np.ndarray:
        return (rng.choice([-1.0, 1.0], (count, len(values))) * values).mean(1)

    means = np.mean([_in_parts(flipped, s) for s in strata], axis=0)
    return float((1 + (np.abs(means) >= observed - 1e-12).sum()) / (DRAWS + 1))


def _in_parts(draw: Callable[[np.ndarray, int], np.ndarray], values: Sequence[float]) -> np.ndarray:
    """DRAWS draws of a statistic of all values, computed in parts of a few million numbers."""
    values = np.asarray(values, float)
    size = max(4_000_000 // len(values), 1)
    return np.concatenate([draw(values, min(size, DRAWS - start)) for start in range(0, DRAWS, size)])
