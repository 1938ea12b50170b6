"""The results.jsonl of an evaluation: one row for each question of a method with its weights, and what is missing."""

import pathlib
from collections.abc import Mapping, Sequence

from zerosearch_jax import progress
from zerosearch_jax.data.rows import Question
from zerosearch_jax.run import jsonl
from zerosearch_jax.search.journal import on_first_process


def missing(
    weights: Mapping[str, str], path: pathlib.Path, questions: Mapping[str, Sequence[Question]]
) -> dict[str, dict[str, list[Question]]]:
    """{method: {data set: questions without a result}}; questions whose search failed are asked again."""
    answered = on_first_process(lambda: [_key(row) for row in latest(path) if row['status'] != 'search_failed'])
    finished = set(map(tuple, answered))
    found: dict[str, dict[str, list[Question]]] = {}
    for method, marked in weights.items():
        if not marked:
            progress.log(f'{method}: not run; config.trained.{method} names no weights')
            continue
        for name, each in questions.items():
            left = [q for q in each if (method, marked, name, q.id) not in finished]
            if left:
                found.setdefault(method, {})[name] = left
    return found


def latest(path: pathlib.Path) -> list[dict]:
    """The last row of each question, which alone stays in the file: a failed one, until it is followed by another."""
    written, kept = jsonl.recover_jsonl(path), {}
    for row in written:
        kept.pop(_key(row), None)  # tables.read_results takes the order for that of the evaluations
        kept[_key(row)] = row
    if len(kept) < len(written):
        jsonl.write_jsonl(path, kept.values())
    return [*kept.values()]


def _key(row: dict) -> tuple[str, str, str, str]:
    return row['method'], row['weights'], row['dataset'], row['id']
