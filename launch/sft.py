"""Fine-tunes a model on demonstrations: a policy's warm start, or a simulator.

  python -m launch.sft --config configs/sft.py:policy --workdir runs/sft_policy
  python -m launch.sft --config configs/sft.py:simulator --workdir runs/sft_simulator

The same command run again in the same --workdir continues from the last checkpoint. The adapter is written to
WORKDIR/adapter.safetensors; name that file in config.policy.adapter or config.simulator.adapter of launch.train.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Run directory; default: runs/NAME_OF_THE_CONFIG.')


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax import progress, settings
        from zerosearch_jax.train import sft

        cfg = sft.parse(_CONFIG.value)
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or common.default_workdir())
        written = sft.train(cfg, workdir, settings.to_json(_CONFIG.value))
        stopped = 'SIGTERM: saved; run the same command again to continue'
        progress.log(f'written: {written}' if written else stopped)


if __name__ == '__main__':
    from launch import common

    common.run(main)
