r"""What the quickstart gains over its warm start, on simulated and on real search; three seeds each.

python -m launch.sweep --config configs/ablations/quickstart_gain.py --results docs/runs/quickstart
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.common import no_preset

VARIANTS = {
    'warm_start': {'seed': 0, 'rl': {'steps': 0}, 'evaluation': {'before': True}},
    'simulated_search': {},
    'real_search': quickstart.PRESETS['search_r1'],
}
PAIRS = (('warm_start', 'simulated_search'), ('warm_start', 'real_search'), ('real_search', 'simulated_search'))


def get_config(preset=''):
    no_preset(preset)
    base = quickstart.get_config()
    base.evaluation.before = False
    base.run.tensorboard = False
    return ConfigDict(
        {'base': base, 'baseline': 'warm_start', 'variants': VARIANTS, 'pairs': PAIRS, 'seeds': (0, 1, 2)}
    )
