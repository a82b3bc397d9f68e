"""Starts the processes of a run on this machine, and ends them all, with the reason, when one of them ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ssl_mednet.errors import UserError
from ssl_mednet.pretraining.world import World

T = TypeVar("T")
_GRACE = 3.0  # seconds the others get to end by themselves after one has died
_GRACE_AFTER_ERROR = 60.0  # and after one has ended with a word to the user, as a run that is stopped does
_FORWARDED = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, n)]


class ProcessDied(UserError):
    """One process of a run has died, and the run with it."""

    exit_code = 5


@dataclass
class _Child:
    world: World
    process: Any
    pipe: Connection
    result: Any = None
    error: UserError | None = None
    crash: str = ""

    @property
    def failed(self) -> bool:
        return self.error is not None or bool(self.crash) or self.process.exitcode not in (None, 0)


def launch(work: Callable[[World], T], worlds: list[World]) -> T:
    """Run ``work(world)`` in a new process for each world; the result of the first.

    The processes are started afresh (spawn), so this works from a script, a notebook, the command line and a process
    that holds threads or a GPU. This process only watches: signals are passed on to all, once each, and when it dies
    itself, by whatever means, they end as well.

    Args:
        work: can be pickled.

    Raises:
        UserError: what a process said to the user.
        ProcessDied: a process was killed or crashed; which, and how.
        KeyboardInterrupt: asked to stop before the run could.
    """
    context = multiprocessing.get_context("spawn")
    children = []
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice on its own flags is nothing to a user
    for world in worlds:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(theirs, work, world), name=f"rank-{world.rank}")
        process.start()
        theirs.close()
        children.append(_Child(world, process, ours))
    try:
        with _forwarding(children) as asked:
            _watch(children)
        failed = [child for child in children if child.failed]  # by themselves; those left over are ended below
    finally:
        for child in children:
            if child.process.is_alive():
                child.process.kill()
            child.process.join()
    if not failed:
        return children[0].result
    if asked and not any(child.error for child in failed):
        raise KeyboardInterrupt
    raise _reason(failed)


def _watch(children: list[_Child]) -> None:
    """Until all have ended, or some have not for too long after another failed."""
    deadline = float("inf")
    running = list(children)
    while running and time.monotonic() < deadline:
        listened = [c.process.sentinel for c in running] + [c.pipe for c in running if not c.pipe.closed]
        wait(listened, timeout=None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
        for child in running:
            _listen(child)
        running = [c for c in running if c.process.exitcode is None]
        for child in children:
            if child.failed:
                grace = _GRACE_AFTER_ERROR if child.error else _GRACE
                deadline = min(deadline, time.monotonic() + grace)


def _listen(child: _Child) -> None:
    """Take what the process has sent; its end closes the pipe."""
    if child.pipe.closed:
        return
    try:
        while child.pipe.poll():
            kind, what = child.pipe.recv()
            setattr(child, kind, what)
    except (EOFError, OSError):
        child.pipe.close()
        child.process.join(_GRACE)  # so that the exit code is known when the failure is looked at


def _reason(failed: list[_Child]) -> UserError:
    """Why the run ended: a kill explains the crashes of those that were talking to the process that is gone."""
    killed = [c for c in failed if _killed(c)]
    if killed:
        child = killed[0]
        name = signal.Signals(-child.process.exitcode).name
        hint = "often the system itself, out of memory" if name == "SIGKILL" else "see its last words above"
        return ProcessDied(f"{_name(child)} was killed by {name}; the run has ended", f"{hint}; --resume goes on")
    said = [c.error for c in failed if c.error]
    if said:
        return said[0]
    crashed = [c for c in failed if c.crash]
    if crashed:
        # Those that only lost their partner come last.
        child = min(crashed, key=lambda c: "DistBackendError" in c.crash or "Connection closed" in c.crash)
        print(child.crash, file=sys.stderr, end="")
        return ProcessDied(f"{_name(child)} crashed: {child.crash.strip().splitlines()[-1]}")
    hint = "its own words are above; a script that starts processes needs `if __name__ == '__main__':` around the call"
    return ProcessDied(f"{_name(failed[0])} ended with exit code {failed[0].process.exitcode}", hint)


def _killed(child: _Child) -> bool:
    return not child.error and not child.crash and (child.process.exitcode or 0) < 0


def _name(child: _Child) -> str:
    return f"process {child.world.rank} of {child.world.size} (pid {child.process.pid})"


@contextmanager
def _forwarding(children: list[_Child]) -> Iterator[list[int]]:
    """Signals go on to every process; yields those that came."""
    asked: list[int] = []

    def forward(number: int, frame: Any) -> None:
        asked.append(number)
        for child in children:
            if child.process.is_alive():
                os.kill(child.process.pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child(pipe: Connection, work: Callable[[World], Any], world: World) -> None:
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the parent only, which passes it on: once, not twice
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    try:
        pipe.send(("result", work(world)))
    except UserError as error:
        pipe.send(("error", error))
        sys.exit(error.exit_code)
    except BaseException:
        pipe.send(("crash", traceback.format_exc()))
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
