"""Asks a policy questions and prints its thoughts, searches and answers while they are decoded.

  python -m launch.ask "What is the capital of the country where Lyon is?"
  python -m launch.ask runs/quickstart "..." "..."
  python -m launch.ask runs/quickstart --step=3 "..."
  python -m launch.ask --checkpoint runs/quickstart --json < questions.txt > answers.jsonl

Without arguments, questions are read from stdin, one on each line. --checkpoint, or a directory before the questions,
is the directory of a run (running or finished), weights that it exported, or a directory that launch.export wrote; the
default is config.policy. The search engine is config.engine or, with --config.evaluation.simulated, config.simulator.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

_DEFAULT = str(pathlib.Path(__file__).parents[1] / 'configs' / 'ask.py')
_CONFIG = config_flags.DEFINE_config_file('config', _DEFAULT, 'Models, engine and budgets.', lock_config=True)
_CHECKPOINT = flags.DEFINE_string('checkpoint', '', 'Trained weights: a directory, a file or a shipped name.')
_BASE = flags.DEFINE_string('base', '', 'Model that an adapter belongs to; default: the one that it names.')
_STEP = flags.DEFINE_integer('step', None, "Which checkpoint of a run's directory; default: its end, or the newest.")
_JSON = flags.DEFINE_bool('json', False, 'Prints one JSON object for every question, and nothing else.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.evaluate import evaluation
        from zerosearch_jax.tools import ask

        cfg = evaluation.parse(_CONFIG.value, common.given())
        common.set_up_jax()
        run, questions = ask.split_arguments(_CHECKPOINT.value, argv[1:])
        asker = ask.Asker(cfg, run, _BASE.value, _STEP.value, common.given())
        ask.answer_all(asker, questions or ask.read_lines(), as_json=_JSON.value)


if __name__ == '__main__':
    from launch import common

    common.run(main, arguments=True)
