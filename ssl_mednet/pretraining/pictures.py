"""Pictures that a method draws of its own work, while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torchvision.utils import make_grid, save_image

from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.pretraining.module import PretrainModule


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
