"""Calls to the outside, a search API or a served model: made by one process, known to all, and never made twice.

Process 0 calls; every result is appended to a journal as soon as it is there, then sent to all processes. A run that
was interrupted, or is run again, takes from the journal what it asked before.
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
    """JSON values by key, the same on all processes, and in a file if one is given, which several jobs may share.

    Args:
      path: JSON lines {"key": ..., "value": ...}, read if there; ''  or None: remembered by this object only.

    Raises:
      ValueError: the file is something else.
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
        """The value, None if there is none."""
        return self._known.get(key)

    def put(self, key: str, value: Any):
        """Remembers a value; process 0 appends it to the file at once."""
        with self._lock:  # lines of several threads stay whole
            self._known[key] = value
            if self._path and jax.process_index() == 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self._path, 'a') as file:
                    file.write(json.dumps({'key': key, 'value': value}) + '\n')

    def defer(self, key: str, value: Any):
        """Remembers a failure; it is in the file once its step is done: a step that is begun anew asks again."""
        self._known[key] = value
        self._deferred.append(key)

    def commit(self):
        """The step is done: a run that is resumed sees the failures that it saw."""
        deferred, self._deferred = self._deferred, []
        for key in deferred:
            self.put(key, self._known[key])


def call_once(
    journal: Journal, keys: Sequence[str], ask: Callable[[list[int]], Iterator[tuple[int, Any, bool]]]
) -> list[Any]:
    """The value of every key, in order, on all processes; those that it lacks are asked for on process 0.

    Args:
      journal: what is known.
      keys: what identifies each result; equal keys get one result.
      ask: is given the positions of the keys that are not known; yields (position, JSON value, whether to keep it) in
        any order. A value that is not kept, a failure say, is asked for again the next time.

    Raises:
      what `ask` raises on process 0, and OSError with its message on all others; what came before is kept.
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
    """What `call` returns, anything that JSON holds, on all processes; process 0 makes the call, the others wait.

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
    """Process 0's value and what went wrong there: the error itself, on the others an OSError with its message."""
    value, failed = sharding.from_first_process((value, problem and f'process 0: {problem}'))
    return value, (problem or OSError(failed)) if failed else None


@contextlib.contextmanager
def _locked(path: pathlib.Path, mode: str) -> Iterator[IO[str]]:
    """The file, which no other process reads, appends to or repairs meanwhile, where its file system has locks."""
    with open(path, mode, encoding='utf-8') as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of every line; a last line that a crash tore is cut off, so that the next one begins anew."""
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
