"""JSON lines on disk: read, written atomically, appended, truncated; an incomplete last line is left out."""

import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zerosearch_jax import settings
from zerosearch_jax.run import disk
from zerosearch_jax.search.journal import on_first_process


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a JSON-lines file, without an incomplete last line, left by a crash.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line other than the last is not a JSON object.
    """
    return [row for _, row in _rows(Path(path))]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a whole JSON-lines file atomically: a crash leaves either nothing or all of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.replaced(path) as file:
        file.writelines(_line(row).encode() for row in rows)


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a JSON-lines file, made if missing; see `recover_jsonl`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8') as file:
        file.write(''.join(map(_line, rows)))


def recover_jsonl(path: str | Path) -> list[dict]:
    """The rows of a file that `append_jsonl` writes, if it is there; a last line that a crash tore is cut off."""
    if not Path(path).exists():
        return []
    rows = read_jsonl(path)
    write_jsonl(path, rows)
    return rows


def shared_jsonl(path: str | Path) -> list[dict]:
    """What `recover_jsonl` finds on process 0, on all processes.

    Raises:
      as on_first_process.
    """
    return on_first_process(functools.partial(recover_jsonl, path))


def _rows(path: Path) -> Iterable[tuple[bytes, dict]]:
    """(line without its end, parsed row) for each line; a last line that does not parse is left out."""
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):  # bytes: only a line feed ends a line
            try:
                row = settings.parse_json(line)
                if not isinstance(row, dict):
                    raise ValueError('not an object')
            except ValueError as error:
                if line.endswith(b'\n') and file.read(1):  # neither left by a crash nor still being written
                    raise ValueError(f'{path}:{number}: not a JSON object') from error
                return
            yield line.rstrip(b'\n'), row


def truncate_jsonl(path: Path, last_step: int) -> None:
    """Keeps the rows with step <= last_step; the file is replaced atomically, so a crash leaves the old or the new."""
    with disk.replaced(path) as file:
        for number, (line, row) in enumerate(_rows(path), 1):
            if type(row.get('step')) is not int:
                raise ValueError(f'{path}:{number}: a row without an integer step; move this file elsewhere')
            if row['step'] <= last_step:
                file.write(line + b'\n')


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(as_json(row), allow_nan=False) + '\n'


def as_json(value: Any) -> Any:
    """The value as JSON types: arrays and their scalars as lists and numbers, NaN and infinity as None."""
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
