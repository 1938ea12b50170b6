"""Loads questions and passages from a source: built in, a file, a data set of the hub, a directory of TFDS."""

import dataclasses

from zerosearch_jax.data import benchmarks, rows, tfds, toy, world
from zerosearch_jax.data.rows import Choice, Passage, Question


def load_questions(source: str, split: str = 'train', unscorable: Choice = 'skip') -> list[Question]:
    """Reads every question of a source, in its order.

    Args:
      source: a path ending in .jsonl, .jsonl.gz or .parquet (a file is one split, so `split` is ignored); a name of
        rows.BUILT_IN; the name of a set of data/benchmarks.py; `tfds:DIRECTORY` as written by `launch.to_tfds`; or
        `hub:owner/name` (`hub:owner/name:config`). Relative paths are tried as given, then under the directory that the
        environment variable ZEROSEARCH_DATA names.
      split: for built-in and named sets, `tfds:` (slices such as `train[:10%]` work there) and `hub:`.
      unscorable: what to do with rows whose answers cannot be scored. NQ and HotpotQA have a few: '---', 'The The'.

    Rows have `question` and `golden_answers` (a list), optionally `id` and `dataset` (or `data_source`). The parquet
    files of Search-R1 and ZeroSearch, with answers in `reward_model.ground_truth.target`, work too. Answers that are
    empty after normalization are dropped, since no prediction can be scored against them. A missing id becomes
    `{file stem}-{line}`.

    Raises:
      FileNotFoundError: no such file or directory.
      ValueError: an unknown source or split, no row that can be used, or a bad row; then the message starts with
        `file:line:`.
    """
    if source in rows.BUILT_IN:
        if split not in ('train', 'test'):
            raise ValueError(f"the built-in {source} has no split {split!r}; use 'train' or 'test'")
        return list(getattr(_built_in(source), split))
    if source.startswith('tfds:'):
        return tfds.load(str(rows.find_file(source.removeprefix('tfds:'))), split)
    if source in benchmarks.DATASETS:
        found = load_questions(*benchmarks.locate(source, split), unscorable)
        return [dataclasses.replace(q, dataset=q.dataset or source) for q in found]
    found, why = rows.read_rows(source, split), f'{source}: answers that cannot be scored'
    placed = rows.usable(found, lambda item: (item[1], rows.as_question(*item)), unscorable, why)
    questions = rows.check_unique(placed)
    if not questions:
        raise ValueError(f'{source}: none of its questions has an answer that can be scored')
    return questions


def check_corpus(source: str, corpus: str):
    """Raises ValueError if questions of another source are to be answered from a built-in corpus; reads nothing."""
    if corpus in rows.BUILT_IN and source != corpus:
        raise ValueError(
            f'the built-in corpus {corpus!r} does not answer the questions of {source!r}: set the field "corpus" of '
            'their section to passages that do, or config.engine.kind to an engine that needs none'
        )


def _built_in(name: str):
    builders = {'world': world.build, 'toy': toy.build, 'toy_chains': toy.build_chains}
    return builders[name]() if name in builders else toy.build_chains(told=True)


def load_passages(source: str) -> list[Passage]:
    """Reads a corpus, in its order, from any source of `load_questions` except `tfds:`.

    Rows have `text` and optionally `id` and `title`, or Search-R1's `contents` ('"Title"\\ntext').
    Raises as `load_questions` does.
    """
    if source in rows.BUILT_IN:
        return list(_built_in(source).passages)
    return rows.check_unique((item[1], rows.as_passage(*item)) for item in rows.read_rows(source, 'train'))
