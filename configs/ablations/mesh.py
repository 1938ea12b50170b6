r"""The same run on several mesh shapes: equal results, other times. Expected: docs/runs/mesh.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m launch.sweep --config configs/ablations/mesh.py
"""

from ml_collections import ConfigDict

from configs import tiny
from configs.common import no_preset

MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2))


def get_config(preset=''):
    no_preset(preset)
    base = tiny.get_config()
    base.policy.lora_rank = 0
    base.rollout.update(questions=4, group=4, slots=16)
    base.simulator.slots = 16
    base.rl.update(steps=8, rows_per_micro=8, entropy=0.5)
    base.optimizer.learning_rate = 0.01  # random weights earn no reward, but entropy changes them
    base.evaluation.questions = 0
    variants = {'x'.join(map(str, mesh)): {'mesh': mesh} for mesh in MESHES}
    variants['1x8x1_8x1x1'] = {'mesh': (1, 8, 1), 'rollout': {'mesh': (8, 1, 1)}}  # the latter generates
    return ConfigDict({'base': base, 'baseline': '1x1x1', 'variants': variants, 'seeds': (0,)})
