"""Pretraining in a process of its own that kills its whole group with -9 at an event: what kill tests are made of.

An event is a kind and a number: the fifth write into a checkpoint file, the second rename, the third update. The same
events are counted in a run that is not killed, so that a moment can be drawn from all there are.

    KILLED_JOB='{"kill": ["write", 5], "log": "log.txt", "counts": "counts.json"}' python killed.py pretrain ...
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

KINDS = ("write", "fsync", "replace", "replaced", "unlink", "batch", "update", "artifact")
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["ssl_mednet.pretraining.run", "ssl_mednet.cli"])


class Clock:
    """Counts events by kind, and ends everything at one of them."""

    def __init__(self, kill: tuple[str, int] | None) -> None:
        self.kill, self.counts = kill, Counter[str]()

    def tick(self, kind: str) -> None:
        self.counts[kind] += 1
        if self.kill == (kind, self.counts[kind]):
            os.killpg(os.getpgrp(), signal.SIGKILL)
            signal.pause()  # the signal of a group reaches its sender too, but not before this returns

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
    clock.before(artifact, "save_file", "artifact")
    clock.after(artifact, "save_file", "artifact")
    clock.before(Path, "rename", "artifact")
    clock.after(Path, "rename", "artifact")


def work(job: dict[str, Any]) -> None:
    """Run the command line in this process, as the job says."""
    number = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(number, 1)
    os.dup2(number, 2)
    clock = Clock(tuple(job["kill"]) if job["kill"] else None)
    _wind(clock)
    from ssl_mednet.cli import main

    try:
        main()
    finally:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            Path(job["counts"]).write_text(json.dumps(clock.counts))


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
        kill: kind and number of the event that ends it; see above.
        warm: fork it from a server that has imported the package; only for runs of one process, which it saves the
            seconds of the import.
    """

    def __init__(self, arguments: list[str], log: Path, kill: tuple[str, int] | None = None, warm: bool = True) -> None:
        self.counts_file = log.with_suffix(".counts.json")
        self.counts_file.unlink(missing_ok=True)
        job = {"kill": kill, "log": str(log), "counts": str(self.counts_file)}
        self._forked: Any = None
        if warm:
            self._forked = _forkserver.Process(target=_forked, args=(job, arguments, dict(os.environ)))
            self._forked.start()
            self.pid: int = self._forked.pid
        else:
            environment = os.environ | {"KILLED_JOB": json.dumps(job)}
            command = [sys.executable, __file__, *arguments]
            self._process = subprocess.Popen(command, start_new_session=True, env=environment)
            self.pid = self._process.pid

    @property
    def counts(self) -> dict[str, int]:
        """How many events of each kind there were, in a run that has ended by itself."""
        return json.loads(self.counts_file.read_text())

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
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or has not yet a group of its own
            os.kill(self.pid, signal.SIGKILL)


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
    work(json.loads(os.environ["KILLED_JOB"]))
