r"""What a policy that already searches gains by training on simulated and on real search; one GPU, three seeds each.

python -m launch.sweep --config configs/ablations/engine.py --results docs/runs/engine
"""

from ml_collections import ConfigDict

from configs import quickstart_gpu
from configs.common import no_preset

VARIANTS = {
    'warm_start': {'seed': 0, 'rl': {'steps': 0}, 'evaluation': {'before': True}},
    'real_search': {'simulator': {'kind': 'engine'}},
    'simulated_search': {},
}
PAIRS = (('warm_start', 'real_search'), ('warm_start', 'simulated_search'), ('real_search', 'simulated_search'))


def get_config(preset=''):
    no_preset(preset)
    base = quickstart_gpu.get_config()
    base.data.folds = ()
    base.policy.adapter, base.rl.kl = 'smollm2_policy', 0.001
    base.simulator.update(adapter='smollm2_simulator', template='tuned', tell='final', blind_noise=False, words=25)
    base.rollout.update(prompt_tokens=256, response_tokens=512)
    base.evaluation.before = False
    base.run.tensorboard = False
    return ConfigDict(
        {'base': base, 'baseline': 'warm_start', 'variants': VARIANTS, 'pairs': PAIRS, 'seeds': (0, 1, 2)}
    )
