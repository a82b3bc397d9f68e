"""How a run is asked to stop, and how it says that it may be gone on with."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ssl_mednet.errors import ResumeMe
from ssl_mednet.pretraining.processes import largest

# Ctrl-C, what a scheduler sends before it kills, and what it is told to send earlier (sbatch --signal=USR1@90).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(ResumeMe):
    """The run was asked to stop and has ended after a whole step.

    Args:
        number: of the signal. Ctrl-C has the exit code 130, as everywhere; the others 75: start me again.
    """

    def __init__(self, message: str, hint: str = "", number: int = 0) -> None:
        super().__init__(message, hint)
        if number == signal.SIGINT:
            self.exit_code = 130


class StopSignals:
    """Remembers that the run was asked to stop; a second Ctrl-C ends it at once.

    A second SIGTERM does nothing more: schedulers send several, and the checkpoint is being written already.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    def install(self) -> None:
        """Take the signals, also from a trainer that has taken them since (and would requeue the job by itself)."""
        for number in self._before:
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def agreed(self) -> int:
        """The signal that any process of the run has received, 0 for none; the same in all, each of which must ask."""
        self.received = largest(self.received)
        return self.received

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
