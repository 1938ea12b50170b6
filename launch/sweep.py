"""Runs a study: variants of an experiment with several seeds each, and one report of how they differ.

  python -m launch.sweep --config configs/ablations/curriculum.py
  python -m launch.sweep --config configs/ablations/curriculum.py --config.seeds="(0,)" --config.base.rl.steps=10

The same command run again continues what is unfinished. To share the runs among several machines, give each a part:
--part=0/4, --part=1/4, ...; in a SLURM array of four tasks --part=$SLURM_ARRAY_TASK_ID/4. The report is made of small
files in --results; runs whose files are there are not made again.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Study: a file of configs/ablations/.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the study; default: runs/NAME_OF_THE_CONFIG.')
_RESULTS = flags.DEFINE_string('results', '', 'Directory of results and report; default: WORKDIR/results.')
_PART = flags.DEFINE_string('part', '0/1', 'Which part of the runs, counted from 0, of how many.')


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.study import sweep

        part, _, parts = _PART.value.partition('/')
        if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
            raise ValueError(f'--part={_PART.value} must look like 0/4, the first of four')
        study = sweep.parse(_CONFIG.value)
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or common.default_workdir())
        results = pathlib.Path(_RESULTS.value) if _RESULTS.value else workdir / 'results'
        print(sweep.sweep(study, workdir, results, int(part), int(parts)))


if __name__ == '__main__':
    from launch import common

    common.run(main)
