"""Turns a question set into a TFDS data set: array_record files with O(1) random access, read without TensorFlow.

  python -m launch.to_tfds hotpotqa data/hotpotqa --splits=train,test
  python -m launch.train --config configs/quickstart.py --config.data.train=tfds:data/hotpotqa

The first argument is a name (data/benchmarks.py) or a source (data/rows.py), the second a new directory.
"""

from absl import app, flags

_SPLITS = flags.DEFINE_list('splits', ['train'], 'Splits of the source to write.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.data import tfds

        if len(argv) != 3:
            raise ValueError('which questions, and where to? for example: world data/world')
        print(tfds.build(argv[1], argv[2], _SPLITS.value))


if __name__ == '__main__':
    app.run(main)
