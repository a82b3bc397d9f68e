"""SimCLR whose loss takes one row at a time, as it does some hundreds of a batch of thousands."""

from __future__ import annotations

from torch import nn

from ssl_mednet.methods import register_method
from ssl_mednet.methods.nt_xent import NTXent
from ssl_mednet.methods.simclr import SimCLR, SimCLRConfig


@register_method("simclr_in_blocks")
class SimCLRInBlocks(SimCLR):
    def __init__(self, backbone: nn.Module, config: SimCLRConfig) -> None:
        super().__init__(backbone, config)
        self.loss = NTXent(config.temperature, at_once=1)
