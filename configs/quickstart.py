r"""The main job on a laptop's CPU: SmolLM2-135M-Instruct learns to search, with a second SmolLM2 as the search engine.

  python -m launch.train --config configs/quickstart.py

Both roles start from the small LoRA adapters that ship with the project (configs/sft.py made them). Evaluation asks 64
held-out questions with a real engine, BM25 over the built-in corpus, before and after. Measured results: README.md.

The same with the real engine, and without any search; launch.evaluate compares them:

  python -m launch.train --config configs/quickstart.py:search_r1
  python -m launch.train --config configs/quickstart.py:r1
"""

from configs.common import base

PRESETS = {
    '': {},
    'search_r1': {'simulator': {'kind': 'engine'}},
    'r1': {
        'policy': {'adapter': ''},  # the shipped one searches
        'simulator': {'kind': 'none'},
        'rollout': {'prompt': 'reason', 'max_turns': 0, 'turn_tokens': 320},
        'alarms': {'searches': 0.0},
    },
}


def get_config(preset=''):
    chosen = PRESETS[preset]
    config = base()
    config.policy.update(adapter='smollm2_policy', lora_rank=8)
    config.simulator.update(adapter='smollm2_simulator', documents=2, words=25, max_tokens=176)
    config.curriculum.update(start=0.0, end=0.5)
    config.rollout.update(questions=4, group=4, max_turns=3, turn_tokens=80, observation_tokens=176)
    config.rollout.update(prompt_tokens=256, response_tokens=512)
    config.rl.update(steps=3, algorithm='grpo', aggregate='token', kl=0.001)  # as many steps as fit 15 minutes
    config.rl.update(row_length=896, chunk=128)
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.0)
    config.evaluation.update(questions=64, documents=2)
    for section, values in chosen.items():
        config[section].update(values)
    return config
