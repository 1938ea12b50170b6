"""The disk of a run: files that are replaced at once, whether space will be enough, and one line where it was not."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import IO

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SAID = ('No space left on device', 'Disk quota exceeded')  # by libraries that have no errno


class DiskFull(OSError):
    """A disk has no room for what a run writes; the message says where, and what is needed."""


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A file to write; it takes the place of `path` once all of it is on disk: a crash leaves the old or the new."""
    partial = path.with_name(f'.{path.name}.partial')
    with open(partial, 'wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_text(path: pathlib.Path, text: str):
    """Writes a whole file at once, as `replaced` does."""
    with replaced(path) as file:
        file.write(text.encode())


def require(directory: pathlib.Path, needed: int, what: str) -> str:
    """One line about the disk of `directory`, which is to take `needed` more bytes of `what`.

    Raises:
      DiskFull: it has not that much.
    """
    free = shutil.disk_usage(directory).free
    line = f'{what} in {directory} will take up to {shown(needed)}; {shown(free)} are free'
    if needed > free:
        raise DiskFull(f'{line}: free some space, choose another --workdir, or keep fewer checkpoints')
    return line


@contextlib.contextmanager
def explain_full_disk(directory: pathlib.Path, needed: int = 0, what: str = '') -> Iterator[None]:
    """Turns whatever a full disk raises into DiskFull: which disk, what is free and, where known, what was needed."""
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
    """That of the operating system's error that a library tells in words, 0 if it tells none."""
    found = re.search(r'\[OS error (\d+): ', text)
    return int(found[1]) if found else 0


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from or while handling, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def shown(count: float) -> str:
    """Bytes for people: '1.5 GiB'."""
    unit = next((i for i in (3, 2, 1) if count >= 1024**i), 0)
    return f'{count / 1024**unit:.{1 if unit else 0}f} {("bytes", "KiB", "MiB", "GiB")[unit]}'
