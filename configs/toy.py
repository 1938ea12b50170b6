r"""Reinforcement learning in a minute on a laptop: a model of 150,000 weights learns to search rather than to guess.

  python -m launch.sft --config configs/toy_sft.py
  python -m launch.train --config configs/toy.py

The warm start knows both: half of its demonstrations search, half answer at once and wrongly. The engine is simulated
by an oracle over the toy's passages (data/toy.py). Evaluation asks the 48 held-out questions with BM25. For studies of
algorithms and curricula: configs/ablations/toy_*.py.
"""

from configs.common import base, no_preset


def get_config(preset=''):
    no_preset(preset)
    config = base()
    config.policy.model = 'runs/toy_sft/model'
    config.data.update(train='toy', test='toy', corpus='toy')
    config.simulator.update(kind='oracle', template='tuned', documents=2)  # an oracle is not asked
    config.curriculum.update(kind='constant', start=0.0)
    config.rollout.update(questions=8, group=8, max_turns=2, turn_tokens=128, observation_tokens=128)
    config.rollout.update(prompt_tokens=640, response_tokens=384, slots=64, decode_steps=32, temperature=0.8)
    config.rl.update(steps=40, algorithm='grpo', aggregate='token', row_length=1024, rows_per_micro=4, kl=0.0)
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.0)
    config.evaluation.update(questions=48, documents=2)
    config.alarms.entropy = 0.0  # a byte of this task is nearly certain from the start
    config.run.update(checkpoint_every=10, trajectories_every=10)
    return config
