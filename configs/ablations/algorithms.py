r"""Which algorithm: all of them at the same rollouts, rate and steps. Three seeds each. Not run yet.

python -m launch.sweep --config configs/ablations/algorithms.py
"""

from configs.studies import study

VARIANTS = {
    'grpo': {'rl': {'algorithm': 'grpo'}},
    'reinforce': {'rl': {'algorithm': 'reinforce'}},
    'reinforce_baseline': {'rl': {'algorithm': 'reinforce_baseline'}},
    'rloo': {'rl': {'algorithm': 'rloo'}},
    'reinforce_plus_plus': {'rl': {'algorithm': 'reinforce_plus_plus', 'kl_estimator': 'k1'}},
    'dr_grpo': {'rl': {'algorithm': 'dr_grpo', 'kl': 0.0}},
    'dapo': {'rl': {'algorithm': 'grpo', 'aggregate': 'token', 'clip_high': 0.28, 'dynamic_sampling': 2, 'kl': 0.0}},
    'gspo': {'rl': {'algorithm': 'gspo'}},
    'ppo': {'rl': {'algorithm': 'ppo', 'kl_estimator': 'k1'}, 'critic': {'lora_rank': 8, 'learning_rate': 1e-4}},
}


def get_config(preset=''):
    return study(VARIANTS, preset)
