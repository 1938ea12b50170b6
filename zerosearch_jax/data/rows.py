"""Questions and passages as rows: their types, how JSONL and parquet are read, and the order in which rows are used.

Which rows a training step sees depends on (seed, cursor) alone: `item_indices` maps a global cursor to rows, so that
one integer is enough to resume exactly.
"""

import dataclasses
import functools
import gzip
import hashlib
import math
import os
import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from zerosearch_jax import progress, settings
from zerosearch_jax.data import benchmarks

BUILT_IN = ('world', 'toy', 'toy_chains', 'toy_chains_told')
Choice = Literal['skip', 'refuse']  # what to do with a question that cannot be used
FOLDS = 10  # a question without a fold gets one by a hash of its id
_FORMATS = ('.jsonl', '.jsonl.gz', '.parquet')
_OWN_FIELDS = ('id', '_id', 'question', 'golden_answers', 'dataset', 'data_source', 'metadata')


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its accepted answers (at least one), and the other fields of its row (`metadata`)."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    dataset: str = ''
    metadata: dict = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True)
class Passage:
    """A document of the corpus. `title` may be empty, `text` is not."""

    id: str
    title: str
    text: str


class Unusable(ValueError):
    """A question whose answers cannot be scored, or whose prompt is too long; the message says which and why."""


def usable(items: Iterable, read: Callable, choice: Choice, why: str) -> Iterator:
    """`read(item)` of each item; Unusable ones are refused, or left out and counted in the log, as `choice` says."""
    count, first = 0, None
    for item in items:
        try:
            made = read(item)
        except Unusable as error:
            if choice == 'refuse':
                raise
            count, first = count + 1, first or error
        else:
            yield made
    if count:
        progress.log(f'{why}: {count} left out, the first of them {first}')


def normalize_answer(text: str) -> str:
    """SQuAD normalization: lower case, no ASCII punctuation, no English articles, single spaces; in Unicode's NFC.

    An accent can be part of its letter (NFC) or a character after it (NFD); after NFC both are equal.
    """
    text = ''.join(c for c in unicodedata.normalize('NFC', text.lower()) if c not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def holds_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether a text contains one of the answers, word for word after normalization."""
    padded = f' {normalize_answer(text)} '
    return any(f' {normalize_answer(answer)} ' in padded for answer in answers)


@functools.lru_cache(maxsize=8)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n), [n] int64 and read-only; a function of (seed, epoch) alone, both non-negative."""
    if min(n, seed, epoch) < 0:
        raise ValueError(f'n, seed and epoch must not be negative, got {n}, {seed}, {epoch}')
    # NumPy guarantees the same raw bits in every version, but not the same Generator.permutation.
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n)
    permutation = np.argsort(bits, kind='stable')
    permutation.flags.writeable = False
    return permutation


def item_indices(n: int, seed: int, start: int, count: int) -> list[tuple[int, int]]:
    """(epoch, row) of the `count` items from global cursor `start`, with n rows that are shuffled in every epoch."""
    if n < 1 or start < 0 or count < 0:
        raise ValueError(f'need n >= 1, start >= 0 and count >= 0, got {n}, {start}, {count}')
    cursors = (divmod(cursor, n) for cursor in range(start, start + count))
    return [(epoch, int(permutation(n, seed, epoch)[position])) for epoch, position in cursors]


def subset(questions: Sequence[Question], n: int, salt: str = '') -> list[Question]:
    """The n questions (or all, if fewer) with the lowest sha256(salt + id), in that order.

    Reordering the rows changes nothing, and an added row displaces at most one.
    """
    if n < 0:
        raise ValueError(f'the size of a subset must not be negative, got {n}')
    return sorted(questions, key=lambda q: hashlib.sha256((salt + q.id).encode()).digest())[:n]


def whole_batches(sets: Mapping[str, list[Question]], size: int) -> dict[str, list[Question]]:
    """The questions of the data sets, in order, without those beyond the last whole batch of `size`."""
    left, kept = sum(map(len, sets.values())) // size * size, {}
    if not left:
        raise ValueError(f'config.evaluation.whole_batches_of = {size}: there are fewer questions')
    for name, questions in sets.items():
        kept[name], left = questions[:left], max(left - len(questions), 0)
    return {name: questions for name, questions in kept.items() if questions}


def in_folds(questions: Iterable[Question], folds: Sequence[int]) -> list[Question]:
    """The questions of these folds, or all if (); a question's fold, from 0 to FOLDS - 1, is a hash of its id."""
    return [q for q in questions if not folds or zlib.crc32(q.id.encode()) % FOLDS in folds]


def find_file(path: str) -> Path:
    """The existing path: as given or, if there is none, under ZEROSEARCH_DATA."""
    root = os.environ.get('ZEROSEARCH_DATA')
    for candidate in (Path(path), *([Path(root) / path] if root else [])):
        if candidate.exists():
            return candidate
    hint = f'nor under ZEROSEARCH_DATA={root}' if root else 'and ZEROSEARCH_DATA is not set'
    raise FileNotFoundError(f'{path} is not here {hint}; give a path that exists or set ZEROSEARCH_DATA')


def require_source(source: str):
    """Raises ValueError or FileNotFoundError if a source is unknown or its file is missing; asks no hub."""
    if source in BUILT_IN or source.startswith('hub:'):
        return
    if not source.endswith(_FORMATS):
        names = ', '.join(map(repr, (*BUILT_IN, *benchmarks.DATASETS)))
        raise ValueError(f"{source}: unknown source; use a path ending in {', '.join(_FORMATS)}, 'hub:'… or {names}")
    if (path := find_file(source)).is_dir():
        raise ValueError(f'{path} is a directory; give one of the files in it')


def _open_rows(source: str, split: str) -> tuple[str, str, Iterable]:
    """(name for messages, stem for ids, rows) of a file or hub data set; a row is bytes (of JSON) or a dict."""
    if source.startswith('hub:'):
        return source, source.split('/')[-1], _hub_rows(source.removeprefix('hub:'), split)
    require_source(source)
    path = find_file(source)
    stem = path.name.removesuffix('.gz').rsplit('.', 1)[0]
    return str(path), stem, _parquet_rows(path) if source.endswith('.parquet') else _json_lines(path)


def _json_lines(path: Path) -> Iterator[bytes]:
    try:
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f'{path} is not a whole gzip file ({error}); fetch it again') from error


def _parquet_rows(path: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: the text is not UTF-8
        raise ValueError(f'{path} is not a readable parquet file ({_line(error)}); fetch it again') from error


def _hub_rows(name: str, split: str) -> Iterable[dict]:
    import datasets

    name, _, config = name.partition(':')
    try:
        return datasets.load_dataset(name, config or None, split=split)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise FileNotFoundError(f'hub:{name} is not available ({_line(error)}); check name and network') from error
    except ValueError as error:
        raise ValueError(f'hub:{name}: {_line(error)}') from error


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())


def read_rows(source: str, split: str) -> Iterator[tuple[dict, str, str]]:
    """(row, 'file:line', 'stem-line') of every row that is not blank, at least one; lines are counted from 1."""
    name, stem, rows = _open_rows(source, split)
    empty = True
    for line, row in enumerate(rows, start=1):
        where = f'{name}:{line}'
        if isinstance(row, bytes):
            if not row.strip():
                continue
            try:
                row = settings.parse_json(row.decode('utf-8-sig'))
            except ValueError as error:
                raise ValueError(f'{where}: not JSON ({error}); expected one object per line') from error
        if not isinstance(row, dict):
            raise ValueError(f'{where}: found {type(row).__name__}, expected an object; write one object per line')
        empty = False
        yield row, where, f'{stem}-{line}'
    if empty:
        raise ValueError(f'{name} holds no rows')


def check_unique(items: Iterable[tuple]) -> list:
    """The items of (place, item) pairs; raises ValueError if two have the same id."""
    first: dict[str, str] = {}
    found = []
    for where, item in items:
        if item.id in first:
            raise ValueError(f'{where}: the id {item.id!r} was used at {first[item.id]}; ids must be unique')
        first[item.id] = where
        found.append(item)
    return found


def require_text(value, field: str, where: str) -> str:
    """The value of a row's field, which must be text; raises ValueError that starts with `where`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{where}: {field!r} is {_short(value)}, expected text')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can contain half of a surrogate pair, which no tokenizer accepts.
        raise ValueError(f'{where}: {field!r} is not valid Unicode ({error.reason})') from error
    return value


def _short(value) -> str:
    text = 'missing' if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + '...'


def as_text(value):
    """A number as text, a whole number without the '.0' that pandas adds; any other value unchanged.

    True is not converted, since it may or may not mean 'yes'; neither is NaN, which is a missing value in pandas.
    """
    if type(value) is float and math.isfinite(value):
        return str(int(value) if value.is_integer() else value)
    return str(value) if type(value) is int else value


def row_id(row: dict, where: str, default: str) -> str:
    """The id of a row, from its field `id` or (in BEIR) `_id`; `default` if it has none."""
    field = 'id' if row.get('id') is not None else '_id'
    if row.get(field) is None:
        return default
    text = require_text(as_text(row[field]), field, where)
    # the merged files of Search-R1 and ZeroSearch keep the ids of their sets, and each set has a train_0
    origin = _optional_text(row, 'data_source', where)
    return f'{origin}_{text}' if origin else text


def _optional_text(row: dict, field: str, where: str) -> str:
    value = row.get(field)
    return require_text(as_text(value), field, where).strip() if value else ''


def _answers(row: dict, where: str) -> tuple[str, ...]:
    answers, field = row.get('golden_answers'), 'golden_answers'
    if answers is None:
        field = 'reward_model.ground_truth.target'
        answers = row.get('reward_model')
        for key in ('ground_truth', 'target'):
            answers = answers.get(key) if isinstance(answers, dict) else None
        if answers is None:
            field = 'golden_answers'
    if not isinstance(answers, list):
        raise ValueError(f'{where}: {field!r} is {_short(answers)}, expected a list of answers')
    texts = [*map(as_text, answers)]  # a year or a number is an answer too
    if not all(isinstance(a, str) for a in texts):
        raise ValueError(f'{where}: {field!r} is {_short(answers)}, expected a list of answers, each a text')
    kept = dict.fromkeys(require_text(a.strip(), field, where) for a in texts if normalize_answer(a))
    if not kept:
        raise Unusable(f'{where}: {field!r} is {_short(answers)}, expected more than punctuation and articles')
    return tuple(kept)


def as_question(row: dict, where: str, default_id: str) -> Question:
    """A row as a question; raises Unusable if none of its answers can be scored."""
    extra = {key: value for key, value in row.items() if key not in _OWN_FIELDS}
    nested = row.get('metadata')
    if isinstance(nested, dict):
        extra = {**nested, **extra}
    elif nested is not None:
        extra['metadata'] = nested
    return Question(
        id=row_id(row, where, default_id),
        question=require_text(row.get('question'), 'question', where).strip(),
        golden_answers=_answers(row, where),
        dataset=_optional_text(row, 'dataset', where) or _optional_text(row, 'data_source', where),
        metadata=extra,
    )


def split_title(contents: str) -> tuple[str, str]:
    """The title and the text of a passage in Search-R1's format: a title in quotation marks, a line feed, the text.

    A single line is a text without a title.
    """
    title, feed, text = contents.partition('\n')
    if not feed:
        return '', contents
    return title.strip().removeprefix('"').removesuffix('"'), text


def as_passage(row: dict, where: str, default_id: str) -> Passage:
    """A row as a passage."""
    title, text = _optional_text(row, 'title', where), row.get('text')
    if text is None and 'contents' in row:
        found, text = split_title(require_text(row['contents'], 'contents', where))
        title = title or found
    if text == '':  # BEIR has documents that are a title alone
        title, text = '', title
    return Passage(
        id=row_id(row, where, default_id),
        title=title,
        text=require_text(text, 'text', where).strip(),
    )
