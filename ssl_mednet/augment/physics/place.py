"""Where the pixels of a view lie in their source image, for physics that is tied to the scanner and not to the crop."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_mednet.augment.ops import Params


def place_of(images: Tensor, params: Params) -> Tensor:
    """Position of every pixel in the whole source image, ``params["place"]``, or the pixel centres of the view itself.

    Returns:
        ``[B, H, W, 2]`` float32 as (x, y): 0 at the left or top edge, 1 at the right or bottom edge.
    """
    if "place" in params:
        return params["place"].float()
    count, _, height, width = images.shape
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return grid.movedim(0, -1).expand(count, -1, -1, -1)
