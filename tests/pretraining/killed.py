"""Pretraining in a process of its own that is killed with -9 at an event: what kill tests are made of.

An event is a kind and a number: the fifth write into a checkpoint file, the second rename, the third update. The same
events are counted in a run that is not killed, so that a moment can be drawn from all there are. In a run of several
processes each counts its own; the kill names the one whose event it is, and ends that one alone or all of them.

    KILLED_JOB='{"kill": ["write", 5], "log": "log.txt", "counts": "counts.json"}' python killed.py pretrain ...
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

KINDS = ("write", "fsync", "replace", "replaced", "unlink", "batch", "update", "artifact")
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["ssl_mednet.pretraining.run", "ssl_mednet.cli"])


@dataclass(frozen=True)
class Kill:
    """When a run is killed: at the event ``number`` of a kind in process ``rank``; ``alone``: that process only."""

    kind: str
    number: int
    rank: int = 0
    alone: bool = False


class Clock:
    """Counts events by kind in one process, keeps the counts in a file, and kills at one of them.

    Args:
        job: what :class:`Run` wants.
        several: this is one of several processes, which knows its rank only once it has joined them.
    """

    def __init__(self, job: dict[str, Any], several: bool) -> None:
        self.kill = Kill(**job["kill"]) if job["kill"] else None
        self.file, self.several, self.counts = Path(job["counts"]), several, Counter[str]()
        self.trained = [0.0, 0.0]  # when the first batch and the last update were, on the clock of the machine

    def tick(self, kind: str) -> None:
        if self.several and "RANK" not in os.environ:
            return
        rank = int(os.environ.get("RANK", "0"))
        self.counts[kind] += 1
        if kind == "update" or (kind == "batch" and self.counts[kind] == 1):
            self.trained[kind == "update"] = time.monotonic()
        self._write(rank)
        if self.kill is None or (self.kill.kind, self.kill.number) != (kind, self.counts[kind]):
            return
        if self.kill.rank == rank:
            if not self.kill.alone:
                kill_run(os.getppid() if self.several else os.getpid(), last=os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    def _write(self, rank: int) -> None:
        path = f"{self.file}.{rank}"
        with open(f"{path}.new", "w") as file:  # noqa: PTH123  what Path does is counted
            json.dump({"counts": self.counts, "trained": self.trained}, file)
        os.replace(f"{path}.new", path)  # noqa: PTH105

    def before(self, owner: Any, name: str, kind: str) -> None:
        self._wrap(owner, name, lambda: self.tick(kind), lambda: None)

    def after(self, owner: Any, name: str, kind: str) -> None:
        self._wrap(owner, name, lambda: None, lambda: self.tick(kind))

    @staticmethod
    def _wrap(owner: Any, name: str, before: Callable[[], None], after: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before()
            result = original(*args, **kwargs)
            after()
            return result

        setattr(owner, name, wrapped)


def _wind(clock: Clock) -> None:
    """Every place where a kill could tear something: files, renames, and the parts of a step."""
    from ssl_mednet.backbones import artifact
    from ssl_mednet.pretraining import checkpoints
    from ssl_mednet.pretraining.module import PretrainModule

    clock.before(checkpoints._Hashed, "write", "write")
    clock.before(os, "fsync", "fsync")
    clock.before(Path, "replace", "replace")
    clock.after(Path, "replace", "replaced")
    clock.before(Path, "unlink", "unlink")
    clock.before(PretrainModule, "training_step", "batch")
    clock.after(PretrainModule, "optimizer_step", "update")
    clock.before(artifact, "save", "artifact")
    clock.after(artifact, "save", "artifact")
    clock.before(Path, "rename", "artifact")
    clock.after(Path, "rename", "artifact")


def kill_run(parent: int, last: int = 0) -> None:
    """Kill a run at once with -9: the process that was started, and those it has started; ``last`` is left."""
    try:
        children = [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except FileNotFoundError:
        return
    for pid in [parent, *children]:
        if pid != last:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def work(job: dict[str, Any], several: bool = False) -> None:
    """Run the command line in this process, as the job says; of ``several`` processes this one only starts them."""
    number = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(number, 1)
    os.dup2(number, 2)
    if not several:
        _wind(Clock(job, several))
    from ssl_mednet.cli import main

    main()


def _forked(job: dict[str, Any], arguments: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    sys.argv = ["ssl-mednet", *arguments]
    work(job)


class Run:
    """A run in another process, its group its own.

    Args:
        arguments: of the command line, from the verb on.
        log: takes what it prints.
        kill: the event that ends it.
        several: the run has more than one process. One that has not is forked from a server that has imported the
            package, which saves the seconds of the import.
    """

    def __init__(self, arguments: list[str], log: Path, kill: Kill | None = None, several: bool = False) -> None:
        self.counts_file = log.with_suffix(".counts.json")
        for left in self.counts_file.parent.glob(f"{self.counts_file.name}.*"):
            left.unlink()
        job = {"kill": asdict(kill) if kill else None, "log": str(log), "counts": str(self.counts_file)}
        self.began = time.monotonic()
        self._forked: Any = None
        if not several:
            self._forked = _forkserver.Process(target=_forked, args=(job, arguments, dict(os.environ)))
            self._forked.start()
            self.pid: int = self._forked.pid
        else:
            environment = os.environ | {"KILLED_JOB": json.dumps(job)}
            command = [sys.executable, __file__, *arguments]
            self._process = subprocess.Popen(command, start_new_session=True, env=environment)
            self.pid = self._process.pid

    @property
    def counts(self) -> list[dict[str, int]]:
        """How many events of each kind each process has had."""
        return [process["counts"] for process in self._told()]

    @property
    def trained(self) -> tuple[float, float]:
        """Seconds from the start to the first batch and to the last update of process 0."""
        first, last = self._told()[0]["trained"]
        return first - self.began, last - self.began

    def _told(self) -> list[dict[str, Any]]:
        found = sorted(self.counts_file.parent.glob(f"{self.counts_file.name}.[0-9]"))
        return [json.loads(path.read_text()) for path in found]

    def wait(self, seconds: float) -> int | None:
        """The exit code (minus the signal, where one ended it); None while it still runs."""
        if self._forked is not None:
            self._forked.join(seconds)
            return self._forked.exitcode
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        kill_run(self.pid)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: files by their bytes, the last checkpoint value by value."""
    found = []
    names = ["metrics.csv", "backbone/model.safetensors", "backbone/config.json", "backbone/README.md"]
    names += [str(path.relative_to(one)) for path in (one / "pictures").glob("*.png")]
    for name in names:
        if not (other / name).is_file() or (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    kept = [sorted((run / "checkpoints").glob("*.ckpt")) for run in (one, other)]
    if [p.name for p in kept[0]] != [p.name for p in kept[1]]:
        return [*found, f"checkpoints {kept}"]
    found += unequal(*(torch.load(paths[-1], weights_only=True) for paths in kept), "checkpoint")
    for run in (one, other):
        left = [p.name for p in run.rglob("*") if "partial" in p.name or ".old" in p.name]
        found += [f"left behind: {name}" for name in left]
    return found


def unequal(one: Any, other: Any, where: str) -> list[str]:
    """Places where two trees of dictionaries, lists, tensors and plain values differ in a bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [where]
    if type(one) is not type(other):
        return [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [where]
        return [place for key in one for place in unequal(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [where]
        return [p for i, pair in enumerate(zip(one, other, strict=True)) for p in unequal(*pair, f"{where}[{i}]")]
    return [] if one == other or one != one else [where]


if __name__ == "__main__":
    work(json.loads(os.environ["KILLED_JOB"]), several=True)
elif __name__ == "__mp_main__" and "KILLED_JOB" in os.environ:  # one of the processes that the run has started
    _wind(Clock(json.loads(os.environ["KILLED_JOB"]), several=True))
