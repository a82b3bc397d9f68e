"""SimSiam as a plug-in: one file in a package of its own; ssl_mednet is not touched."""

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from pydantic import Field
from torch import Tensor, nn

from ssl_mednet.methods import Batch, Method, MethodConfig, StepOutput, register_method


class SimSiamConfig(MethodConfig):
    hidden_dim: int = Field(256, gt=0, description="width of the projection head")
    output_dim: int = Field(256, gt=0, description="width of the projections")


@register_method("simsiam")
class SimSiam(Method):
    """Two views predict each other, with a stopped gradient (Chen and He 2021, arXiv 2011.10566)."""

    Config = SimSiamConfig
    paper = "arXiv 2011.10566"

    def __init__(self, backbone: nn.Module, config: SimSiamConfig) -> None:
        super().__init__(backbone, config)
        self.projection_head = SimSiamProjectionHead(backbone.num_features, config.hidden_dim, config.output_dim)
        self.prediction_head = SimSiamPredictionHead(config.output_dim, config.hidden_dim // 4, config.output_dim)
        self.loss = NegativeCosineSimilarity()

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        h0, h1 = self.backbone(views[0]), self.backbone(views[1])
        z0, z1 = self.projection_head(h0), self.projection_head(h1)
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        loss = (self.loss(p0, z1.detach()) + self.loss(p1, z0.detach())) / 2
        return StepOutput(loss=loss, embedding=h0.detach())
