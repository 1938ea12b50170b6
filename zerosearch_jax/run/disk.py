"""Space on the disk of a run: whether it will be enough, and one line where it was not."""

import contextlib
import errno
import pathlib
import shutil
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SAID = ('No space left on device', 'Disk quota exceeded')  # by libraries that have no errno


class DiskFull(OSError):
    """A disk has no room for what a run writes; the message says where, and what is needed."""


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
def told_when_full(directory: pathlib.Path, needed: int = 0, what: str = '') -> Iterator[None]:
    """Turns whatever a full disk raises into DiskFull: which disk, what is free and, where known, what was needed."""
    try:
        yield
    except Exception as error:
        causes = list(_causes(error))
        if told := next((str(cause) for cause in causes if isinstance(cause, DiskFull)), ''):
            raise DiskFull(told) from error
        if not any(_is_full(cause) for cause in causes):
            raise
        file = next((cause.filename for cause in causes if getattr(cause, 'filename', None)), directory)
        wants = f', and {what} takes {shown(needed)}' if needed else ''
        raise DiskFull(
            f'{file}: no space left on this disk ({shown(shutil.disk_usage(directory).free)} are free{wants}); '
            'free some and run the same command again'
        ) from error


def _is_full(error: BaseException) -> bool:
    return getattr(error, 'errno', None) in _FULL or any(text in str(error) for text in _FULL_SAID)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def shown(count: float) -> str:
    """Bytes for people: '1.5 GiB'."""
    unit = next((i for i in (3, 2, 1) if count >= 1024**i), 0)
    return f'{count / 1024**unit:.{1 if unit else 0}f} {("bytes", "KiB", "MiB", "GiB")[unit]}'
