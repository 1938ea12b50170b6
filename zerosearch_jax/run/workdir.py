"""The directory of a run: it belongs to one configuration, and one job at a time writes into it."""

import contextlib
import fcntl
import os
import socket
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import jax

from zerosearch_jax import progress, settings
from zerosearch_jax.run import disk
from zerosearch_jax.search.journal import on_first_process


@contextlib.contextmanager
def claim(
    workdir: Path,
    schema: type,
    config_json: str,
    results: Sequence[str] = ('metrics.jsonl', 'evaluation'),
    free: Iterable[str] = settings.MAY_CHANGE,
    prepare: Callable[[Sequence[str]], None] = lambda changed: None,
) -> Iterator[list[str]]:
    """Claims `workdir` for the job with this configuration, a `schema`, while it is entered.

    A run without any of its `results`, for example because its data was not found, does not claim the directory from
    jobs of its own kind. A job of another kind, known by the sections of its configuration, is always refused. Fields
    in `free` (sections or dotted names) may differ: the change is printed, and then saved as the run's configuration.
    `prepare` gets their names on process 0 before that, so that a start after a crash sees the change again.

    Yields:
      the dotted names of the fields that differ from those of the run so far.

    Raises:
      BlockingIOError: another job writes into the directory.
      ValueError: the directory holds a run of another kind, or with another configuration.
      disk.DiskFull: the disk was full.
    """

    def take() -> list[str]:
        path = workdir / 'config.json'
        new = settings.parse_json(config_json)
        old = settings.read_json(path) if path.exists() else new
        if foreign := sorted(old.keys() - {*new, *typing.get_type_hints(schema)}):
            held = f'{workdir} holds a run of another kind: its config.json has {", ".join(foreign)}'
            raise ValueError(f'{held}; choose another --workdir')
        texts = (old, new) if any((workdir / name).exists() for name in results) else ({}, {})
        changes = settings.changes(*(settings.with_defaults(config, schema) for config in texts))
        if refused := [text for name, text in changes.items() if not settings.is_named(name, free)]:
            raise ValueError(
                f'{workdir} holds a run with another configuration: {"; ".join(refused)}; '
                'choose another --workdir, or delete it to start over'
            )
        if changes:
            progress.log(f'{workdir} continues with another configuration: {"; ".join(changes.values())}')
        prepare([*changes])
        disk.write_text(path, config_json)
        return [*changes]

    workdir.mkdir(parents=True, exist_ok=True)
    log = progress.kept(workdir / 'log.txt') if jax.process_index() == 0 else contextlib.nullcontext()
    with disk.explain_full_disk(workdir), _locked(workdir), log:
        yield on_first_process(take)


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Process 0 of a job holds a lock, which the kernel releases when the process ends in any way."""
    with contextlib.ExitStack() as stack:
        on_first_process(lambda: _lock(workdir, stack.enter_context(open(workdir / '.lock', 'a+', encoding='utf-8'))))
        yield


def _lock(workdir: Path, file: IO[str]):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or 'another process'
        raise BlockingIOError(
            f'{workdir} is in use by {holder}; wait for it, stop it, or choose another --workdir'
        ) from None
    except OSError:
        progress.log(f'{workdir}: its file system has no locks; start one job at a time in it')
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
