"""A method that is wrong on several processes, to show that the contract test finds it."""

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from torch import Tensor, nn

from ssl_mednet.methods import Batch, Method, MethodConfig, StepOutput, register_method


@register_method("wrong_barlow_twins")
class WrongBarlowTwins(Method):
    """Barlow Twins with the statistics of each process by itself (Zbontar et al. 2021, arXiv 2103.03230)."""

    def __init__(self, backbone: nn.Module, config: MethodConfig) -> None:
        super().__init__(backbone, config)
        self.projection_head = BarlowTwinsProjectionHead(backbone.num_features, 64, 64)
        self.loss = BarlowTwinsLoss(gather_distributed=False)

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        h0, h1 = self.backbone(views[0]), self.backbone(views[1])
        return StepOutput(loss=self.loss(self.projection_head(h0), self.projection_head(h1)), embedding=h0.detach())
