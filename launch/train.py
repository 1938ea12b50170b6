"""Trains a search policy by reinforcement learning on simulated search.

  python -m launch.train --config configs/quickstart.py
  python -m launch.train --config configs/quickstart.py --config.rl.steps=3 --workdir runs/short

The same command run again in the same --workdir continues from the last checkpoint. Every field of the configuration
is a flag, --config.SECTION.FIELD=VALUE; docs/configuration.md lists them. Results are written to --workdir.
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
        from zerosearch_jax.tools import ending, view
        from zerosearch_jax.train import config, rl

        cfg = config.parse(_CONFIG.value)
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or common.default_workdir())
        summary = rl.train(cfg, workdir, settings.to_json(_CONFIG.value))
        if summary and summary['steps']:
            view.write(workdir)
            progress.log(ending.ending(workdir))


if __name__ == '__main__':
    from launch import common

    common.run(main)
