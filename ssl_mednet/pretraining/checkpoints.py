"""Checkpoints: what a run goes on from. A file that has its name is whole, and its checksum lies beside it."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from ssl_mednet.backbones.artifact import sha256
from ssl_mednet.errors import TrainingError
from ssl_mednet.files import replacing, sync_folder
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.stopping import StopSignals
from ssl_mednet.progress import warn

FOLDER, SUFFIX, SEAL, BAD = "checkpoints", ".ckpt", ".sha256", ".bad"
SECTION = "ssl_mednet"  # of a checkpoint: the recipe, the data and the weights that the run began with


@dataclass(frozen=True)
class Checkpoint:
    """Where a run goes on.

    Args:
        step: updates that are done.
        recipe: complete, as the run had it; see :class:`~ssl_mednet.recipe.Recipe`.
        corpus: fingerprint of the corpus, number and digest of the rows trained on.
        weights: sha256 of the artifact that the run started from; empty where it started from none.
    """

    path: Path
    step: int
    recipe: dict[str, Any]
    corpus: dict[str, Any]
    weights: str = ""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step_{step:06d}{SUFFIX}"


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, whether or not they can be used."""
    numbered = [(int("".join(filter(str.isdigit, p.stem)) or 0), p) for p in (folder / FOLDER).glob(f"*{SUFFIX}")]
    return [path for _, path in sorted(numbered, reverse=True)]


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose bytes are those that were written; None where there never was one.

    Those after it get the ending ``.bad``, and a word.

    Raises:
        TrainingError: there are checkpoints, and none can be used.
    """
    problems: dict[Path, str] = {}
    for path in all_checkpoints(folder):
        problem = _problem(path)
        if not problem:
            usable = _read(path)
            _set_aside(problems, usable)
            return usable
        problems[path] = problem
    if problems:
        told = "; ".join(f"{path.name} {problem}" for path, problem in problems.items())
        hint = f"remove {folder / FOLDER} and say --resume to start this run from its beginning"
        raise TrainingError(f"{folder / FOLDER}: no checkpoint can be used: {told}", hint)
    return None


def tidy(folder: Path) -> None:
    """Remove what a run that was killed while it wrote has left of unfinished files."""
    for left in (*folder.glob(".*.partial"), *(folder / FOLDER).glob(".*.partial")):
        if left.is_file():
            left.unlink(missing_ok=True)


def _problem(path: Path) -> str:
    """What is wrong with a checkpoint, in words that follow its name; empty for nothing."""
    try:
        if not path.stat().st_size:
            return "is empty"
        digest = _seal(path).read_text().split()[0]
        return "" if sha256(path) == digest else "is not what was written (its checksum differs)"
    except (OSError, IndexError):
        return "has no checksum" if path.is_file() else "cannot be read"


def _read(path: Path) -> Checkpoint:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Checkpoint(path, int(content["global_step"]), **content[SECTION])
    except Exception as error:
        raise TrainingError(f"{path}: is whole, but no checkpoint of this version: {error}") from error


@rank_zero_only
def _set_aside(problems: dict[Path, str], usable: Checkpoint) -> None:
    for path, problem in problems.items():
        warn(f"{path} {problem}: it is now {path.name}{BAD}, and the run goes on from {usable.path.name}")
        path.replace(path.with_name(path.name + BAD))


def _seal(path: Path) -> Path:
    """Of a checkpoint: what ``sha256sum --check`` reads."""
    return path.with_name(path.name + SEAL)


class _Hashed:
    """A file that knows the digest of what it was given to write."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write, read back and compare, then rename: whenever this is cut off, ``path`` is whole or absent.

    Raises:
        OSError: it could not be written (a full disk); nothing is left of the attempt.
    """
    try:
        with replacing(path) as partial:
            with partial.open("wb") as file:
                hashed = _Hashed(file)
                torch.save(content, cast(BinaryIO, hashed))
            digest = hashed.digest.hexdigest()
            if sha256(partial) != digest:
                raise OSError(errno.EIO, "what was written reads back otherwise", str(partial))
            path.unlink(missing_ok=True)  # one of this name has another checksum
            with replacing(_seal(path)) as temporary:
                temporary.write_text(f"{digest}  {path.name}\n")
        sync_folder(path.parent)
    except RuntimeError as error:  # torch's archive writer hides the reason of the file
        raise _cause(error) from error


def _cause(error: BaseException) -> OSError:
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return inner if isinstance(inner, OSError) else OSError(errno.EIO, str(error))


class WholeFiles(TorchCheckpointIO):
    """How the trainer writes a checkpoint: see :func:`write_checkpoint`. A full disk costs all but the newest."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            write_checkpoint(checkpoint, path)
        except OSError as error:
            if error.errno != errno.ENOSPC or not rotate(path.parent.parent, keep=1):
                raise
            write_checkpoint(checkpoint, path)


class Checkpoints(pl.Callback):
    """A checkpoint every so many steps, at the end, and when the run is asked to stop.

    It comes last of the callbacks, so that it holds what the others have done at its step.

    Args:
        folder: of the run.
        every: steps between checkpoints.
        keep: how many of the newest stay.
        section: recipe, corpus and first weights, kept in each; see :class:`Checkpoint`.
        stop: what asks the run to stop.
        amend: called with the content of the checkpoint that the run goes on from, before it is restored.

    Attributes:
        failure: why the last one could not be written; empty when it was.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        keep: int,
        section: dict[str, Any],
        stop: StopSignals,
        amend: Callable[[PretrainModule, dict[str, Any]], None] | None = None,
    ) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.section, self.stop, self.amend = section, stop, amend
        self.failure = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = WholeFiles()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[SECTION] = self.section

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        if self.amend is not None:
            self.amend(pl_module, checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.install()  # the trainer has taken them for itself

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # between the batches of one update there is no state to go on from
        if self.stop.agreed():  # all stop after the same step, or those that go on would wait
            trainer.should_stop = True
        step = trainer.global_step
        if step % self.every == 0 or step == pl_module.total_steps or trainer.should_stop:
            self._save(trainer, step)

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        try:
            trainer.save_checkpoint(checkpoint_path(self.folder, step))
        except OSError as error:
            trainer.strategy.barrier("checkpoint")  # where the others wait for this one
            self.failure = f"checkpoint of step {step} not written: {error.strerror or error}"
            warn(f"{self.failure}; {self.state}; the run goes on and tries again at the next")
            return
        self.failure = ""
        if trainer.is_global_zero:
            rotate(self.folder, self.keep)

    @property
    def state(self) -> str:
        """Where the last good checkpoint is, in words."""
        found = [path for path in all_checkpoints(self.folder) if not _problem(path)]
        return f"the last good one is {found[0]}" if found else "there is no other"


def rotate(folder: Path, keep: int) -> int:
    """Remove all but the newest, and checksums of none; how many checkpoints that were."""
    found = all_checkpoints(folder)
    kept, old = found[:keep], found[keep:]
    for path in old:
        path.unlink()
    for seal in (folder / FOLDER).glob(f"*{SUFFIX}{SEAL}"):
        if seal.with_name(seal.name.removesuffix(SEAL)) not in kept:
            seal.unlink()
    return len(old)
