"""Hands: child processes that decode. One that a file kills or holds up is replaced, and that file alone is lost."""

from __future__ import annotations

import os
import signal
import struct
import tempfile
import threading
import time
from concurrent.futures import TimeoutError as Waited
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from ssl_mednet.errors import IngestError
from ssl_mednet.ingesting.chunks import Chunk, Job
from ssl_mednet.ingesting.rows import Record, reader_of, write_rows

_BEAT = struct.Struct("<qq")  # number of the item, number of the beat
_POLL = 0.2  # seconds between two looks at the beat
_TO_START = 300.0  # seconds that a process may take to import what it needs
_WATCH = 1.0  # seconds between two looks at the parent
_IDLE = 120  # seconds after which a process without work ends
_ENV = {"OMP_NUM_THREADS": "1", "LANCE_LOG": "error", "LANCE_CPU_THREADS": "1"}


class _Lost(Exception):
    """A child process is gone, or had to be ended.

    Args:
        item: number of the item in the chunk at which that happened; -1 before the first.
        reason: for the quarantine.
    """

    def __init__(self, item: int, reason: str) -> None:
        super().__init__(item, reason)
        self.item, self.reason = item, reason


class Hand:
    """One child process (of joblib's loky) that works at one chunk at a time."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self.closed = False

    def work(self, job: Job, chunk: Chunk) -> Record:
        """Every good image of a chunk, whatever its files do to the process.

        Where the process dies or stands still at an item, the items before it are done again, the item is tried once
        more by itself (the process may have died of something else), and the work goes on behind it.

        Raises:
            IngestError: the process dies before it opens a file.
        """
        done = Record(chunk.number, 0)
        parts = [(0, len(chunk.items))]  # the next one last
        while parts:
            start, stop = parts.pop()
            try:
                done += self._attempt(job, chunk.part(start, stop))
            except _Lost as lost:
                if lost.item < 0 or self.closed:
                    raise IngestError("a worker process ended before it had read anything", lost.reason) from lost
                if stop - start == 1:
                    item = chunk.items[start]
                    done += Record(chunk.number, 1, quarantine=[(item.name, lost.reason, reader_of(item))])
                    continue
                at = start + lost.item
                parts += [(a, b) for a, b in ((at + 1, stop), (at, at + 1), (start, at)) if a < b]
        return done

    def _attempt(self, job: Job, chunk: Chunk) -> Record:
        pool = self._pool = self._pool or ProcessPoolExecutor(
            max_workers=1, timeout=_IDLE, env=_ENV, initializer=_belong_to, initargs=(os.getpid(),)
        )
        with tempfile.NamedTemporaryFile(prefix="ssl-mednet-beat-") as beat:
            beat.write(_BEAT.pack(-1, 0))
            beat.flush()
            future = pool.submit(_work, job, chunk, beat.name, _here())
            last, since = (-1, 0), time.monotonic()
            while True:
                try:
                    return future.result(timeout=_POLL)
                except TerminatedWorkerError as error:
                    self.drop()
                    raise _Lost(_read(beat.name)[0], "its reader ended the process (a crash in a decoder)") from error
                except Waited:
                    if self.closed:  # a pool that is shut down at a bad moment leaves its work undone, and says nothing
                        raise _Lost(last[0], "the work was ended") from None
                    if (now := _read(beat.name)) != last:
                        last, since = now, time.monotonic()
                    elif time.monotonic() - since > (limit := job.timeout if last[0] >= 0 else _TO_START):
                        self.drop()
                        raise _Lost(last[0], f"its reader gave nothing for {limit:g} s") from None

    def drop(self) -> None:
        """End the process, whatever it does; the next piece of work gets a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, kill_workers=True)

    def close(self) -> None:
        """End the process and the work at it, for good."""
        self.closed = True
        self.drop()


def _belong_to(parent: int) -> None:
    """End with the parent, also where it is killed, and not before: Ctrl-C in a terminal reaches the children too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _read(path: str) -> tuple[int, int]:
    item, beats = _BEAT.unpack(Path(path).read_bytes())
    return item, beats


class _Beat:
    """Tells the parent at which item the child is: sixteen bytes in a file, which survive the child."""

    def __init__(self, path: str) -> None:
        self._file, self._beats = os.open(path, os.O_WRONLY), 0

    def __call__(self, item: int) -> None:
        self._beats += 1
        os.pwrite(self._file, _BEAT.pack(item, self._beats), 0)

    def __enter__(self) -> _Beat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _here() -> str:
    """The working directory, which relative paths start from; empty where it is gone."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def _work(job: Job, chunk: Chunk, beat_path: str, here: str) -> Record:
    if here:
        os.chdir(here)  # a hand that is kept was born in what may be another one
    with _Beat(beat_path) as beat:
        return write_rows(job, chunk, beat)


_FREE: SimpleQueue[Hand] = SimpleQueue()  # a process starts slowly, so hands are kept from one ingest to the next


def take_hand() -> Hand:
    """A hand that is free, or a new one."""
    try:
        return _FREE.get_nowait()
    except Empty:
        return Hand()


def give_back(hand: Hand) -> None:
    """Keep a hand for whoever comes next, unless it was ended for good."""
    if not hand.closed:
        _FREE.put(hand)


def work_safely(job: Job, chunk: Chunk) -> Record:
    """:func:`~ssl_mednet.ingesting.rows.write_rows` in a child of this process; see :meth:`Hand.work`."""
    hand = take_hand()
    try:
        return hand.work(job, chunk)
    finally:
        give_back(hand)
