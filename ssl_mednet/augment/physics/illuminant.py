"""Colour of the light in a photograph: lamps and daylight differ, and no camera takes it out entirely."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, register_op

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Log gains of R, G, B per unit: warm against cold light, and green against magenta (fluorescent tubes, filters).
_WARM, _GREEN = (1.0, 0.0, -1.0), (-0.5, 1.0, -0.5)


@register_op("illuminant_jitter")
class IlluminantJitter(RowOp):
    """Gains of the three channels (von Kries) along the daylight locus, and less so across it; luma of gray is kept.

    ``x_c * g_c / sum(w g)``, ``log g = warm (1, 0, -1) + green (-1/2, 1, -1/2)``, warm uniform in [-range, range],
    green in a fifth of that, w the BT.601 luma weights. Black-body light seen through sRGB moves along nearly this
    line: 5000 K is warm = +0.11, 10000 K is -0.12, 4000 K is +0.22 (gains of gamma-coded values). The gain is the one
    that shades of gray (Finlayson and Trezzi 2004) estimates and Barata et al. 2015 take out of dermoscopy.

    Args:
        log_gain: range of warm.
    """

    numbers = 2
    color_only = True

    def __init__(self, log_gain: float = 0.1, p: float = 0.5, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.warm = log_gain * strength
        self.green = self.warm / 5

    def parameters_from(self, u: Tensor) -> Params:
        return {"warm": between(u[:, 0], -self.warm, self.warm), "green": between(u[:, 1], -self.green, self.green)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        gains = torch.exp(
            params["warm"].float()[:, None] * torch.tensor(_WARM, device=images.device)
            + params["green"].float()[:, None] * torch.tensor(_GREEN, device=images.device)
        )
        gains = gains / (gains @ torch.tensor(_LUMA, device=images.device))[:, None]
        return (images * gains.to(images.dtype)[:, :, None, None]).clamp_(0, 1)
