r"""Order and amount of noise, on the toy task: ten seeds each. Measured: docs/simulator.md.

python -m launch.sft --config configs/toy_sft.py
python -m launch.sweep --config configs/ablations/toy_curriculum.py

`exponential`, `reversed`, `shuffled` and `matched` have the same noise in total: what differs is its order. Stated
before the runs: with a standard deviation of 10 points of EM between seeds, a difference of two arms has a standard
error of 4.5 points over ten pairs, and one of 13 points is found four times in five at the 5 % level.
"""

from configs.studies import toy_study

KINDS = ('exponential', 'linear', 'reversed', 'shuffled', 'matched')
CONSTANT = {'no_noise': 0.0, 'half_noise': 0.5, 'full_noise': 1.0}
VARIANTS = {kind: {'curriculum': {'kind': kind, 'start': 0.0, 'end': 0.75}} for kind in KINDS}
VARIANTS |= {name: {'curriculum': {'kind': 'constant', 'start': share}} for name, share in CONSTANT.items()}


def get_config(preset=''):
    config = toy_study(VARIANTS, preset)
    config.seeds = tuple(range(10))
    return config
