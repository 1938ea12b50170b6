"""Says whether a run of reinforcement learning fits given hardware, before it is started: memory of every device.

  python -m launch.plan --config configs/qwen2_5_7b.py --hardware=a100-80gb:8
  python -m launch.plan --config configs/qwen2_5_3b.py --hardware=v5e:8x8 --config.mesh=1,64,1

The run's programs are compiled by the target's own compiler where it is a TPU and libtpu is installed (pip install
'jax[tpu]'), else by the CPU's for as many devices. Nothing is downloaded and nothing runs.
"""

import math
import os

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)
_HARDWARE = flags.DEFINE_string('hardware', 'a100-80gb:8', 'CHIP:COUNT or CHIP:TOPOLOGY, e.g. h100-80gb:4, v5p:2x2x2.')


def main(_):
    from launch import common

    with common.one_line_errors():
        _set_environment(_HARDWARE.value)
        from zerosearch_jax import experiment
        from zerosearch_jax.tools import hardware, plan

        target = hardware.parse(_HARDWARE.value)
        cfg = experiment.parse(_CONFIG.value)
        found, compiler = hardware.devices(target)
        print(plan.table(plan.plan(cfg, target, found, compiler), target, cfg))


def _set_environment(text: str) -> None:
    """As many CPU devices as are asked for, and no search for a real TPU; before jax looks for devices."""
    import jax

    sizes = [int(part) for part in text.partition(':')[2].split('x') if part.isdigit()]
    count = math.prod(sizes)
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
    os.environ.update(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0')
    jax.config.update('jax_platforms', 'cpu')


if __name__ == '__main__':
    from launch import common

    common.run(main)
