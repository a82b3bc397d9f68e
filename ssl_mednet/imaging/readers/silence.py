"""Decoders without their warnings, which quote the values of tags."""

from __future__ import annotations

import threading
import warnings


class _Silence:
    """Warnings are off from the first that enters to the last that leaves.

    Filters belong to the process: two threads, or two generators that end in another order than they began in, would
    turn each other's back on if each kept its own.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


SILENCE = _Silence()
