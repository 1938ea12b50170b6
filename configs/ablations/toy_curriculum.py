r"""Order and amount of noise, on the toy task: three seeds each in minutes. Expected: not run.

python -m launch.sft --config configs/toy_sft.py
python -m launch.sweep --config configs/ablations/toy_curriculum.py
"""

from configs.studies import toy_study

KINDS = ('exponential', 'reversed', 'shuffled', 'matched')
VARIANTS = {kind: {'curriculum': {'kind': kind, 'start': 0.0, 'end': 0.75}} for kind in KINDS}
VARIANTS |= {'no_noise': {}, 'half_noise': {'curriculum': {'kind': 'constant', 'start': 0.5}}}


def get_config(preset=''):
    return toy_study(VARIANTS, preset)
