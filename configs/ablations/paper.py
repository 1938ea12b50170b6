r"""The published system's mistakes, all of them and one at a time. Three seeds each. Expected: not run.

The quickstart's step has 32 trajectories, within one published micro-batch and one mini-batch: `micro_batch_means` is a
mean over tokens here. D12's uneven mini-batches show at the published size only (configs/qwen2_5_3b.py:paper).

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
    return study(VARIANTS, preset)
