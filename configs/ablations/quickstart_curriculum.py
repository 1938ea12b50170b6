r"""Does a rising noise, or documents that keep their label, change what the quickstart learns? Three seeds each.

  python -m launch.sweep --config configs/ablations/quickstart_curriculum.py --results docs/runs/quickstart_curriculum

Both models compute in bfloat16, which recent CPUs do faster (docs/measurements.md, "bfloat16 products on a CPU").

`matched` has the mean noise of `exponential` at every step. Stated before the runs: if two arms answer 15 % of the 96
held-out questions differently, a difference of them has a standard error of 4 points for one seed and, if seeds are
independent, of 2.3 for three. One of 6 points is then found four times in five at the 5 % level; if all seeds answer
alike, one of 11.

Measured: docs/simulator.md.
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
    base.policy.dtype = base.simulator.dtype = 'bfloat16'
    base.evaluation.before = False
    base.run.tensorboard = False
    return ConfigDict({'base': base, 'baseline': 'exponential', 'variants': VARIANTS, 'seeds': (0, 1, 2)})
