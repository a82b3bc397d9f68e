"""What a run writes about itself while it runs: curves, signs of collapse, pictures, checkpoints, progress."""

from __future__ import annotations

import csv
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.progress import Progress

CHECKPOINT = Path("checkpoints") / "last.ckpt"
METRICS = "metrics.csv"


def feature_std(embedding: Tensor) -> Tensor:
    """Mean deviation of the normalised features times sqrt(D): about 1 when they spread over the sphere, 0 when they
    have collapsed to a point (Chen and He 2021, arXiv 2011.10566, section 4.1)."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    return unit.std(dim=0).mean() * embedding.shape[1] ** 0.5


def rank_me(embedding: Tensor) -> Tensor:
    """Smooth rank of the features, from 1 to min(B, D): exp of the entropy of the normalised singular values
    (Garrido et al. 2023, arXiv 2210.02885, equation 1)."""
    values = torch.linalg.svdvals(embedding.float())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum())


class Curves(pl.Callback):
    """Every ``every`` steps one row in ``metrics.csv`` and one point in TensorBoard.

    Args:
        folder: of the run.
        start: step from which a resumed run goes on; rows from there on are written anew.
    """

    def __init__(self, folder: Path, every: int, start: int) -> None:
        self.path, self.every, self.start = folder / METRICS, every, start
        self._rows: list[dict[str, str]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.start and self.path.is_file():
            with self.path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self.start]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        assert isinstance(pl_module, PretrainModule)
        new = not self._rows or step > int(self._rows[-1]["step"])
        if not new or not (step % self.every == 0 or step == 1 or step == pl_module.total_steps):
            return
        values = self._values(pl_module, trainer)
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        self._rows.append({"step": str(step)} | {k: f"{v:.6g}" for k, v in values.items()})
        if trainer.is_global_zero:
            self._write()

    @staticmethod
    def _values(module: PretrainModule, trainer: pl.Trainer) -> dict[str, float]:
        output = module.output
        assert output is not None
        values = {"loss": float(output.loss.detach()), "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        if module.gradient_norm is not None:
            values["gradient_norm"] = float(module.gradient_norm)
        values |= {name: float(value) for name, value in output.metrics.items()}
        if output.embedding is not None:
            values["feature_std"] = float(feature_std(output.embedding))
            values["rank_me"] = float(rank_me(output.embedding))
        return values

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        temporary = self.path.with_suffix(".partial")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.replace(self.path)


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
        if self.stopped_by is not None:
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


class Pictures(pl.Callback):
    """What the method draws (reconstructions), as PNG in ``pictures/`` and in TensorBoard, at every checkpoint."""

    def __init__(self, folder: Path, every: int, images: ImageBatch) -> None:
        self.folder, self.every, self.images = folder / "pictures", every, images

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        step = trainer.global_step
        if (step % self.every and step != pl_module.total_steps) or not trainer.is_global_zero:
            return
        views, info = pl_module.prepare(0, self.images.to(pl_module.device))
        pl_module.method.eval()
        pictures = pl_module.method.pictures(views, info)
        pl_module.method.train()
        for name, batch_of_pictures in pictures.items():
            unit = (batch_of_pictures.float() * pl_module.views.std + pl_module.views.mean).clamp(0, 1).cpu()
            self.folder.mkdir(exist_ok=True)
            save_image(unit, self.folder / f"{name}.png", nrow=self._columns(len(unit)), padding=1)
            for logger in trainer.loggers:
                if isinstance(logger, pl.loggers.TensorBoardLogger):
                    grid = make_grid(unit, nrow=self._columns(len(unit)), padding=1)
                    logger.experiment.add_image(name, grid, step)

    def _columns(self, pictures: int) -> int:
        """One image a row, with everything the method drew of it side by side."""
        return max(1, pictures // len(self.images))


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
