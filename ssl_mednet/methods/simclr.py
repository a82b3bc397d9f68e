"""SimCLR: two views of an image attract, views of other images repel."""

from __future__ import annotations

from lightly.models.modules import SimCLRProjectionHead
from pydantic import Field
from torch import Tensor, nn

from ssl_mednet.methods.base import Batch, Method, MethodConfig, StepOutput, register_method
from ssl_mednet.methods.nt_xent import NTXent


class SimCLRConfig(MethodConfig):
    temperature: float = Field(0.2, gt=0, description="softmax temperature of the NT-Xent loss")
    hidden_dim: int = Field(512, gt=0, description="width of the projection head's hidden layers")
    num_layers: int = Field(2, ge=2, description="layers of the projection head; 3 in SimCLRv2 (arXiv 2006.10029)")
    output_dim: int = Field(128, gt=0, description="width of the projections that are compared")


@register_method("simclr")
class SimCLR(Method):
    """Contrastive: two views attract, all others repel (Chen et al. 2020, arXiv 2002.05709).

    The loss is NT-Xent, equation 1. Across processes all embeddings are gathered with their gradients, so the
    negatives are those of the global batch.
    """

    Config = SimCLRConfig
    paper = "arXiv 2002.05709"
    sees_batch = "negatives"

    def __init__(self, backbone: nn.Module, config: SimCLRConfig) -> None:
        super().__init__(backbone, config)
        self.projection_head = SimCLRProjectionHead(
            backbone.num_features, config.hidden_dim, config.output_dim, num_layers=config.num_layers
        )
        self.loss = NTXent(config.temperature)

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        return self.compare(self.embed(views, batch), batch)

    def embed(self, views: list[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        h0, h1 = self.backbone(views[0]), self.backbone(views[1])  # [B, D]
        return self.projection_head(h0), self.projection_head(h1), h0.detach()  # [B, output_dim] twice, [B, D]

    def compare(self, embedded: tuple[Tensor, ...], batch: Batch) -> StepOutput:
        z0, z1, h0 = embedded
        return StepOutput(loss=self.loss(z0, z1), embedding=h0)
