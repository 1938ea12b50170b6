"""Evaluates methods on question sets with a real search engine: scores side by side, with intervals and cost.

  python -m launch.evaluate --config configs/eval.py
  python -m launch.evaluate --config configs/eval.py --config.evaluation.methods=direct,rag,agent \\
      --config.evaluation.datasets=nq,hotpotqa --config.evaluation.corpus=corpus.jsonl
  python -m launch.evaluate --config configs/eval.py runs/quickstart --step=3

Methods: direct, cot, rag, agent, search_o1, and, with config.trained, r1, search_r1, zerosearch. A run (running or
finished) given as an argument is evaluated alone, as the method of config.trained that it was trained as. The same
command continues where the last one stopped; results of other methods, data sets or trained weights are added to the
tables of the same --workdir.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint of the runs in config.trained; default: end, or newest.')
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the results; default: runs/NAME_OF_THE_CONFIG.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax import settings
        from zerosearch_jax.evaluate import evaluation

        evaluation.name_run(_CONFIG.value, argv[1:], common.given())
        cfg = evaluation.parse(_CONFIG.value, common.given())
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or common.default_workdir())
        config_json = settings.to_json(_CONFIG.value)
        print(evaluation.evaluate(cfg, workdir, config_json, common.given(), _STEP.value))


if __name__ == '__main__':
    from launch import common

    common.run(main, arguments=True)
