"""Progress: bars on a terminal, plain lines elsewhere.

A long job has one bar for all of it (`job`): bars that are opened during a job are its phases.
"""

import contextlib
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar('T')

BAR = '{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}'
REDRAWN, REPEATED = 1.0, 10.0  # seconds between two drawings of a job's bar, and between two lines without a terminal

_muted = False
_log: pathlib.Path | None = None
_job: 'Job | None' = None


def mute():
    """Stops all printing: of several processes only the first one prints."""
    global _muted
    _muted = True


def enabled() -> bool:
    """Whether a bar may be shown: on a terminal, if no job has a bar."""
    return sys.stderr.isatty() and not _muted and not _job


def bar(total: int, description: str, unit: str = 'it', *, leave: bool = False, initial: int = 0, share: float = 0.0):
    """A bar on stderr, hidden if stderr is no terminal; during a job, its next phase, which is `share` of its work."""
    from tqdm import tqdm

    if _job:
        return Phase(_job, total, description, share)
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        leave=leave,
        initial=initial,
        disable=_muted or None,
        dynamic_ncols=True,
    )


def phase(name: str):
    """Names a phase of a job whose progress is not known."""
    if _job:
        _job.show(name)


@contextlib.contextmanager
def job(total: float, initial: float = 0.0) -> Iterator['Job']:
    """One bar for a whole job; the shares of its phases add up to `total`, of which `initial` is done already."""
    global _job
    _job = Job(total, initial)
    try:
        yield _job
    finally:
        _job.close()
        _job = None


class Job:
    """The bar of a whole job: its phase, the time left, the newest numbers.

    It is redrawn every second. If stderr is no terminal, a line is printed every ten seconds, and not logged to a file.
    """

    def __init__(self, total: float, initial: float):
        from tqdm import tqdm

        self._total, self._initial, self.done = total, initial, initial
        self._began: float | None = None  # when the first phase with a share began
        self._phase, self._figures, self._closed = 'starting', '', threading.Event()
        options = {'disable': _muted or None, 'bar_format': BAR, 'dynamic_ncols': True}
        self._bar = tqdm(desc=self._phase, total=total or 1, initial=initial, **options)
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    def show(self, phase: str = '', figures: str = ''):
        """Sets the phase and the numbers that are shown."""
        self._phase, self._figures = phase or self._phase, figures or self._figures
        self._draw()

    def begin(self):
        """Starts the clock: the first phase with a share of the work begins."""
        self._began = self._began or time.monotonic()

    def reach(self, done: float):
        """Sets how much of the total is done."""
        self._bar.n = self.done = min(done, self._total)

    def close(self):
        """Draws it for the last time."""
        self._closed.set()
        self._ticker.join()
        self._bar.close()

    def _left(self) -> str:
        done = self.done - self._initial
        if not self._began or not done:
            return ''
        seconds = (time.monotonic() - self._began) / done * (self._total - self.done)
        return f'about {seconds / 60:.0f} min left' if seconds > 90 else f'about {seconds:.0f} s left'

    def _draw(self):
        self._bar.set_description_str(self._phase, refresh=False)
        self._bar.set_postfix_str('  '.join(filter(None, (self._left(), self._figures))), refresh=False)
        self._bar.refresh()

    def _tick(self):
        while not self._closed.wait(REPEATED if self._bar.disable else REDRAWN):
            if not self._bar.disable:
                self._draw()
            elif not _muted:
                done = f'{self.done / (self._total or 1):.0%} done'
                print('  '.join(filter(None, (self._phase, done, self._left()))), file=sys.stderr, flush=True)


class Phase:
    """A phase of a job, with the parts of tqdm's interface that are used here."""

    disable = False

    def __init__(self, job: Job, total: int, name: str, share: float):
        self._job, self._name, self._total, self._count = job, name, total, 0
        self._before, self._share = job.done, share
        if share:
            job.begin()
        job.show(name)

    def __enter__(self) -> 'Phase':
        return self

    def __exit__(self, *_):
        pass

    def update(self, n: int = 1):
        """Counts `n` more items as done."""
        self._count += n
        self._job.reach(self._before + self._share * self._count / (self._total or 1))
        self._job.show(f'{self._name} {self._count}/{self._total}')

    def close(self):
        """Does nothing: the next phase replaces this one."""


def track(items: Sequence[T], description: str, unit: str = 'it') -> Iterator[T]:
    """Yields the items, with a bar."""
    with bar(len(items), description, unit) as made:
        for item in items:
            yield item
            made.update()


@contextlib.contextmanager
def kept(path: pathlib.Path) -> Iterator[None]:
    """Also appends logged lines to a file, while it is entered."""
    global _log
    before, _log = _log, path
    try:
        yield
    finally:
        _log = before


def log(line: str):
    """Prints one line on stderr, above a running bar."""
    from tqdm import tqdm

    if not _muted:
        tqdm.write(line, file=sys.stderr)
        if _log:
            with open(_log, 'a', encoding='utf-8', errors='replace') as file:
                file.write(f'{line}\n')
