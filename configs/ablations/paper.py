r"""The published system's mistakes, all of them and one at a time. Three seeds each. Expected: not run.

python -m launch.sweep --config configs/ablations/paper.py
"""

from configs.common import PAPER, study

VARIANTS = {'fixed': {}, 'paper': PAPER} | {
    'KL_subtracted': {'rl': {'kl': -0.001}},
    'other_question': {'simulator': {'questions': 'compacted'}},
    'no_baseline': {'rl': {'algorithm': 'reinforce'}},
    'top_p': {'rollout': {'top_p': 0.95}},
    'micro_batch_means': {'rl': {'aggregate': 'micro'}},
}


def get_config(preset=''):
    return study(VARIANTS, preset)
