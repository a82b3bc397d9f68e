"""Pictures of a run while it trains: the views it is shown, and what its method draws of its own work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

from ssl_mednet.augment.views import resize
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.pretraining.frozen import frozen
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.progress import Dispensable

VIEWS = "views"


class Pictures(pl.Callback):
    """At every checkpoint, as PNG in ``pictures/`` and in TensorBoard, one image a row.

    ``views``: the whole image, then each view that the method is shown of it, at the step of the picture; smaller views
    are enlarged without smoothing. Beside it what the method itself draws, as reconstructions.

    Args:
        images: that are shown; always the same.
    """

    def __init__(self, folder: Path, every: int, images: ImageBatch) -> None:
        self.folder, self.every, self.images = folder / "pictures", every, images
        self._disk = Dispensable("pictures")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        step = trainer.global_step
        due = step % self.every == 0 or step == pl_module.total_steps
        if not due or (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        for name, pictures in self._draw(pl_module, step).items():
            unit = (pictures.float() * pl_module.views.std + pl_module.views.mean).clamp(0, 1).cpu()
            with self._disk:
                self._show(trainer, name, unit, step)

    def _show(self, trainer: pl.Trainer, name: str, unit: Tensor, step: int) -> None:
        columns = max(1, len(unit) // len(self.images))
        self.folder.mkdir(exist_ok=True)
        save_image(unit, self.folder / f"{name}.png", nrow=columns, padding=1)
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_image(name, make_grid(unit, nrow=columns, padding=1), step)

    def _draw(self, module: PretrainModule, step: int) -> dict[str, Tensor]:
        """Each ``[N * columns, C, S, S]``, normalised."""
        images = self.images.to(module.device)
        with frozen(module.method):
            shown, _ = module.prepare(step, images)
            fixed, info = module.prepare(0, images)  # the same views every time, so that the drawing alone changes
            return {VIEWS: self._side_by_side(module, images, shown)} | module.method.pictures(fixed, info)

    @staticmethod
    def _side_by_side(module: PretrainModule, images: ImageBatch, views: list[Tensor]) -> Tensor:
        side = module.views.image_size
        whole = (resize(images, side) - module.views.mean) / module.views.std
        enlarged = [v if v.shape[-1] == side else nn.functional.interpolate(v, (side, side)) for v in views]
        return torch.stack([whole, *enlarged], dim=1).flatten(0, 1)
