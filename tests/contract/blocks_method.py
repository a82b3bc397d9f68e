"""SimCLR as it is with a batch of thousands: its loss a row at a time, its net a chunk at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.methods import Batch, StepOutput, register_method
from ssl_mednet.methods.nt_xent import NTXent
from ssl_mednet.methods.simclr import SimCLR, SimCLRConfig
from ssl_mednet.pretraining.chunks import step_in_chunks

CHUNK = 3  # of 4 or 8 images a process


@register_method("simclr_in_blocks")
class SimCLRInBlocks(SimCLR):
    def __init__(self, backbone: nn.Module, config: SimCLRConfig) -> None:
        super().__init__(backbone, config)
        self.loss = NTXent(config.temperature, at_once=1)


@register_method("simclr_in_chunks")
class SimCLRInChunks(SimCLRInBlocks):
    """Without BatchNorm, which sees a chunk."""

    backbone_kinds = frozenset({"vit"})

    def __init__(self, backbone: nn.Module, config: SimCLRConfig) -> None:
        super().__init__(backbone, config)
        width, hidden, out = backbone.num_features, config.hidden_dim, config.output_dim
        self.projection_head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        def prepare(images: ImageBatch) -> tuple[list[Tensor], Batch]:
            return [view[images.rows] for view in views], replace(batch, rows=batch.rows[images.rows])

        count = len(batch.rows)
        pixels, sizes, window = torch.zeros(count, 1, 1, 1), torch.ones(count, 2), torch.ones(count, 2)
        images = ImageBatch(pixels, sizes, window, batch.modality, torch.arange(count))
        return step_in_chunks(self, images, CHUNK, prepare, batch)
