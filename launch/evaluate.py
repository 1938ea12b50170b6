"""Evaluates methods on question sets with a real search engine: scores side by side, with intervals and cost.

  python -m launch.evaluate --config configs/eval.py
  python -m launch.evaluate --config configs/eval.py --config.evaluation.methods=direct,rag,agent \\
      --config.evaluation.datasets=nq,hotpotqa --config.evaluation.corpus=corpus.jsonl

Methods: direct, cot, rag, agent, search_o1, and, with config.trained, r1, search_r1, zerosearch. The same command goes
on where it was; with other methods, data sets or trained weights and the same --workdir they join its tables.
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
        from zerosearch_jax.evaluate import evaluation

        cfg = evaluation.parse(_CONFIG.value)
        common.set_up_jax()
        workdir = pathlib.Path(_WORKDIR.value or common.default_workdir())
        print(evaluation.evaluate(cfg, workdir, settings.to_json(_CONFIG.value)))


if __name__ == '__main__':
    from launch import common

    common.run(main)
