"""The published experiments run: their models with fewer layers and random weights, on eight fake devices."""

import dataclasses
import importlib
import json
import math

import pytest
from helpers import load_random_models

from zerosearch_jax.plan import programs
from zerosearch_jax.run import jsonl
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl

EXPERIMENTS = [('qwen2_5_3b', 'paper'), ('qwen2_5_7b', 'base'), ('llama3_2_3b', 'base')]
METHODS = [pytest.param('qwen2_5_3b', f'paper_{name}', marks=pytest.mark.slow) for name in ('ppo', 'searchr1', 'r1')]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes a run of two steps of an experiment: fewer questions and tokens, models that `shrink` makes smaller."""

    def make(name, preset, shrink):
        load_random_models(monkeypatch, lambda name: shrink(programs.model_config(name)))
        questions = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b']} for i in range(8)]
        (tmp_path / 'questions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in questions))
        (tmp_path / 'corpus.jsonl').write_text(json.dumps({'id': 'p', 'title': 'because', 'text': 'of all'}) + '\n')
        config = importlib.import_module(f'configs.{name}').get_config(preset)
        config.data.update(train=str(tmp_path / 'questions.jsonl'), test=str(tmp_path / 'questions.jsonl'))
        config.data.corpus, config.engine.kind = str(tmp_path / 'corpus.jsonl'), 'bm25'
        config.rollout.update(
            questions=4, prompt_tokens=896, turn_tokens=16, observation_tokens=64, response_tokens=128
        )
        config.rollout.slots = 8 if 'paper' not in preset else 4 * config.rollout.group  # D1 is about whole turns
        config.rollout.slots += -config.rollout.slots % 8
        config.simulator.update(prompt_tokens=896, max_tokens=16, slots=8)
        config.rl.update(steps=2, row_length=1024)
        config.evaluation.questions = 0
        config.run.update(checkpoint_every=2, tensorboard=False)
        return train_config.parse(config)

    return make


def run(cfg, workdir):
    rl.train(cfg, workdir, '{}')
    rows = jsonl.read_jsonl(workdir / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [1, 2]
    for row in rows:
        assert math.isfinite(row['loss/loss']) and row['loss/grad_norm'] > 0
    return rows


@pytest.mark.thorough
@pytest.mark.parametrize(('name', 'preset'), EXPERIMENTS + METHODS)
def test_experiments_run_two_steps(small, name, preset, tmp_path):
    def shrink(cfg):  # the heads stay as many as they are
        narrow = {n: getattr(cfg, n) // 8 for n in ('hidden_size', 'mlp_size', 'head_dim')}
        return dataclasses.replace(cfg, num_layers=1, vocab_size=512, **narrow)

    run(small(name, preset, shrink), tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ('name', 'preset', 'vocab_size', 'simulator'),
    [
        ('qwen2_5_3b', 'paper', 151_936, 'Qwen/Qwen2.5-3B'),
        ('llama3_2_3b', 'base', 512, 'Alibaba-NLP/Simulation_LLM_google_14B_V2'),  # all words take over 24 GiB
        ('qwen2_5_7b', 'base', 512, 'Alibaba-NLP/Simulation_LLM_google_14B_V2'),
    ],
)
def test_experiments_run_two_steps_at_full_width(small, name, preset, vocab_size, simulator, tmp_path):
    """Minutes and up to 20 GB each: one layer, two devices, one row at a time."""
    cfg = small(name, preset, lambda cfg: dataclasses.replace(cfg, num_layers=1, vocab_size=vocab_size))
    cfg = dataclasses.replace(
        cfg,
        mesh=(1, 1, 2),
        rl=dataclasses.replace(cfg.rl, rows_per_micro=1),
        simulator=dataclasses.replace(cfg.simulator, model=simulator),
    )
    run(cfg, tmp_path / 'run')
