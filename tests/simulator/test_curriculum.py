import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch_jax.simulator.curriculum import Curriculum, is_noisy, noise_probability

probabilities = st.floats(0, 1)
bases = st.floats(1e-3, 1e3)


def mean_noise(cfg, total, seed=0):
    return math.fsum(noise_probability(cfg, i, total, seed=seed) for i in range(1, total + 1)) / total


@pytest.mark.parametrize(
    ('start', 'end', 'expected', 'mean'),
    [
        (0, 0.5, [0, 0.069, 0.167, 0.305, 0.5], 0.194),
        (0, 0.25, [0, 0.035, 0.083, 0.152, 0.25], 0.097),
        (0, 0.75, [0, 0.104, 0.25, 0.457, 0.75], 0.291),
        (0.25, 0.5, [0.25, 0.285, 0.333, 0.402, 0.5], 0.347),
        (0.5, 0.5, [0.5] * 5, 0.5),
    ],
)
def test_published_values(start, end, expected, mean):
    cfg = Curriculum(start=start, end=end)
    assert [noise_probability(cfg, i, 200) for i in range(0, 201, 50)] == pytest.approx(expected, abs=5e-4)
    assert mean_noise(cfg, 10_000) == pytest.approx(mean, abs=5e-4)


def test_mean_is_over_steps_one_to_m():
    assert mean_noise(Curriculum(start=0, end=0.6, base=1), 3) == pytest.approx((0.2 + 0.4 + 0.6) / 3)
    ramp_mean = 1 / math.log(4) - 1 / 3  # the integral of the ramp
    assert mean_noise(Curriculum(start=0, end=1), 10_000) == pytest.approx(ramp_mean, abs=1e-4)


@given(probabilities, probabilities, bases, st.integers(1, 50))
def test_monotone_between_its_ends(start, end, base, total):
    cfg = Curriculum(start=start, end=end, base=base)
    values = [noise_probability(cfg, i, total) for i in range(total + 3)]
    assert values[0] == start and values[total:] == [end] * 3
    signed = [v * math.copysign(1, end - start) for v in values]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(signed))


@given(probabilities, probabilities, bases.filter(lambda b: abs(b - 1) > 0.01), st.integers(0, 30))
def test_equals_the_formula(start, end, base, step):
    formula = start + (base ** (step / 30) - 1) / (base - 1) * (end - start)
    assert noise_probability(Curriculum(start=start, end=end, base=base), step, 30) == pytest.approx(formula, abs=1e-9)


@pytest.mark.parametrize('base', [1, 1 + 1e-15, 1 - 1e-15, 1 + 1e-9])
def test_base_one_is_the_straight_line(base):
    assert noise_probability(Curriculum(start=0.2, end=0.6, base=base), 1, 4) == pytest.approx(0.3)


@given(st.floats(0, 1, exclude_max=True))
def test_noise_at_the_extremes(uniform):
    assert not is_noisy(uniform, 0.0)
    assert is_noisy(uniform, 1.0)


def test_noise_frequency_is_p():
    draws = [(k + 0.5) / 1000 for k in range(1000)]
    assert sum(is_noisy(u, 0.3) for u in draws) == 300


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'start': -0.1}, 'start must be a probability'),
        ({'end': 1.5}, 'end must be a probability'),
        ({'end': math.nan}, 'end must be a probability'),
        ({'base': 0.0}, 'base must be positive'),
        ({'base': math.inf}, 'base must be positive'),
        ({'at': 1.5}, 'at must be a number in'),
        ({'increment': -0.1}, 'increment must be a number in'),
        ({'window': 0}, 'window must be at least 1'),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(**kwargs)


def values(kind, total=40, seed=0, **fields):
    cfg = Curriculum(kind=kind, **{'start': 0.1, 'end': 0.7} | fields)
    return [noise_probability(cfg, i, total, seed=seed) for i in range(1, total + 1)]


def test_the_other_kinds_equal_their_closed_forms():
    assert values('linear') == pytest.approx([0.1 + 0.6 * i / 40 for i in range(1, 41)])
    assert values('constant') == [0.1] * 40
    assert values('step') == [0.1] * 19 + [0.7] * 21
    assert values('step', at=0.0) == [0.7] * 40
    assert values('step', at=1.0) == [0.1] * 39 + [0.7]
    assert values('reversed') == values('exponential')[::-1]
    assert values('reversed')[0] == 0.7


@pytest.mark.parametrize('kind', ['shuffled', 'matched', 'reversed'])
@given(probabilities, probabilities, bases, st.integers(1, 300), st.integers(0, 3))
def test_controls_have_the_mean_noise_of_the_curriculum(kind, start, end, base, total, seed):
    cfg = Curriculum(kind=kind, start=start, end=end, base=base)
    curriculum = dataclasses.replace(cfg, kind='exponential')
    assert mean_noise(cfg, total, seed) == pytest.approx(mean_noise(curriculum, total), abs=1e-6)


def test_shuffling_changes_the_order_only_and_by_its_seed():
    first, second = values('shuffled', seed=0), values('shuffled', seed=1)
    assert sorted(first) == sorted(second) == values('exponential')
    assert first != second != values('exponential')
    assert len(set(values('matched'))) == 1


def adaptive(rewards, **fields):
    cfg = Curriculum(kind='adaptive', **{'window': 2, 'increment': 0.2, 'threshold': 0.5, 'end': 0.5} | fields)
    return [noise_probability(cfg, i, 100, rewards) for i in range(1, len(rewards) + 2)]


def test_an_adaptive_curriculum_moves_after_a_good_window_and_counts_anew():
    assert adaptive([0.6, 0.6, 0.6, 0.6]) == pytest.approx([0, 0, 0.2, 0.2, 0.4])
    assert adaptive([0.9, 0.0, 0.9, 0.2]) == [0, 0, 0, 0, 0.2]  # 0.45, 0.45, 0.55
    assert adaptive([0.4] * 6) == [0] * 7
    assert adaptive([1.0] * 8)[-2:] == [0.5, 0.5]  # never beyond its end
    assert adaptive([1.0] * 4, start=0.5, end=0.0) == pytest.approx([0.5, 0.5, 0.3, 0.3, 0.1])


@given(st.lists(st.floats(0, 1), max_size=30), st.lists(st.floats(0, 1), max_size=5))
def test_an_adaptive_curriculum_does_not_see_the_future(rewards, later):
    cfg = Curriculum(kind='adaptive')
    step = len(rewards) + 1
    assert noise_probability(cfg, step, 50, rewards) == noise_probability(cfg, step, 50, rewards + later)


def test_an_adaptive_curriculum_without_rewards_is_refused():
    with pytest.raises(ValueError, match='rewards of 2 steps, got 1'):
        noise_probability(Curriculum(kind='adaptive'), 3, 10, [0.1])


@pytest.mark.parametrize(('step', 'total'), [(-1, 10), (1, 0)])
def test_bad_steps(step, total):
    with pytest.raises(ValueError, match='total_steps'):
        noise_probability(Curriculum(), step, total)
