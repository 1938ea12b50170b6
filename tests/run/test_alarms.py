"""Alarms: each fires at its limit and not before, is reported once, and says what to try."""

import dataclasses
import math

import pytest

from zerosearch_jax.run import alarms
from zerosearch_jax.run.alarms import AlarmConfig


def healthy(**changed):
    row = dict.fromkeys(alarms.WATCHED, 0.5) | {'rollout/response_tokens': 100.0, 'loss/kl': 0.01}
    return row | changed


@pytest.mark.parametrize(
    ('name', 'row'),
    [
        ('entropy', {'loss/entropy': 0.04}),
        ('kl', {'loss/kl': 0.6}),
        ('length_low', {'rollout/response_tokens': 29.0}),
        ('length_high', {'rollout/response_tokens': 301.0}),
        ('answered', {'rollout/answered': 0.1}),
        ('searches', {'rollout/searches': 0.0}),
        ('failed', {'rollout/failed': 0.6}),
        ('zero_variance', {'rollout/zero_variance_groups': 1.0}),
        ('grad_norm', {'loss/grad_norm': 101.0}),
        ('logprob_gap', {'loss/logprob_gap_max': 2.1}),
    ],
)
def test_an_alarm_rings_after_a_window_of_bad_steps_and_not_before(name, row):
    cfg = AlarmConfig(window=3)
    rows = [healthy()] * 4 + [healthy(**row)] * 2
    assert alarms.fired_alarms(rows, cfg) == []
    assert alarms.fired_alarms([*rows, healthy(**row)], cfg) == [name]
    assert alarms.fired_alarms([*rows, healthy(), healthy(**row)], cfg) == []
    assert alarms.fired_alarms([*rows, healthy(**row)], dataclasses.replace(cfg, **{name: 0.0})) == []
    assert name in alarms.ADVICE


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_number_that_is_none_rings_at_once(value):
    assert alarms.fired_alarms([healthy(**{'loss/loss': value})], AlarmConfig()) == ['not_finite']


def test_what_was_learned_before_the_first_suspicious_step_is_worth_keeping():
    cfg, bad = AlarmConfig(window=3), healthy(**{'loss/kl': 0.6})
    worse = healthy(**{'loss/kl': 0.6, 'loss/entropy': 0.0})
    histories = [[bad], [healthy()], [healthy(), bad], [bad, bad], [bad, worse]]
    assert [alarms.newly_over_limit(rows, cfg) for rows in histories] == [True, False, True, False, True]


def test_every_alarm_has_a_threshold_and_reads_what_is_kept():
    thresholds = {f.name for f in dataclasses.fields(AlarmConfig)} - {'window', 'stop'}
    assert thresholds == alarms.ALARMS.keys()
    assert alarms.fired_alarms([], AlarmConfig()) == []
    with pytest.raises(ValueError, match='window'):
        AlarmConfig(window=0)
