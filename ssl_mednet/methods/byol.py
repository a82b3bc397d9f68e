"""BYOL: the student predicts the projections of a slow-moving teacher; no negatives."""

from __future__ import annotations

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from pydantic import Field
from torch import Tensor, nn

from ssl_mednet.methods.base import Batch, Method, MethodConfig, StepOutput, copy_of, register_method


class BYOLConfig(MethodConfig):
    momentum: float = Field(0.99, ge=0, lt=1, description="EMA momentum of the teacher at the start; rises to 1")
    hidden_dim: int = Field(1024, gt=0, description="width of the heads' hidden layers")
    output_dim: int = Field(256, gt=0, description="width of the projections that are compared")


@register_method("byol")
class BYOL(Method):
    """Self-distillation: predict a slow teacher, no negatives (Grill et al. 2020, arXiv 2006.07733).

    The loss is equation 2, symmetrised; the moving average, equation 1, is over parameters. The teacher's BatchNorm
    layers run in training mode, as in the paper: they normalise by the batch, and their running statistics follow the
    teacher's own activations, so they fit the teacher's weights; they are never averaged with the student's.
    """

    Config = BYOLConfig
    paper = "arXiv 2006.07733"

    def __init__(self, backbone: nn.Module, config: BYOLConfig) -> None:
        super().__init__(backbone, config)
        self.projection_head = BYOLProjectionHead(backbone.num_features, config.hidden_dim, config.output_dim)
        self.prediction_head = BYOLPredictionHead(config.output_dim, config.hidden_dim, config.output_dim)
        self.teacher_backbone = copy_of(backbone)
        self.teacher_projection_head = copy_of(self.projection_head)
        self.loss = NegativeCosineSimilarity()

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        h0, h1 = self.backbone(views[0]), self.backbone(views[1])  # [B, D]
        p0 = self.prediction_head(self.projection_head(h0))  # [B, output_dim]
        p1 = self.prediction_head(self.projection_head(h1))
        with torch.no_grad():
            t0 = self.teacher_projection_head(self.teacher_backbone(views[0]))
            t1 = self.teacher_projection_head(self.teacher_backbone(views[1]))
        loss = self.loss(p0, t1) + self.loss(p1, t0)  # in [-2, 2]; equation 2 is twice this plus 4
        return StepOutput(loss=loss, metrics={"teacher_agreement": -loss.detach() / 2}, embedding=h0.detach())

    def after_step(self, progress: float) -> None:
        momentum = cosine_schedule(round(progress * 10_000), 10_000, self.config.momentum, 1.0)
        update_momentum(self.backbone, self.teacher_backbone, momentum)
        update_momentum(self.projection_head, self.teacher_projection_head, momentum)
