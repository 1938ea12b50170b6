"""Asks a policy questions and shows how it thinks, searches and answers, as it does.

  python -m launch.ask "What is the capital of the country where Lyon is?"
  python -m launch.ask --checkpoint runs/quickstart "..." "..."
  python -m launch.ask --checkpoint runs/quickstart --json < questions.txt > answers.jsonl

Without arguments questions are read from stdin, one a line. --checkpoint is a run's directory, what it exported, or
what launch.export wrote; without it, config.policy is asked. The search engine is config.engine, or config.simulator
with --config.evaluation.simulated.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

_DEFAULT = str(pathlib.Path(__file__).parents[1] / 'configs' / 'ask.py')
_CONFIG = config_flags.DEFINE_config_file('config', _DEFAULT, 'Models, engine and budgets.', lock_config=True)
_CHECKPOINT = flags.DEFINE_string('checkpoint', '', 'Trained weights: a directory, a file or a shipped name.')
_BASE = flags.DEFINE_string('base', '', 'Model that an adapter belongs to; default: what the adapter says.')
_JSON = flags.DEFINE_bool('json', False, 'Prints one JSON object for every question, and nothing else.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.evaluate import evaluation
        from zerosearch_jax.tools import ask

        cfg = evaluation.parse(_CONFIG.value)
        common.set_up_jax()
        asker = ask.Asker(cfg, _CHECKPOINT.value, _BASE.value)
        ask.answer_all(asker, argv[1:] or ask.read_lines(), as_json=_JSON.value)


if __name__ == '__main__':
    from launch import common

    common.run(main, arguments=True)
