"""The curves of a run: tables and TensorBoard, and the bar that a person watches."""

from __future__ import annotations

import csv
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_mednet.data.loader import BatchStream
from ssl_mednet.files import replacing
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.pretraining import health
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.online import Online
from ssl_mednet.progress import Dispensable, Progress

METRICS, SPEED = "metrics.csv", "speed.csv"
Rows = list[dict[str, str]]


class Curves(pl.Callback):
    """Every ``every`` steps one row in ``metrics.csv`` and one point in TensorBoard.

    ``loss``, ``lr``, ``gradient_norm``, what the method itself measures (``teacher_agreement``), the signs of
    :mod:`.health` on its features and, where the method has a ``projection_head``, ``projection_std``: the spread of
    what that gave last.

    The rows are part of every checkpoint, so a resumed run writes the table anew from there; and they hold nothing but
    what depends on the seed and the step, so the table of a run that was stopped equals that of one that was not. What
    depends on the machine is in ``speed.csv``; see :class:`Speed`.

    Args:
        online: looks at the frozen encoder, whose values get a row too at their steps.

    Attributes:
        last: the values of the newest row.
    """

    def __init__(self, folder: Path, every: int, online: Online | None = None) -> None:
        self.path, self.every, self.online = folder / METRICS, every, online
        self.last: dict[str, float] = {}
        self._rows: Rows = []
        self._projection: Tensor | None = None
        self._disk = Dispensable("curves")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PretrainModule)
        head = getattr(pl_module.method, "projection_head", None)
        if isinstance(head, nn.Module):
            head.register_forward_hook(self._see)

    def _see(self, head: nn.Module, inputs: Any, projection: Any) -> None:
        if isinstance(projection, Tensor) and projection.ndim == 2:
            self._projection = projection.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        assert isinstance(pl_module, PretrainModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # between the batches of one update
        new = not self._rows or step > int(self._rows[-1]["step"])
        if not new or not self.due(step, pl_module):
            return
        self.last = self._values(pl_module, trainer)
        if self.online is not None:
            self.last |= self.online.values_at(step)
        self._rows.append(_row(step, self.last))
        with self._disk:  # on a full one the rows are kept, and written with the next
            _log(trainer, self.last, step)
            if trainer.is_global_zero:
                _write(self.path, self._rows)

    def due(self, step: int, module: PretrainModule) -> bool:
        """Whether there is a point after this step; the same in every process."""
        looked = self.online is not None and self.online.is_due(step, module.total_steps)
        return looked or step % self.every == 0 or step in (1, module.total_steps)

    def _values(self, module: PretrainModule, trainer: pl.Trainer) -> dict[str, float]:
        output = module.output
        assert output is not None
        averages = module.averages()  # over the processes; what follows of the embedding is of this one
        values = {"loss": averages.pop("loss"), "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        if module.gradient_norm is not None:
            values["gradient_norm"] = float(module.gradient_norm)
        values["skipped_steps"] = module.skipped_steps
        values |= averages
        if output.embedding is not None:
            values |= health.signs(output.embedding)
        if self._projection is not None:
            values["projection_std"] = float(health.feature_std(self._projection))
        return values


class TimedStream:
    """A stream that knows how long it was waited for.

    Attributes:
        seconds: so far, over all batches.
    """

    def __init__(self, stream: BatchStream) -> None:
        self.stream, self.seconds = stream, 0.0

    def __iter__(self) -> Iterator[tuple[int, ImageBatch]]:
        with closing(iter(self.stream)) as batches:  # type: ignore[type-var]
            while True:
                began = time.perf_counter()
                item = next(batches)
                self.seconds += time.perf_counter() - began
                yield item


class Speed(pl.Callback):
    """Every ``every`` steps one row in ``speed.csv`` and in TensorBoard: means since the row before, of this process.

    ``images_per_second`` over all processes; ``data_share``: of the time, how much was spent waiting for the loader;
    ``look_share``: and how much looking at the frozen encoder; ``memory_gb``: resident set; ``gpu_memory_gb``: the most
    that torch held on the GPU. 1 GB is 1e9 bytes.
    """

    def __init__(self, folder: Path, every: int, stream: TimedStream, online: Online | None = None) -> None:
        self.path, self.every, self.stream, self.online = folder / SPEED, every, stream, online
        self._rows: Rows = []
        self._disk = Dispensable("curves of the speed")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step and self.path.is_file():
            with self.path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]
        self._mark(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        step = trainer.global_step
        if step == self._step or not (step % self.every == 0 or step == pl_module.total_steps):
            return
        seconds = max(time.perf_counter() - self._began, 1e-9)
        values = {
            "images_per_second": (step - self._step) * pl_module.recipe.optim.batch_size / seconds,
            "data_share": (self.stream.seconds - self._waited) / seconds,
            "memory_gb": resident_bytes() / 1e9,
        }
        if self.online:
            values["look_share"] = (self.online.seconds - self._looked) / seconds
        if pl_module.device.type == "cuda":
            values["gpu_memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        self._rows.append(_row(step, values))
        with self._disk:
            _log(trainer, values, step)
            if trainer.is_global_zero:
                _write(self.path, self._rows)
        self._mark(step)

    def _mark(self, step: int) -> None:
        self._step, self._began, self._waited = step, time.perf_counter(), self.stream.seconds
        self._looked = self.online.seconds if self.online else 0.0


def resident_bytes() -> int:
    """Memory of this process; where the system does not say it, the most it ever had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _row(step: int, values: dict[str, float]) -> dict[str, str]:
    return {"step": str(step)} | {name: f"{value:.6g}" for name, value in values.items()}


def _log(trainer: pl.Trainer, values: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step)


def _write(path: Path, rows: Rows) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


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
