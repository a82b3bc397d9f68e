"""Corruptions for the robustness protocol: an augmentation whose amount is set by a severity instead of drawn.

What is drawn (where noise, shadows and hairs lie, which of two directions) is the same at all severities, so that they
differ in the amount alone; see :mod:`ssl_mednet.augment.severities` for what there is of what.

A severity means the same whatever the size at which an image is stored, for it is resized before a network sees it.
Lengths are shares of the image's longer side. What acts on single pixels (noise, speckle, JPEG) is done on a raster of
:data:`RASTER` samples along the longer side and the change carried over to the image, which keeps its own detail.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.augment.ops import MASKS, Params, RowOp, create_op
from ssl_mednet.augment.physics.ct import RandomWindow
from ssl_mednet.augment.policy import BY_MODALITY, POLICIES, policy_name
from ssl_mednet.augment.severities import CORRUPTIONS, OF_MODALITY, Corruption, Frame
from ssl_mednet.draws import Draws
from ssl_mednet.errors import RecipeError, did_you_mean
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import BY_CODE, modality

SEVERITIES = (1, 2, 3, 4, 5)
# At 64 pixels white noise of this raster has 0.41 to 0.44 of its deviation, whether stored at 64 or 384; a raster of 64
# would have 1 and 0.58.
RASTER = 96


def corruptions_of(name: str) -> tuple[str, ...]:
    """Names of the corruptions that images of a modality meet.

    Raises:
        DataError: no such modality.
    """
    return OF_MODALITY[modality(name).name]


@torch.no_grad()
def corrupt(batch: ImageBatch, name: str, severity: int, seed: int = 0) -> Tensor:
    """The images of a batch, corrupted, each at its own size; the caller chooses by the modality of its rows.

    Every row is corrupted by itself: its result depends, to the bit, on its image, its number, the severity and the
    seed only. Outside the mask of its modality's policy (the fan of ultrasound, the disc of a fundus photograph)
    nothing changes. Windows move on the stored values of rows that hold Hounsfield units, on the finished picture of
    others. A picture that has no more detail than a severity of ``low_resolution`` or ``gibbs_ringing`` leaves stays as
    it is; so do the first severities of both at 28 pixels.

    Args:
        name: one of :data:`~ssl_mednet.augment.severities.CORRUPTIONS`; see :func:`corruptions_of`.
        severity: one of :data:`SEVERITIES`.
        seed: another seed, other noise and other places.

    Returns:
        ``[B, C, H, W]`` float32 in [0, 1] on the batch's canvas, the border of each image repeated beyond it.

    Raises:
        RecipeError: no such corruption or severity, or a corruption of color for gray images.
    """
    corruption = _find(name, severity, batch.pixels.shape[1])
    op = _op(corruption)
    draws = Draws(seed, 0, batch.rows, f"corruption/{name}", batch.pixels.device)
    u = draws.uniform("drawn", op.numbers)
    out = torch.empty(batch.pixels.shape, device=batch.pixels.device)
    with torch.autocast(batch.pixels.device.type, enabled=False):
        for i, (height, width) in enumerate(batch.sizes.tolist()):
            frame = Frame(height, width)
            drawn = op.parameters_from(u[i : i + 1])
            params = drawn | corruption.fix(drawn, corruption.amounts[severity - 1], frame)
            changed = _corrupted(corruption, _cut_out(batch, i, frame), params, frame)
            beyond = (0, out.shape[3] - width, 0, out.shape[2] - height)
            out[i] = F.pad(changed, beyond, mode="replicate")[0]
    return out


def _find(name: str, severity: int, channels: int) -> Corruption:
    if name not in CORRUPTIONS:
        near = did_you_mean(name, CORRUPTIONS)
        raise RecipeError(f"unknown corruption {name!r}", f"{near} known: {', '.join(CORRUPTIONS)}".strip())
    if severity not in SEVERITIES:
        raise RecipeError(f"corruption {name!r} has severities {SEVERITIES[0]} to {SEVERITIES[-1]}, not {severity!r}")
    if channels != 3 and _op(CORRUPTIONS[name]).color_only:
        raise RecipeError(f"corruption {name!r} acts on color, these images are gray")
    return CORRUPTIONS[name]


def _op(corruption: Corruption, settings: dict[str, float] | None = None) -> RowOp:
    op = create_op(corruption.op, corruption.settings | (settings or {}), strength=1.0)
    assert isinstance(op, RowOp)
    return op


def _cut_out(batch: ImageBatch, row: int, frame: Frame) -> ImageBatch:
    """One row on a canvas of its own size, in memory of its own: not even the order of a sum depends on the batch."""
    one = batch.take(torch.tensor([row]))
    pixels = one.pixels[:, :, : frame.height, : frame.width].contiguous()
    return ImageBatch(pixels, one.sizes, one.window, one.modality, one.rows)


def _corrupted(corruption: Corruption, one: ImageBatch, params: Params, frame: Frame) -> Tensor:
    """``[1, C, H, W]`` of a batch of one image."""
    room = {corruption.room: float(params[corruption.room])} if corruption.room else {}
    op = _op(corruption, room)
    image = one.unit()
    if isinstance(op, RandomWindow) and bool(one.hounsfield):
        window = op.change_window(one.window, params)
        return ImageBatch(one.pixels, one.sizes, window, one.modality, one.rows).unit()
    changed = _on_raster(op, image, params, frame) if corruption.grain else op.change(image, params)
    mask = POLICIES.get(policy_name(BY_MODALITY, BY_CODE[int(one.modality)].name)).mask
    if mask:
        return torch.where(MASKS.get(mask)(image, one.sizes) > 0, changed, image)
    return changed


def _on_raster(op: RowOp, image: Tensor, params: Params, frame: Frame) -> Tensor:
    scale = RASTER / frame.longer
    coarse = Frame(max(1, round(frame.height * scale)), max(1, round(frame.width * scale)))
    raster = _resized(image, coarse).clamp(0, 1)
    return (image + _resized(op.change(raster, params) - raster, frame)).clamp(0, 1)


def _resized(images: Tensor, frame: Frame) -> Tensor:
    """Linear and antialiased where it shrinks, as :func:`~ssl_mednet.augment.views.resize`; cubic, which keeps more of
    the grain, where it grows."""
    if tuple(images.shape[-2:]) == frame:
        return images
    mode = "bicubic" if frame.longer > max(images.shape[-2:]) else "bilinear"
    return F.interpolate(images, tuple(frame), mode=mode, antialias=True, align_corners=False)
