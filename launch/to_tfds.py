"""Turns a question set into a TFDS data set: array_record files with O(1) random access, read without TensorFlow.

  python -m launch.to_tfds hotpotqa data/hotpotqa --splits=train,test
  python -m launch.train --config configs/quickstart.py --config.data.train=tfds:data/hotpotqa

The first argument is a name (data/benchmarks.py) or a source (data/sources.py), the second a new directory.
"""

from absl import app, flags

_SPLITS = flags.DEFINE_list('splits', ['train'], 'Splits of the source to write.')


def main(argv):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.data import sources, tfds

        if len(argv) != 3:
            raise ValueError('which questions, and where to? for example: world data/world')
        questions = {split: sources.load_questions(argv[1], split) for split in _SPLITS.value}
        print(tfds.build(questions, argv[2]))


if __name__ == '__main__':
    app.run(main)
