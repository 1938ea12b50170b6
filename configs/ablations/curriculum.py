r"""Does the order of the noise matter at the same amount, and does its amount? Three seeds each. Not run yet.

python -m launch.sweep --config configs/ablations/curriculum.py
"""

from configs.studies import study

VARIANTS = {
    'exponential': {},
    'linear': {'curriculum': {'kind': 'linear'}},
    'reversed': {'curriculum': {'kind': 'reversed'}},
    'shuffled': {'curriculum': {'kind': 'shuffled'}},
    'matched': {'curriculum': {'kind': 'matched'}},
    'no_noise': {'curriculum': {'kind': 'constant', 'start': 0.0}},
    'half_noise': {'curriculum': {'kind': 'constant', 'start': 0.5}},
    'adaptive': {'curriculum': {'kind': 'adaptive'}},
}


def get_config(preset=''):
    return study(VARIANTS, preset)
