"""A study runs variants and seeds, resumes, shares its work, and compares what is paired."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tiny
from zerosearch_jax import experiment, metrics, settings, train_rl
from zerosearch_jax.tools import sweep

SPEED = {'speed/rollout_seconds': 1.5, 'speed/update_seconds': 0.5}


def study(**changes):
    base = tiny.get_config()
    base.rl.steps = 2
    config = {'base': base, 'variants': {'a': {}, 'b': {'rl': {'algorithm': 'rloo'}}}, 'seeds': (0, 1)}
    config['baseline'] = next(iter(changes.get('variants', config['variants'])), '')
    return sweep.parse(ConfigDict(config | changes))


def fake_run(workdir, made, variant, seed, scores, rewards):
    here = sweep.run_directory(workdir, variant, seed)
    resolved = settings.to_json(made.config(variant, seed))
    here.mkdir(parents=True)
    (here / 'config.json').write_text(resolved)
    (here / 'finished').write_text('')
    rows = [{'id': f'q{i}', 'em': s, 'f1': s, 'cover_em': s, 'step': 2} for i, s in enumerate(scores)]
    metrics.write_jsonl(here / 'evaluation' / 'step_000000.jsonl', [row | {'em': 0.0} for row in rows])
    metrics.write_jsonl(here / 'evaluation' / 'step_000002.jsonl', rows)
    metrics.write_jsonl(
        here / 'metrics.jsonl', [{'step': i + 1, 'reward/mean': r, **SPEED} for i, r in enumerate(rewards)]
    )


def test_a_variant_changes_what_it_says_and_nothing_else():
    made = study()
    a, b = made.config('a', 1), made.config('b', 1)
    assert (a.seed, b.seed, a.rl.algorithm, b.rl.algorithm) == (1, 1, 'grpo', 'rloo')
    b.rl.algorithm = 'grpo'
    assert settings.to_json(a) == settings.to_json(b)
    assert made.config('a', 0).seed == 0 and made.base.seed == 0
    assert made.runs() == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]


def test_the_baseline_is_the_one_that_is_named():
    assert list(study(baseline='b').variants) == ['b', 'a']
    with pytest.raises(ValueError, match="baseline 'c' is none of the variants a, b"):
        study(baseline='c')


@pytest.mark.parametrize(
    ('variants', 'message'),
    [
        ({'x': {'rl': {'algorithm': 'best'}}}, "variant 'x': config.rl: algorithm = 'best' is none of"),
        ({'x': {'rl': {'algoritm': 'grpo'}}}, "variant 'x': .*algoritm"),
        ({'x': {'rll': {'algorithm': 'grpo'}}}, "variant 'x': .*rll"),
        ({}, 'needs variants and seeds'),
    ],
)
def test_a_wrong_variant_is_told_before_anything_runs(variants, message):
    with pytest.raises(ValueError, match=message):
        study(variants=variants)


def test_runs_are_shared_among_parts_and_finished_ones_are_not_repeated(tmp_path, monkeypatch):
    made, ran = study(), []

    def train(cfg, here, resolved):
        ran.append((here.parent.name, here.name))
        here.mkdir(parents=True, exist_ok=True)
        (here / 'config.json').write_text(resolved)
        metrics.write_jsonl(here / 'metrics.jsonl', [{'step': 1, 'reward/mean': 0.5, **SPEED}])

    monkeypatch.setattr(sweep.train_rl, 'train', train)
    sweep.sweep(made, tmp_path, 1, 3)
    assert ran == [('b', 'seed_0')]
    text = sweep.sweep(made, tmp_path)
    assert ran == [('b', 'seed_0'), ('a', 'seed_0'), ('a', 'seed_1'), ('b', 'seed_1')]
    assert text == (tmp_path / 'report.md').read_text().strip()
    sweep.sweep(made, tmp_path)
    assert len(ran) == 4
    changed = study(seeds=(0,), variants={'a': {'rl': {'kl': 0.5}}})
    sweep.sweep(changed, tmp_path)
    assert len(ran) == 5  # another configuration is another run


def test_the_report_pairs_questions_and_seeds(tmp_path):
    made = study()
    fake_run(tmp_path, made, 'a', 0, [1, 0, 0, 0], [0.1] * 8 + [0.2, 0.4])
    fake_run(tmp_path, made, 'a', 1, [1, 1, 0, 0], [0.1] * 8 + [0.2, 0.2])
    fake_run(tmp_path, made, 'b', 0, [1, 1, 0, 0], [0.5] * 10)
    fake_run(tmp_path, made, 'b', 1, [1, 1, 1, 0], [0.7] * 10)
    text = sweep.write_report(made, tmp_path)
    found = json.loads((tmp_path / 'report.json').read_text())
    assert found['a']['em']['mean'] == pytest.approx(3 / 8) and found['b']['em']['mean'] == pytest.approx(5 / 8)
    assert found['b']['differences']['em']['mean'] == pytest.approx(2 / 8)
    assert found['a']['reward']['seeds'] == pytest.approx([0.3, 0.2])  # of the last fifth of the steps
    assert found['b']['differences']['reward']['mean'] == pytest.approx(0.35)
    low, high = found['b']['differences']['em']['interval']
    assert 0 <= low <= 0.25 <= high <= 0.75
    assert found['a']['differences'] == {}
    assert '| b | 2 | 0.625' in text and '+0.250' in text
    assert (tmp_path / 'report.png').stat().st_size > 1000


def test_what_is_not_run_is_said_so(tmp_path):
    made = study()
    fake_run(tmp_path, made, 'a', 0, [1, 0], [0.5, 0.5])
    text = sweep.write_report(made, tmp_path)
    assert '| b | not run |' in text and '| a | 1 |' in text
    assert np.count_nonzero([line.startswith('| ') for line in text.splitlines()]) == 3


def test_a_real_study_of_the_tiny_model(tmp_path):
    made = study(seeds=(0,))
    text = sweep.sweep(made, tmp_path)
    assert '| a | 1 |' in text and '| b | 1 |' in text
    for variant in 'ab':
        assert (tmp_path / variant / 'seed_0' / 'summary.json').exists()


def test_all_weights_can_be_trained_beside_a_simulator_of_the_same_model(tmp_path):
    config = tiny.get_config()
    config.policy.lora_rank = 0  # their buffers are donated, the simulator starts from the same ones
    config.rl.update(steps=2, algorithm='ppo')
    config.critic.lora_rank = 2
    summary = train_rl.train(experiment.parse(config), tmp_path, settings.to_json(config))
    assert summary['steps'] == 2
