"""Writes a run as one HTML file: curves and trajectories, to be opened from disk in any browser.

  python -m launch.view runs/quickstart
  python -m launch.view runs/eval

The directory is the --workdir of a training or of an evaluation, under way or done. See docs/viewer.md.
"""

import pathlib

from absl import app, flags

_STEP = flags.DEFINE_integer('step', None, 'The last step that is shown; default: all that are there.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.tools import view

        if len(argv) != 2:
            raise ValueError('which run? give its directory, for example runs/quickstart')
        print(view.write(pathlib.Path(argv[1]), _STEP.value))


if __name__ == '__main__':
    app.run(main)
