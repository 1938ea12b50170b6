r"""Which algorithm, on the toy task: three seeds each in minutes. Expected: all raise the reward from 0.55 to 0.8.
Measured: the interval of one of seven differences, REINFORCE++, excludes 0, which can be chance (docs/algorithms.md).

python -m launch.sft --config configs/toy_sft.py
python -m launch.sweep --config configs/ablations/toy_algorithms.py
"""

from configs.studies import toy_study

VARIANTS = {
    'grpo': {},
    'reinforce': {'rl': {'algorithm': 'reinforce'}},
    'reinforce_baseline': {'rl': {'algorithm': 'reinforce_baseline'}},
    'reinforce_plus_plus': {'rl': {'algorithm': 'reinforce_plus_plus'}},
    'rloo': {'rl': {'algorithm': 'rloo'}},
    'dr_grpo': {'rl': {'algorithm': 'dr_grpo', 'aggregate': 'budget'}},
    'gspo': {'rl': {'algorithm': 'gspo', 'aggregate': 'sequence', 'clip': 0.01}},
    'ppo': {'rl': {'algorithm': 'ppo'}, 'critic': {'learning_rate': 1e-3}},
}


def get_config(preset=''):
    return toy_study(VARIANTS, preset)
