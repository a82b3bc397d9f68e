"""Checkpoints: what a run goes on from."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ssl_mednet.errors import UserError
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.processes import anyone

CHECKPOINT = Path("checkpoints") / "last.ckpt"


class Checkpoints(pl.Callback):
    """``checkpoints/last.ckpt`` every so many steps, at the end, and when the run is asked to stop.

    The file is complete whenever it is there: it is written under another name and renamed. The first Ctrl-C or
    SIGTERM finishes the step, writes the checkpoint and ends the run; the second ends it at once.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / CHECKPOINT, every
        self.stopped_by: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        self.stopped_by = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # between the batches of one update there is no state to go on from
        if anyone(self.stopped_by is not None):  # all stop after the same step, or those that go on would wait
            trainer.should_stop = True
        step = trainer.global_step
        if step % self.every == 0 or step == pl_module.total_steps or trainer.should_stop:
            temporary = self.path.with_suffix(".partial")
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(self.path)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


def last_step(folder: Path) -> int:
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise UserError(f"{path}: the checkpoint cannot be read: {error}", "remove it to start again") from error
