"""Progress bars: tqdm on a terminal, nothing elsewhere (plain lines per step are printed instead)."""

from __future__ import annotations

import sys

_muted = False


def mute():
    """Says nothing from now on: of several processes one alone talks to people."""
    global _muted
    _muted = True


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


def say(line: str):
    """One line for people, kept apart from a running bar."""
    from tqdm import tqdm

    if not _muted:
        tqdm.write(line, file=sys.stderr)
