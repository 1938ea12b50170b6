"""Questions as a TFDS data set: array_record files with a schema and O(1) random access, without TensorFlow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zerosearch_jax.data import rows


def build(splits: Mapping[str, Sequence[rows.Question]], directory: str) -> str:
    """Writes questions by split under `directory`, in their order; returns the directory to load from.

    Raises ValueError if there is a data set already (TFDS would keep it) or JSON cannot hold the metadata.
    """
    import tensorflow_datasets as tfds

    text = tfds.features.Text

    class ZerosearchQa(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.0.0')
        code_path = None  # There are no checksums beside this file; looking for them needs importlib_resources.

        def _info(self):
            features = {
                'id': text(),
                'question': text(),
                'golden_answers': tfds.features.Sequence(text()),
                'dataset': text(),
                'metadata': text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description='Questions with accepted answers; metadata is JSON.',
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for index, question in enumerate(splits[split]):
                yield index, _example(question)

    builder = ZerosearchQa(data_dir=directory, file_format='array_record')
    if (Path(builder.data_path) / 'dataset_info.json').exists():
        raise ValueError(f'{builder.data_path} already holds a data set; remove it or give a new directory')
    builder.download_and_prepare()
    return str(builder.data_path)


def load(directory: str, split: str = 'train') -> list[rows.Question]:
    """Reads a split (or a slice, `train[:10%]`) of the directory that `build` returned, or of its `directory`.

    Raises FileNotFoundError if there is no data set, ValueError if it has no such split or `build` did not write it.
    """
    import tensorflow_datasets as tfds

    infos = sorted(Path(directory).glob('**/dataset_info.json'))
    if len(infos) != 1:
        problem = 'no TFDS data set' if not infos else f'{len(infos)} TFDS data sets'
        raise FileNotFoundError(f'{directory} holds {problem}; give a folder that data.tfds.build returned')
    try:
        builder = tfds.builder_from_directory(infos[0].parent)
    except Exception as error:  # TFDS documents no exceptions, and their text does not name the file
        raise ValueError(f'{infos[0]} cannot be read ({error}); make it again: launch.to_tfds') from error
    if split.split('[')[0] not in builder.info.splits:
        raise ValueError(f'{directory} has no split {split!r}; it has {sorted(builder.info.splits)}')
    if missing := {'id', 'question', 'golden_answers', 'dataset', 'metadata'} - set(builder.info.features):
        raise ValueError(f'{directory} has no feature {min(missing)!r}; make it with launch.to_tfds')
    return [_question(example) for example in builder.as_data_source(split)]


def _example(question: rows.Question) -> dict:
    try:
        metadata = json.dumps(question.metadata, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f'the metadata of question {question.id!r} is not JSON: {error}') from error
    return {
        'id': question.id,
        'question': question.question,
        'golden_answers': list(question.golden_answers),
        'dataset': question.dataset,
        'metadata': metadata,
    }


def _question(example: dict) -> rows.Question:
    """TFDS returns text as bytes."""
    return rows.Question(
        id=example['id'].decode(),
        question=example['question'].decode(),
        golden_answers=tuple(answer.decode() for answer in example['golden_answers']),
        dataset=example['dataset'].decode(),
        metadata=json.loads(example['metadata']),
    )
