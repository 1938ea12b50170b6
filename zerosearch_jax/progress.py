"""Progress bars: tqdm on a terminal, nothing elsewhere (plain lines per step are printed instead)."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar('T')

_muted = False
_log: pathlib.Path | None = None


def mute():
    """Prints nothing from now on: of several processes only the first one prints."""
    global _muted
    _muted = True


def enabled() -> bool:
    """Whether bars are shown."""
    return sys.stderr.isatty() and not _muted


def bar(total: int, description: str, unit: str = 'it', *, leave: bool = False, initial: int = 0):
    """A bar on stderr, hidden where stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        leave=leave,
        initial=initial,
        disable=_muted or None,
        dynamic_ncols=True,
    )


def track(items: Sequence[T], description: str, unit: str = 'it') -> Iterator[T]:
    """The items, with a bar."""
    with bar(len(items), description, unit) as made:
        for item in items:
            yield item
            made.update()


@contextlib.contextmanager
def kept(path: pathlib.Path) -> Iterator[None]:
    """Appends what is logged to a file, too, for as long as it is entered."""
    global _log
    before, _log = _log, path
    try:
        yield
    finally:
        _log = before


def log(line: str):
    """Prints one line on stderr, apart from a running bar."""
    from tqdm import tqdm

    if not _muted:
        tqdm.write(line, file=sys.stderr)
        if _log:
            with open(_log, 'a', encoding='utf-8', errors='replace') as file:
                file.write(f'{line}\n')
