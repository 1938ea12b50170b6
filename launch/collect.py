"""Records searches with a real engine, labelled useful or noisy: the data on which a simulator is fine-tuned.

  python -m launch.collect --config configs/collect.py
  python -m launch.collect --config configs/collect.py:judge --workdir runs/judged

The same command run again in the same --workdir continues where the last one stopped. The pairs are written to
WORKDIR/pairs.jsonl; name that file in config.demos.source of launch.sft.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the results; default: runs/NAME_OF_THE_CONFIG.')


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax import settings
        from zerosearch_jax.audit import collect

        cfg = collect.parse(_CONFIG.value)
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or common.default_workdir())
        print(collect.collect(cfg, workdir, settings.to_json(_CONFIG.value)))


if __name__ == '__main__':
    from launch import common

    common.run(main)
