"""Exports trained weights for other programs: an adapter as a `peft` directory, or merged into its base model.

  python -m launch.export runs/quickstart exported
  python -m launch.export runs/quickstart exported --merge
  python -m launch.export runs/quickstart exported --step=3
  HF_TOKEN=... python -m launch.export runs/quickstart exported --push OWNER/NAME

The first argument is the directory of a run (running or finished), its last_good/, adapter.safetensors or model/, an
adapter of `peft`, or the name of a shipped adapter. Weights, tokenizer, chat template, stop strings and a model card
with the run's results are written to the second. How to serve it: docs/export.md.
"""

import pathlib

from absl import app, flags

_BASE = flags.DEFINE_string('base', '', 'The model that an adapter was trained on; default: the one that it names.')
_MERGE = flags.DEFINE_bool('merge', False, 'Writes the whole model instead of the adapter.')
_STEP = flags.DEFINE_integer('step', None, "Which checkpoint of a run's directory; default: its end, or the newest.")
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', ['float32', 'bfloat16'], 'Type of the weights of a whole model.')

_PUSH = flags.DEFINE_string('push', '', 'OWNER/NAME on the hub: uploads the export; the key is in $HF_TOKEN.')
_DRY_RUN = flags.DEFINE_bool('dry-run', False, 'With --push: prints what would be uploaded, and sends nothing.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        common.quiet()
        from zerosearch_jax.tools import export, push

        if len(argv) != 3:
            raise ValueError('which run, and where to? for example: runs/quickstart exported')
        if _PUSH.value:
            push.check(_PUSH.value, _DRY_RUN.value)
        elif _DRY_RUN.value:
            raise ValueError('--dry-run shows an upload; add --push OWNER/NAME')
        options = {'base': _BASE.value, 'merge': _MERGE.value, 'dtype': _DTYPE.value, 'step': _STEP.value}
        export.export(argv[1], pathlib.Path(argv[2]), **options)
        print(argv[2])
        if _PUSH.value:
            print(push.push(pathlib.Path(argv[2]), _PUSH.value, _DRY_RUN.value))


if __name__ == '__main__':
    app.run(main)
