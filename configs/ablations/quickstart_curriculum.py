r"""Does a rising noise, or documents that keep their label, change what the quickstart learns? Three seeds each.

  python -m launch.sweep --config configs/ablations/quickstart_curriculum.py --results docs/runs/quickstart_curriculum

`matched` has the mean noise of `exponential` at every step. Stated before the runs: if two arms answer 15 % of the 96
held-out questions differently, a difference of them has a standard error of 4 points for a seed and at least 2.3 over
three, so one of 8 points (or 11, if a seed's luck is shared by its questions) can be told from none.

Measured: not run.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.common import no_preset

VARIANTS = {
    'exponential': {},
    'matched': {'curriculum': {'kind': 'matched'}},
    'no_noise': {'curriculum': {'kind': 'constant'}},
    'verified': {'simulator': {'verify': True}},
}


def get_config(preset=''):
    no_preset(preset)
    base = quickstart.get_config()
    base.evaluation.before = False
    base.run.tensorboard = False
    return ConfigDict({'base': base, 'baseline': 'exponential', 'variants': VARIANTS, 'seeds': (0, 1, 2)})
