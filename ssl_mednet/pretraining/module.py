"""The method inside Lightning: views on the device, one step, the schedule, and what happens after the step."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_mednet.augment.views import ViewMaker
from ssl_mednet.backbones.depthwise import quicken
from ssl_mednet.backbones.optim import cosine_with_warmup, create_optimizer
from ssl_mednet.draws import Draws, stable_hash
from ssl_mednet.errors import TrainingError
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.methods import Batch, Method, StepOutput
from ssl_mednet.pretraining.chunks import step_in_chunks
from ssl_mednet.pretraining.processes import averaged
from ssl_mednet.pretraining.strategy import shard, whole_norm
from ssl_mednet.schema import Recipe


class SkippedUpdate(Exception):
    """Leaves the optimizer's step before anything is changed."""


class PretrainModule(pl.LightningModule):
    """Runs any :class:`~ssl_mednet.methods.Method`.

    Every random number of a step comes from (seed, step, row) or from torch's generator seeded by (seed, step, rank),
    so a step needs nothing from the steps before it but the weights and the optimizer's state.

    Args:
        total_steps: updates of the whole run.
        channels_last: memory layout for convolutions.
        sharded: each process keeps a share of the weights only.

    Attributes:
        is_bad_update: asked between gradient and update; what it refuses is skipped. None: every update is made.
        skipped_steps: updates skipped so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        views: ViewMaker,
        total_steps: int,
        channels_last: bool = False,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.recipe, self.method, self.views = recipe, method, views
        self.total_steps, self.channels_last, self.sharded = total_steps, channels_last, sharded
        self.output: StepOutput | None = None
        self.gradient_norm: Tensor | None = None
        self.is_bad_update: Callable[[], bool] | None = None
        self.skipped_steps = 0
        if channels_last:
            quicken(self.method)
            self.method.to(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[int, ImageBatch], batch_idx: int) -> Tensor:
        step, images = batch
        seed = self.recipe.train.seed
        torch.manual_seed(stable_hash(seed, step, self.global_rank, "torch"))
        size = self.recipe.optim.cache_chunk
        if 0 < size < len(images):
            prepare = functools.partial(self.prepare, step)
            self.output = step_in_chunks(self.method, images, size, prepare, self.about(step, images))
        else:
            self.output = self.method.training_step(*self.prepare(step, images))
        _check_output(self.output, self.method)
        return self.output.loss

    def averages(self) -> dict[str, float]:
        """Loss and metrics of the last step, averaged over the processes; every process must ask."""
        assert self.output is not None
        return averaged({"loss": self.output.loss} | self.output.metrics)

    def configure_model(self) -> None:
        if self.sharded:
            assert self.device_mesh is not None
            shard(self.method, self.device_mesh["data_parallel"])

    def prepare(self, step: int, images: ImageBatch) -> tuple[list[Tensor], Batch]:
        """The views of a batch and what the method may know of it."""
        info = self.about(step, images)
        views = self.views(images, info.draws)
        if self.channels_last:
            views = [v.contiguous(memory_format=torch.channels_last) for v in views]
        return views, info

    def about(self, step: int, images: ImageBatch) -> Batch:
        """What the method may know of a batch besides its views."""
        draws = Draws(self.recipe.train.seed, step, images.rows, device=images.pixels.device)
        progress = step / (self.total_steps * self.recipe.optim.accumulate)
        return Batch(images.rows, images.modality, draws, step, progress)

    def transfer_batch_to_device(
        self, batch: tuple[int, ImageBatch], device: torch.device, dataloader_idx: int
    ) -> tuple[int, ImageBatch]:
        return batch[0], batch[1].to(device)

    def configure_optimizers(self) -> Any:
        optim = self.recipe.optim
        optimizer = create_optimizer(self.method, optim.name, optim.peak_lr, optim.weight_decay, dict(optim.options))
        factor = functools.partial(
            cosine_with_warmup,
            total=self.total_steps,
            warmup=round(optim.warmup * self.total_steps),
            floor=optim.min_lr,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        limit = self.recipe.optim.clip or float("inf")
        self.gradient_norm = whole_norm(nn.utils.clip_grad_norm_(self.method.parameters(), limit))
        if self.is_bad_update is not None and self.is_bad_update():
            raise SkippedUpdate

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 0.0
        try:
            super().optimizer_step(*args, **kwargs)
        except SkippedUpdate:
            return
        if scaler is not None and scaler.get_scale() < scale:
            return  # in fp16 a gradient was beyond the range, and the scaler has skipped the update
        # Lightning counts the step only after this hook.
        self.method.after_step((self.trainer.global_step + 1) / self.total_steps)


def _check_output(output: Any, method: Method) -> None:
    """What a method of someone's own may get wrong, said in its terms."""
    wrong = ""
    if not isinstance(output, StepOutput):
        wrong = f"a {type(output).__name__}, not a StepOutput"
    elif not isinstance(output.loss, Tensor) or output.loss.numel() != 1:
        wrong = "a loss that is no scalar tensor"
    elif "loss" in output.metrics:
        wrong = "a metric 'loss', which is the name of the loss"
    else:
        names = [name for name, value in output.metrics.items() if not isinstance(value, Tensor) or value.numel() != 1]
        wrong = f"the metric {names[0]!r}, which is no scalar tensor" if names else ""
    if wrong:
        where = getattr(sys.modules.get(type(method).__module__), "__file__", None) or type(method).__module__
        raise TrainingError(f"{type(method).__name__} ({where}): its step gives {wrong}")
