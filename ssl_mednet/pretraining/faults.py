"""What can go wrong inside a step: losses that are no number, and memory that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_mednet.errors import TrainingError
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.replay import bundle_path, write_bundle
from ssl_mednet.progress import warn
from ssl_mednet.schema import Recipe

_SMALLEST_SCALE = 1.0  # of fp16: below it a gradient that is not finite is no longer the scaler's doing


class BadSteps(pl.Callback):
    """Skips updates whose loss or gradient is not finite, counts them, and stops after too many in a row.

    A skipped update leaves weights, optimizer, teacher and buffers as they were before its first batch; steps and
    schedule go on, so every later step sees the batch it would have seen. In several processes all skip or none. In
    fp16 a gradient beyond the range is the scaler's business and is not counted, unless its scale has come down to 1.

    Args:
        folder: of the run; ``replay/step_N/`` in it takes what is needed to see the first bad step again.
        limit: how many in a row end the run.
        data: what the run trains on, for the bundle; see :func:`~ssl_mednet.pretraining.changes.describe_data`.

    Attributes:
        skipped: updates of the whole run; also ``module.skipped_steps``.
    """

    def __init__(self, folder: Path, limit: int, data: dict[str, Any]) -> None:
        self.folder, self.limit, self.data = folder, limit, data
        self.skipped = self.streak = 0
        self._first: dict[str, Any] = {}  # batches and losses of the first bad update in a row
        self._batches: list[tuple[int, list[int]]] = []  # of this update
        self._losses: list[Tensor] = []
        self._kept: list[Tensor] = []  # buffers before this update

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "streak": self.streak, "first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.streak, self._first = (state_dict[key] for key in ("skipped", "streak", "first"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PretrainModule)
        pl_module.skipped_steps = self.skipped
        pl_module.is_bad_update = lambda: self._is_bad(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        step, images = batch
        if step % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
            buffers = dict(pl_module.method.named_buffers())
            if not self._kept:
                self._kept = [torch.empty_like(buffer) for buffer in buffers.values()]
            _refuse_other_shapes(buffers, self._kept, pl_module.method)
            _copy(self._kept, list(buffers.values()))
        self._batches.append((step, images.rows.tolist()))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        assert pl_module.output is not None
        self._losses.append(pl_module.output.loss.detach())

    def _is_bad(self, trainer: pl.Trainer, module: PretrainModule) -> bool:
        """Asked between the gradient and the update, in every process at once."""
        assert module.output is not None
        assert module.gradient_norm is not None
        losses = torch.stack([*self._losses, module.output.loss.detach()]).float()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        bad = ~losses.isfinite().all()
        if scaler is None or scaler.get_scale() <= _SMALLEST_SCALE:
            bad = bad | ~module.gradient_norm.isfinite()
        flag = bad.float()
        if trainer.world_size > 1:
            flag = trainer.strategy.reduce(flag, reduce_op="max")
        if not flag:
            self.streak = 0
            return False
        self._skip(trainer, module, losses)
        if scaler is not None:
            scaler.update()  # it has seen this gradient and waits for the update
        return True

    def _skip(self, trainer: pl.Trainer, module: PretrainModule, losses: Tensor) -> None:
        _copy(list(module.method.buffers()), self._kept)
        if not self.streak:
            self._first = {"batches": self._batches, "losses": losses.tolist()}
            if trainer.is_global_zero:
                told = f"loss {losses[-1].item():.4g}, gradient norm {float(module.gradient_norm or 0):.4g}"
                warn(f"step {trainer.global_step + 1}: {told}: its update is skipped")
        self.streak += 1
        self.skipped += 1
        module.skipped_steps = self.skipped
        if self.streak < self.limit:
            return
        step = self._first["batches"][0][0] // trainer.accumulate_grad_batches + 1
        write_bundle(self.folder, step, trainer, module, self._first, self.data)
        bundle = bundle_path(self.folder, step)
        raise TrainingError(
            f"{self.streak} steps in a row, from step {step} on, had a loss or gradient that is not finite",
            f"`ssl-mednet pretrain --replay {bundle}` shows the first of them again; a lower optim.lr, "
            "optim.clip or train.precision=float32 most often helps: --resume --allow-changes with them",
        )


def _refuse_other_shapes(buffers: dict[str, Tensor], kept: list[Tensor], method: nn.Module) -> None:
    """State is put back after a bad update, and into a method that was made anew: it has one shape from the start."""
    hint = "register_buffer() with the shape that it will have; rows that are not filled yet can be zero"
    if len(buffers) != len(kept):
        raise TrainingError(f"{type(method).__name__}: its buffers are other ones than at the first step", hint)
    for (name, buffer), before in zip(buffers.items(), kept, strict=True):
        if buffer.shape != before.shape:
            shapes = f"{list(before.shape)} at the first step and {list(buffer.shape)} now"
            raise TrainingError(f"{type(method).__name__}: its buffer {name!r} has the shape {shapes}", hint)


@torch.no_grad()
def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory is exhausted, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@contextmanager
def memory_explained(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Says which settings take less memory where it runs out.

    Raises:
        TrainingError: instead of the error of torch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        optim, data = recipe.optim, recipe.data
        said = f"optim.batch_size={optim.batch_size} accumulate={optim.accumulate} data.image_size={data.image_size}"
        reason = (str(error).strip().splitlines() or ["no memory left"])[0]
        raise TrainingError(
            f"{folder}: out of memory with {said} backbone {recipe.backbone.name}: {reason}",
            f"takes less: backbone.checkpoint=true, optim.cache_chunk={max(1, optim.batch_size // 8)} (the loss still "
            f"sees the batch), optim.accumulate={2 * optim.accumulate} (it sees fewer negatives), "
            f"optim.batch_size={max(2, optim.batch_size // 2)}, train.precision=bf16, a smaller data.image_size or "
            f"backbone; --resume --allow-changes goes on from the last checkpoint",
        ) from error
