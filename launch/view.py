"""Writes a run as one HTML file with curves and trajectories, which any browser can open.

  python -m launch.view runs/quickstart
  python -m launch.view runs/eval

The directory is the --workdir of a training or of an evaluation, running or finished. With further directories the
page also shows their curves. See docs/run.md.
"""

import pathlib

from absl import app, flags

_STEP = flags.DEFINE_integer('step', None, 'The last step that is shown; default: all steps.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.tools import view

        if len(argv) < 2:
            raise ValueError('which run? give its directory, for example runs/quickstart')
        run, *others = map(pathlib.Path, argv[1:])
        print(view.write(run, _STEP.value, others))


if __name__ == '__main__':
    app.run(main)
