"""Intervals against the normal approximation, and the pooling of runs over seeds."""

import json

import numpy as np
import pytest

from zerosearch_jax.evaluate import report
from zerosearch_jax.evaluate.intervals import bootstrap_interval
from zerosearch_jax.run import jsonl

QUESTIONS = 400


def make_run(directory, seed, evaluations, **config):
    """A run directory with the two files that pooling reads; evaluations: {step: EM of every question}."""
    directory.mkdir()
    (directory / 'config.json').write_text(json.dumps({'seed': seed, **config}))
    for step, scores in evaluations.items():
        about = {'status': 'answered', 'searches': ['q'] * (1 + (step > 0))}
        rows = [{'id': i, 'em': float(s), 'f1': float(s) / 2, **about} for i, s in enumerate(scores)]
        jsonl.write_jsonl(report.evaluation_file(directory, step), rows)
    return directory


def coins(seed, share):
    return np.random.default_rng(seed).random(QUESTIONS) < share


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = coins(0, 0.3)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / QUESTIONS**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.005)
    assert high == pytest.approx(values.mean() + half, abs=0.005)


def test_runs_that_disagree_widen_the_interval_and_runs_that_agree_do_not():
    values = coins(0, 0.3).astype(float)
    same = np.stack([values] * 3, axis=1)
    assert bootstrap_interval(same) == pytest.approx(bootstrap_interval(values), abs=0.003)
    low, high = bootstrap_interval(same + np.array([-0.2, 0.0, 0.2]))
    alone_low, alone_high = bootstrap_interval(values)
    assert low < alone_low - 0.05
    assert high > alone_high + 0.05


def test_pooling_compares_the_same_questions_first_and_last(tmp_path):
    before = coins(1, 0.4)
    after = [before | coins(seed, 0.2) for seed in (2, 3)]
    runs = [
        make_run(tmp_path / str(seed), seed, {0: before, 5: ~before, 10: last}, rl={'steps': 10})
        for seed, last in enumerate(after)
    ]
    pooled = report.pool(runs)
    gain = np.stack([last.astype(float) - before for last in after], axis=1)
    assert pooled['questions'] == QUESTIONS
    assert pooled['em']['before']['mean'] == pytest.approx(before.mean())
    assert pooled['em']['gain']['mean'] == pytest.approx(gain.mean())
    assert pooled['em']['gain']['interval'] == bootstrap_interval(gain)
    assert pooled['em']['gain']['interval'][0] > 0
    assert pooled['em']['runs'] == pytest.approx(dict(enumerate(gain.mean(0))))
    assert pooled['f1']['gain']['mean'] == pytest.approx(gain.mean() / 2)
    assert pooled['searches'] == [1, 2]


@pytest.mark.parametrize(
    ('seed', 'evaluations', 'config', 'message'),
    [
        (1, {0: [1], 2: [1]}, {'x': 2}, 'different configurations'),
        (0, {0: [1], 2: [1]}, {'x': 1}, 'same seed'),
        (1, {0: [1]}, {'x': 1}, 'evaluated after 0 steps'),
        (1, {1: [1], 2: [1]}, {'x': 1}, 'after 1, 2 steps; a gain needs one before'),
    ],
)
def test_runs_that_cannot_be_pooled_are_refused(tmp_path, seed, evaluations, config, message):
    first = make_run(tmp_path / 'a', 0, {0: [1], 2: [0]}, x=1)
    with pytest.raises(ValueError, match=message):
        report.pool([first, make_run(tmp_path / 'b', seed, evaluations, **config)])
