"""Exports trained weights for other programs: an adapter as a `peft` directory, or merged into its base model.

  python -m launch.export runs/quickstart exported
  python -m launch.export runs/quickstart exported --merge
  python -m launch.export runs/quickstart exported --step=3

The first argument is a run's directory, under way or done, or its last_good/, its adapter.safetensors or model/, an
adapter of `peft`, or the name of a shipped adapter. The second receives weights, tokenizer, chat template, stop strings
and a model card with what the run measured; serving it: docs/export.md.
"""

import pathlib

from absl import app, flags

_BASE = flags.DEFINE_string('base', '', 'The model that an adapter was trained on; default: what the adapter says.')
_MERGE = flags.DEFINE_bool('merge', False, 'Writes the whole model.')
_STEP = flags.DEFINE_integer('step', None, "Of a run's directory, the checkpoint; default: its end, or the newest.")
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', ['float32', 'bfloat16'], 'Of a whole model.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        common.quiet()
        from zerosearch_jax.tools import export

        if len(argv) != 3:
            raise ValueError('which run, and where to? for example: runs/quickstart exported')
        options = {'base': _BASE.value, 'merge': _MERGE.value, 'dtype': _DTYPE.value, 'step': _STEP.value}
        export.export(argv[1], pathlib.Path(argv[2]), **options)
        print(argv[2])


if __name__ == '__main__':
    app.run(main)
