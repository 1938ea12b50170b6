"""Pools runs of one experiment over their seeds: what training gained, with its interval.

python -m launch.report runs/seed_0 runs/seed_1 runs/seed_2
"""

import json
import pathlib

from absl import app


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.evaluate import report

        if len(argv) < 2:
            raise ValueError('which runs? give their directories')
        print(json.dumps(report.pool([pathlib.Path(directory) for directory in argv[1:]]), indent=2))


if __name__ == '__main__':
    app.run(main)
