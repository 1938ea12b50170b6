"""SIGTERM, which a cluster sends before it takes a machine away: a run then saves after its current step and ends."""

import signal
import threading

from zerosearch_jax import sharding


class Watch:
    """Catches SIGTERM while it is entered, and passes it to an outer Watch when it is left.

    It does nothing in threads other than the main one.
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
                self._before(signal.SIGTERM, None)  # an outer Watch gets the signal too

    def _note(self, *_):
        self._asked = True

    def stop_requested(self) -> bool:
        """Whether any process got SIGTERM; equal on all processes, which must call this together."""
        return sharding.any_process(self._asked)
