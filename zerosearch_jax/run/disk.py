"""The disk of a run: atomic replacement of files, a check of the free space, and one line if the disk is full."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterator
from typing import IO

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SAID = ('No space left on device', 'Disk quota exceeded')  # texts of libraries that give no errno


class DiskFull(OSError):
    """A disk has no room for a run's files; the message says where, and how much is needed."""


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` when all of it is on disk: a crash leaves the old or the new file.

    Several processes may do this at once, for example the parts of a study: the last one to end wins.
    """
    partial = path.with_name(f'.{path.name}.{socket.gethostname()}.{os.getpid()}.partial')
    try:
        with open(partial, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str):
    """Writes a whole file atomically, as `replaced` does."""
    with replaced(path) as file:
        file.write(text.encode())


def require(directory: pathlib.Path, needed: int, what: str) -> str:
    """One line about the disk of `directory`, on which `what` will take `needed` more bytes.

    Raises:
      DiskFull: that much is not free.
    """
    free = shutil.disk_usage(directory).free
    line = f'{what} in {directory} will take up to {shown(needed)}; {shown(free)} are free'
    if needed > free:
        raise DiskFull(f'{line}: free some space, choose another --workdir, or keep fewer checkpoints')
    return line


@contextlib.contextmanager
def explain_full_disk(directory: pathlib.Path, needed: int = 0, what: str = '') -> Iterator[None]:
    """Turns any error of a full disk into DiskFull: which disk, how much is free and, if known, how much is needed."""
    try:
        yield
    except Exception as error:
        met = list(causes(error))
        if told := next((str(cause) for cause in met if isinstance(cause, DiskFull)), ''):
            raise DiskFull(told) from error
        if not any(_is_full(cause) for cause in met):
            raise
        file = next((cause.filename for cause in met if getattr(cause, 'filename', None)), directory)
        wants = f', and {what} takes {shown(needed)}' if needed else ''
        raise DiskFull(
            f'{file}: no space left on this disk ({shown(shutil.disk_usage(directory).free)} are free{wants}); '
            'free some and run the same command again'
        ) from error


def _is_full(error: BaseException) -> bool:
    return getattr(error, 'errno', None) in _FULL or any(text in str(error) for text in _FULL_SAID)


def error_number(text: str) -> int:
    """The number of an operating system's error in a library's message; 0 if there is none."""
    found = re.search(r'\[OS error (\d+): ', text)
    return int(found[1]) if found else 0


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause or context, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def shown(count: float) -> str:
    """Bytes as text: '1.5 GiB'."""
    unit = next((i for i in (3, 2, 1) if count >= 1024**i), 0)
    return f'{count / 1024**unit:.{1 if unit else 0}f} {("bytes", "KiB", "MiB", "GiB")[unit]}'
