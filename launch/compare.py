"""Puts two evaluations side by side: the average scores of each method, and the difference, paired by question.

python -m launch.compare runs/eval_before runs/eval_after
"""

import pathlib

from absl import app


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.evaluate import tables

        if len(argv) != 3:
            raise ValueError('which two? give the --workdir of two evaluations')
        print(tables.compare(*map(pathlib.Path, argv[1:])))


if __name__ == '__main__':
    app.run(main)
