"""Compares two evaluations, or draws the curves of several trainings in one figure.

  python -m launch.compare runs/eval_before runs/eval_after
  python -m launch.compare runs/seed_0 runs/seed_1 runs/seed_2 --plot=curves.png

For evaluations it prints the average scores of each method and the difference, paired by question. For trainings,
running or finished, it prints the results of each and draws the figure.
"""

import pathlib

from absl import app, flags

_PLOT = flags.DEFINE_string('plot', 'comparison.png', 'The figure of several trainings.')
_PANELS = flags.DEFINE_list('panels', [], 'The titles of its panels; by default all.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.evaluate import report, tables

        places = [pathlib.Path(directory) for directory in argv[1:]]
        if len(places) < 2:
            raise ValueError('what to compare? give the --workdir of two evaluations, or of two or more trainings')
        if not any((place / 'results.jsonl').is_file() for place in places):
            print(report.overlay(places, pathlib.Path(_PLOT.value), _PANELS.value))
        elif len(places) == 2:
            print(tables.compare(*places))
        else:
            raise ValueError('only two evaluations can be compared; more directories must be trainings')


if __name__ == '__main__':
    app.run(main)
