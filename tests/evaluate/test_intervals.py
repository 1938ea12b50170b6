"""Intervals against the normal approximation and Student's t, and how often they cover the truth."""

import resource

import numpy as np
import pytest
from scipy import stats

from zerosearch_jax.evaluate import intervals, tables
from zerosearch_jax.evaluate.intervals import Estimate, interval

QUESTIONS = 400
MEAN = 0.4


def coins(seed, share):
    return np.random.default_rng(seed).random(QUESTIONS) < share


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = coins(0, 0.3)
    half = 1.96 * values.std() / QUESTIONS**0.5
    for low, high in (interval(values), interval(np.stack([values] * 3, axis=1))):  # runs that agree add nothing
        assert low == pytest.approx(values.mean() - half, abs=0.005)
        assert high == pytest.approx(values.mean() + half, abs=0.005)


def test_the_interval_of_strata_has_a_fortieth_at_either_end():
    values = [coins(seed, 0.3) for seed in (0, 1)]  # two question sets
    low, high = tables._with_interval(values)['interval']
    half = 1.96 * (sum(v.var() for v in values) / QUESTIONS) ** 0.5 / 2
    assert high - low == pytest.approx(2 * half, rel=0.04)


def test_runs_that_disagree_widen_the_interval_to_students_t_over_their_means():
    same = np.stack([coins(0, 0.3).astype(float)] * 3, axis=1)
    values = same + np.array([-0.2, 0.0, 0.2])
    low, high = interval(values)
    of_runs, of_questions = 0.2 / 3**0.5, same[:, 0].std(ddof=1) / QUESTIONS**0.5
    assert Estimate.of(values).error == pytest.approx(np.hypot(of_runs, of_questions))
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 2) * of_runs, rel=0.03)


def test_an_interval_over_seeds_alone_is_students_t():
    rewards = [0.31, 0.35, 0.42]
    found = stats.ttest_1samp(rewards, 0.3)
    assert interval([rewards]) == pytest.approx(found.confidence_interval(0.95), rel=1e-6)
    assert intervals.p_value([np.array(rewards) - 0.3]) == pytest.approx(found.pvalue, rel=1e-6)


def test_p_is_where_the_interval_ends_at_zero_and_of_one_run_that_of_sign_flips():
    values = np.random.default_rng(0).normal([0.0, 0.1, 0.2, 0.3], 1, (30, 4))
    low, _ = interval(values)
    assert intervals.p_value(values - low) == pytest.approx(0.05, rel=1e-6)
    assert intervals.p_value(low - values) == pytest.approx(0.05, rel=1e-6)
    one = coins(1, 0.5).astype(float) - coins(2, 0.4)
    for runs in (1, 3):
        assert intervals.p_value(np.stack([one] * runs, axis=1)) == intervals.sign_flip_p([one])


def test_the_detectable_difference_is_found_in_four_studies_of_five():
    values = np.random.default_rng(0).normal(0, 1, (40, 1))
    error = values.std(ddof=1) / 40**0.5
    assert intervals.detectable(values) == pytest.approx((stats.t.ppf(0.975, 39) + stats.t.ppf(0.8, 39)) * error)


def test_the_memory_of_an_interval_is_bounded_also_with_51000_questions(monkeypatch):
    largest, draw = [], np.random.Generator.integers

    class Spy:
        def __init__(self, seed):
            self.generator = np.random.Generator(np.random.PCG64(seed))

        def integers(self, low, high, shape):
            largest.append(np.prod(shape))
            return draw(self.generator, low, high, shape)

    monkeypatch.setattr(np.random, 'default_rng', Spy)
    monkeypatch.setattr(intervals, 'DRAWS', 200)  # quick; a part has 78
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    low, high = interval(np.arange(51_000) % 2)
    assert 0.49 < low < 0.5 < high < 0.51
    assert max(largest) <= 4_000_000 and sum(largest) == 200 * 51_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


# ---------------------------------------------------------------- coverage


def studies(count, questions, runs, spread, alike, seed=0):
    """Scores [questions, runs] of many studies: answers right or wrong of questions that are as hard in every run
    (`alike`: the correlation between runs), and runs that are better or worse by `spread`."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        odds = (1 - alike) / alike
        share = rng.beta(MEAN * odds, (1 - MEAN) * odds, (questions, 1))
        yield (rng.random((questions, runs)) < share) + rng.normal(0, spread, runs)


STUDIES = [(48, 0.02, 0.3), (48, 0.1, 0.3), (200, 0.03, 0.1), (200, 0.05, 0.8), (1000, 0.05, 0.3)]


@pytest.mark.slow
@pytest.mark.parametrize('runs', [3, 5])
@pytest.mark.parametrize(('questions', 'spread', 'alike'), STUDIES, ids=str)
def test_intervals_over_seeds_cover_the_truth_in_93_to_97_percent(questions, runs, spread, alike):
    ends = np.array([interval(values) for values in studies(4000, questions, runs, spread, alike)])
    assert 0.93 <= np.mean((ends[:, 0] <= MEAN) & (ends[:, 1] >= MEAN)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize('runs', [3, 5])
def test_intervals_of_the_training_reward_cover_the_truth_in_93_to_97_percent(runs):
    rewards = np.random.default_rng(0).normal(MEAN, 0.03, (10_000, 1, runs))
    ends = np.array([interval(values) for values in rewards])
    assert 0.93 <= np.mean((ends[:, 0] <= MEAN) & (ends[:, 1] >= MEAN)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize('questions', [64, 200])
def test_the_gain_of_one_run_and_the_tables_cover_the_choice_of_questions_in_93_to_97_percent(questions, monkeypatch):
    monkeypatch.setattr(intervals, 'DRAWS', 1000)
    gain, table = [], []
    for first, second in zip(*(studies(1500, questions, 2, 0.0, 0.3, seed) for seed in (0, 1)), strict=True):
        low, high = interval(first[:, 0] - first[:, 1])
        gain.append(low <= 0 <= high)
        low, high = tables._with_interval([first[:, 0], second[:, 0]])['interval']  # two question sets
        table.append(low <= MEAN <= high)
    assert 0.93 <= np.mean(gain) <= 0.97
    assert 0.93 <= np.mean(table) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize('spread', [0.0, 0.03, 0.05])
def test_p_knows_of_seeds(spread):
    """Five in a hundred studies without an effect are below 0.05, however much seeds differ."""
    found = [intervals.p_value(values - MEAN) < 0.05 for values in studies(1500, 200, 3, spread, 0.3)]
    assert 0.02 <= np.mean(found) <= 0.07


def test_the_p_of_a_clear_difference_is_told():
    values = np.random.default_rng(0).normal(0.3, 0.02, (500, 10))
    assert intervals.p_value(values) == 0.0 < intervals.p_value(values - 0.2985) < 1
