"""Runs a study: variants of an experiment with several seeds each, and one report of how they differ.

  python -m launch.sweep --config configs/ablations/curriculum.py
  python -m launch.sweep --config configs/ablations/curriculum.py --config.seeds="(0,)" --config.base.rl.steps=10
  python -m launch.sweep --config configs/reproduce/tables.py:paper --dry-run --hardware=a100-80gb:8

The same command run again continues unfinished runs. To distribute the runs over several machines, give each a part:
--part=0/4, --part=1/4, ...; in a SLURM array of four tasks --part=$SLURM_ARRAY_TASK_ID/4. The report is made from small
files in --results; runs whose files are there are not run again. --dry-run runs nothing: it prints what every run needs
on --hardware, as launch.plan does, and ends with exit code 1 and one line for each problem that would stop a run.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Study: a file of configs/ablations/.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the study; default: runs/NAME_OF_THE_CONFIG.')
_RESULTS = flags.DEFINE_string('results', '', 'Directory of results and report; default: WORKDIR/results.')
_PART = flags.DEFINE_string('part', '0/1', 'PART/PARTS: which part of the runs this machine makes, counted from 0.')
_DRY_RUN = flags.DEFINE_bool('dry-run', False, 'Run nothing; print what the runs need, and what would stop them.')
_HARDWARE = flags.DEFINE_string('hardware', 'a100-80gb:8', 'For --dry-run: CHIP:COUNT or CHIP:TOPOLOGY of each run.')


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.study import sweep

        part, _, parts = _PART.value.partition('/')
        if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
            raise ValueError(f'--part={_PART.value} must look like 0/4, the first of four')
        study = sweep.parse(_CONFIG.value)
        if _DRY_RUN.value:
            _dry_run(study, int(part), int(parts))
            return
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or common.default_workdir())
        results = pathlib.Path(_RESULTS.value) if _RESULTS.value else workdir / 'results'
        print(sweep.sweep(study, workdir, results, int(part), int(parts)))


def _dry_run(study, part: int, parts: int):
    from zerosearch_jax.plan import hardware
    from zerosearch_jax.tools import dry_run

    hardware.prepare(_HARDWARE.value)
    target = hardware.parse(_HARDWARE.value)
    text, problems = dry_run.dry_run(study, slice(part, None, parts), target, *hardware.devices(target))
    print(text)
    for problem in problems:
        print('problem:', ' '.join(problem.split()), file=sys.stderr)
    if problems:
        raise ValueError(f'{len(problems)} problems; change the study; nothing was run')


if __name__ == '__main__':
    from launch import common

    common.run(main)
