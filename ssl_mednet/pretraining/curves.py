"""The curves of a run: a table and TensorBoard, and the bar that a person watches."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ssl_mednet.files import replacing
from ssl_mednet.pretraining.health import feature_std, rank_me
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.progress import Progress, warn

METRICS = "metrics.csv"


class Curves(pl.Callback):
    """Every ``every`` steps one row in ``metrics.csv`` and one point in TensorBoard.

    The rows are part of every checkpoint: a resumed run writes the table anew from there.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / METRICS, every
        self._rows: list[dict[str, str]] = []
        self._told = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        assert isinstance(pl_module, PretrainModule)
        new = not self._rows or step > int(self._rows[-1]["step"])
        if not new or not (step % self.every == 0 or step == 1 or step == pl_module.total_steps):
            return
        values = self._values(pl_module, trainer)
        self._rows.append({"step": str(step)} | {k: f"{v:.6g}" for k, v in values.items()})
        try:
            for logger in trainer.loggers:
                logger.log_metrics(values, step)
            if trainer.is_global_zero:
                self._write()
        except OSError as error:  # a full disk; the rows are kept, and written with the next
            if not self._told:
                warn(f"curves not written: {error}; the run goes on")
            self._told = True

    @staticmethod
    def _values(module: PretrainModule, trainer: pl.Trainer) -> dict[str, float]:
        output = module.output
        assert output is not None
        averages = module.averages()  # over the processes; what follows of the embedding is of this one
        values = {"loss": averages.pop("loss"), "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        if module.gradient_norm is not None:
            values["gradient_norm"] = float(module.gradient_norm)
        values["skipped_steps"] = module.skipped_steps
        values |= averages
        if output.embedding is not None:
            values["feature_std"] = float(feature_std(output.embedding))
            values["rank_me"] = float(rank_me(output.embedding))
        return values

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self._rows)


class ProgressBar(pl.Callback):
    """Steps, loss, images per second and remaining time."""

    def __init__(self, name: str, quiet: bool) -> None:
        self.name, self.quiet = name, quiet
        self.images_per_second = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PretrainModule)
        quiet = self.quiet or not trainer.is_global_zero
        self._bar = Progress(self.name, pl_module.total_steps, "img", quiet).__enter__()
        self._bar.start_from(trainer.global_step)
        self._first, self._began = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        size = pl_module.recipe.optim.batch_size
        seconds = time.monotonic() - self._began
        self.images_per_second = (trainer.global_step - self._first) * size / max(seconds, 1e-9)
        assert pl_module.output is not None
        self._bar.advance(1, f"loss {float(pl_module.output.loss.detach()):.4f}", weight=size)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if hasattr(self, "_bar"):
            self._bar.__exit__(None, None, None)
