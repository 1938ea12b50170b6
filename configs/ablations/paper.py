r"""The published system's mistakes, all of them and one at a time. Three seeds each. Not run yet.

All start from REINFORCE with the batch's mean as its baseline, the `fixed` form. A step has 32 trajectories, within one
published micro-batch, so `micro_batch_means` equals `fixed` here but for rounding: it differs at the published size
only (configs/qwen2_5_3b.py).

python -m launch.sweep --config configs/ablations/paper.py
"""

from configs.common import PAPER
from configs.studies import study

VARIANTS = {'fixed': {}, 'paper': PAPER} | {
    'KL_subtracted': {'rl': {'kl': -0.001}},
    'other_question': {'simulator': {'questions': 'compacted'}},
    'no_baseline': {'rl': {'algorithm': 'reinforce'}},
    'top_p': {'rollout': {'top_p': 0.95}},
    'micro_batch_means': {'rl': {'aggregate': 'micro'}},
}


def get_config(preset=''):
    config = study(VARIANTS, preset)
    config.base.rl.algorithm = 'reinforce_baseline'
    return config
