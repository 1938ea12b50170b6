r"""Order and amount of noise, on the toy task: three seeds each in minutes. Expected: not run.

python -m launch.sft --config configs/toy_sft.py
python -m launch.sweep --config configs/ablations/toy_curriculum.py
"""

from configs.common import toy_study

VARIANTS = {
    'exponential': {},
    'reversed': {'curriculum': {'kind': 'reversed'}},
    'shuffled': {'curriculum': {'kind': 'shuffled'}},
    'matched': {'curriculum': {'kind': 'matched'}},
    'no_noise': {'curriculum': {'kind': 'constant', 'start': 0.0}},
    'half_noise': {'curriculum': {'kind': 'constant', 'start': 0.5}},
}


def get_config(preset=''):
    return toy_study(VARIANTS, preset)
