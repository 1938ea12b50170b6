"""Calls to a search API or a served model: one process makes them, all processes get the results, none is made twice.

Process 0 calls; every result is appended to a journal at once, and then sent to all processes. A run that was
interrupted, or is run again, takes earlier results from the journal.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import jax

from zerosearch_jax import settings, sharding


class Journal:
    """JSON values by key, the same on all processes, and in a file if one is given; several jobs may share the file.

    Args:
      path: file of JSON lines {"key": ..., "value": ...}, read if it exists; '' or None: values are in memory only.

    Raises:
      ValueError: the file has another content.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self._path = pathlib.Path(path) if path else None
        self._lock, self._deferred = threading.Lock(), []
        self._known: dict[str, Any] = on_first_process(self._read)

    def _read(self) -> dict[str, Any]:
        if not self._path or not self._path.exists():
            return {}
        with _locked(self._path, 'r'):
            return dict(_rows(self._path))

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        return self._known.get(key)

    def put(self, key: str, value: Any):
        """Stores a value; process 0 appends it to the file at once."""
        with self._lock:  # lines of several threads stay whole
            self._known[key] = value
            if self._path and jax.process_index() == 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self._path, 'a') as file:
                    file.write(json.dumps({'key': key, 'value': value}) + '\n')

    def defer(self, key: str, value: Any):
        """Stores a failure in memory, and in the file when the step is done: a step that starts again asks again."""
        self._known[key] = value
        self._deferred.append(key)

    def commit(self):
        """Writes the failures of a step that is done: a resumed run then sees the same failures."""
        deferred, self._deferred = self._deferred, []
        for key in deferred:
            self.put(key, self._known[key])


def call_once(
    journal: Journal, keys: Sequence[str], ask: Callable[[list[int]], Iterator[tuple[int, Any, bool]]]
) -> list[Any]:
    """The value of every key, in order, on all processes; process 0 asks for those that are not in the journal.

    Args:
      journal: of known values.
      keys: what identifies each result; equal keys get one result.
      ask: takes the positions of the unknown keys and yields (position, JSON value, whether to keep it) in any order.
        A value that is not kept, for example a failure, is asked for again the next time.

    Raises:
      what `ask` raises on process 0, and OSError with its message on all others; earlier values are kept.
    """
    positions = {key: i for i, key in reversed(list(enumerate(keys))) if journal.get(key) is None}
    fresh: dict[str, tuple[Any, bool]] = {}
    problem: Exception | None = None
    if positions and jax.process_index() == 0:
        try:
            for position, value, keep in ask(sorted(positions.values())):
                fresh[keys[position]] = value, keep
                if keep:
                    journal.put(keys[position], value)
        except Exception as error:  # the other processes wait for the results: they have to know
            problem = error
    fresh, problem = _known_to_all(fresh, problem)
    for key, (value, keep) in fresh.items():
        if keep and journal.get(key) is None:
            journal.put(key, value)
    if problem:
        raise problem
    return [fresh[key][0] if key in fresh else journal.get(key) for key in keys]


def on_first_process(call: Callable[[], Any]) -> Any:
    """The JSON value that `call` returns, on all processes; process 0 makes the call, the others wait.

    Raises:
      what `call` raises on process 0, and OSError with its message on all others.
    """
    value, problem = None, None
    if jax.process_index() == 0:
        try:
            value = call()
        except Exception as error:  # the other processes wait for the value: they have to know
            problem = error
    value, problem = _known_to_all(value, problem)
    if problem:
        raise problem
    return value


def _known_to_all(value: Any, problem: Exception | None) -> tuple[Any, Exception | None]:
    """Process 0's value and its error, if any; on other processes the error is an OSError with its message."""
    value, failed = sharding.from_first_process((value, problem and f'process 0: {problem}'))
    return value, (problem or OSError(failed)) if failed else None


@contextlib.contextmanager
def _locked(path: pathlib.Path, mode: str) -> Iterator[IO[str]]:
    """Opens the file with a lock, if its file system has locks: no other process then reads, appends or repairs."""
    with open(path, mode, encoding='utf-8') as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of every line; an incomplete last line, left by a crash, is removed from the file."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = settings.parse_json(line)
            yield row['key'], row['value']
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f'{path}:{number}: not a line of this log; move the file elsewhere') from error
            os.truncate(path, path.stat().st_size - len(line))
            return
    if lines and not lines[-1].endswith(b'\n'):
        with open(path, 'a', encoding='utf-8') as file:
            file.write('\n')
