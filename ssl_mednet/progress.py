"""Progress of long work: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_LOG_EVERY = 20.0  # seconds between lines where there is no terminal
_BAR, _NUMBERS = 20, 46  # columns of a bar, and of what stands right of it: counts, rate, note, time


def warn(text: str) -> None:
    """What a person should know though the work goes on; above the bar, and also where bars are off."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Progress:
    """Counts things done; shows rate, remaining time and a note. Writes to stderr, so that results can be piped.

    Args:
        title: what is being done.
        total: how many there are; None where that is not known.
        unit: of the rate, as in ``img/s``.
        quiet: show nothing.
    """

    def __init__(self, title: str, total: int | None, unit: str, quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.done = 0
        self._bar: RichProgress | None = None
        self._start = self._logged = time.monotonic()
        self._measured_from = 0

    def __enter__(self) -> Progress:
        self._start = self._logged = time.monotonic()
        console = Console(stderr=True)
        if not self.quiet and console.is_terminal:
            fits = len(self.title) + _BAR + _NUMBERS < console.width
            columns = (
                *([TextColumn("{task.description}")] if fits else []),
                BarColumn(bar_width=_BAR),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(compact=True),
            )
            self._bar = RichProgress(*columns, console=console, transient=False)
            self._bar.start()
            if not fits:  # a bar in one line with a long title would be left out, and its numbers cut off
                self._bar.console.print(self.title, markup=False, highlight=False)
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def start_from(self, done: int) -> None:
        """Begin in the middle, after a resume; the rate counts from here."""
        self.done = self._measured_from = done
        if self._bar:
            self._bar.update(self._task, completed=done)

    def advance(self, count: int, note: str = "", weight: float = 1) -> None:
        """``count`` more are done; each is ``weight`` units of the rate."""
        self.done += count
        if self.total is not None:
            self.done = min(self.done, self.total)
        seconds = max(1e-9, time.monotonic() - self._start)
        rate = (self.done - self._measured_from) * weight / seconds
        text = f"{rate:,.0f} {self.unit}/s {note}".rstrip()
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=text)
        elif not self.quiet and time.monotonic() - self._logged > _LOG_EVERY:
            self._logged = time.monotonic()
            left = (
                ""
                if self.total is None
                else f"/{self.total}, {(self.total - self.done) * weight / max(rate, 1e-9):.0f} s left"
            )
            print(f"{self.title}: {self.done}{left}, {text}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


class Dispensable:
    """A context in which a file may fail to be written (a full disk) without ending the work; said once.

    Args:
        what: is written, in the plural.
    """

    def __init__(self, what: str) -> None:
        self.what, self._said = what, False

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, OSError):
            return False
        if not self._said:
            warn(f"{self.what} not written: {error.strerror or error}; the run goes on")
        self._said = True
        return True
