"""SIGTERM, which a cluster sends before it takes a machine away: a run saves after the step at hand and ends well."""

import signal
import threading

from zerosearch_jax import sharding


class Watch:
    """Notes SIGTERM while it is entered, and tells the one that it is entered in when it is left.

    In a thread other than the main one there is nothing to note.
    """

    def __init__(self):
        self._asked = False

    def __enter__(self) -> 'Watch':
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)
            if self._asked and callable(self._before):
                self._before(signal.SIGTERM, None)  # an outer watch was told too

    def _note(self, *_):
        self._asked = True

    def stop_requested(self) -> bool:
        """Whether any process was told to stop; the same on all, who must ask together."""
        return sharding.any_process(self._asked)
