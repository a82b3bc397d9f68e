"""Pictures of one modality, as many as are wanted."""

from __future__ import annotations

import numpy as np

from ssl_mednet.imaging.phantoms import phantom

SIDE = 48


def xray(number: int, dark: bool = False) -> np.ndarray:
    """``[48, 48]`` uint8; every fifth gray phantom is an X-ray."""
    image = phantom("gray", 5 * number, SIDE, 1).image
    assert image.modality == "xray"
    return (image.unit()[..., 0] * (140 if dark else 255)).astype(np.uint8)
