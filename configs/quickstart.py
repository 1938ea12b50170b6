r"""The main job on a laptop's CPU: SmolLM2-135M-Instruct learns to search, with a second SmolLM2 as the search engine.

  python -m launch.train --config configs/quickstart.py

Both roles start from small LoRA adapters that ship with the project. The policy's (configs/miniature/warm_start.py)
knows how to search and mostly guesses; what training can find is that searching pays. The simulator's is that of
configs/sft_searches.py. Evaluation asks 96 held-out questions with a real engine, BM25 over the built-in corpus, before
and after. Measured results: README.md.

`own` draws its questions from a whole file, and evaluates on none unless asked to (docs/start.md):

  python -m launch.train --config configs/quickstart.py:own --config.data.train=questions.jsonl --config.rl.steps=50

The same with the real engine, and without any search; launch.evaluate compares them:

  python -m launch.train --config configs/quickstart.py:search_r1
  python -m launch.train --config configs/quickstart.py:r1
"""

from configs.common import base, simulator

PRESETS = {
    '': {},
    'own': {
        'data': {'folds': ()},
        'simulator': {'tell': 'hop'},  # where the hops of a question are known; else the same as 'final'
        'rollout': {'prompt_tokens': 224},
        'evaluation': {'questions': 0},  # those of the built-in world say nothing about others
    },
    'search_r1': {'simulator': {'kind': 'engine'}},
    'r1': {
        'policy': {'adapter': ''},  # the shipped one searches
        'simulator': {'kind': 'none'},
        'rollout': {'prompt': 'reason', 'max_turns': 0, 'turn_tokens': 320},
    },
}


def get_config(preset=''):
    chosen = PRESETS[preset]
    config = base()
    config.data.folds = (6, 7, 8, 9)  # neither adapter has seen these questions
    config.policy.update(adapter='miniature_policy', lora_rank=8)
    config.simulator.update(simulator(), documents=2, max_tokens=176)
    config.curriculum.update(start=0.0, end=0.5)
    config.rollout.update(questions=4, group=8, temperature=0.8, max_turns=3, turn_tokens=80, observation_tokens=176)
    config.rollout.update(prompt_tokens=144, response_tokens=432)
    config.rl.update(steps=4, algorithm='grpo', aggregate='token', kl=0.0, drop_zero_variance=True)
    config.rl.update(row_length=896, chunk=128)
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.0)
    config.evaluation.update(questions=96, documents=2)
    for section, values in chosen.items():
        config[section].update(values)
    return config
