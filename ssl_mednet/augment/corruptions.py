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

    What becomes of a row depends on its image, its number, the severity and the seed only, up to rounding. Outside the
    mask of its modality's policy (the fan of ultrasound, the disc of a fundus photograph) nothing changes. Windows move
    on the stored values of rows that hold Hounsfield units, on the finished picture of others. A picture that has no
    more detail than a severity of ``low_resolution`` or ``gibbs_ringing`` leaves stays as it is; so do the first
    severities of both at 28 pixels.

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
        for index in _alike(batch):
            height, width = batch.sizes[index[0]].tolist()
            frame = Frame(height, width)
            drawn = op.parameters_from(u[index.to(u.device)])
            params = drawn | corruption.fix(drawn, corruption.amounts[severity - 1], frame)
            changed = _corrupted(corruption, _cut_out(batch, index, frame), params, frame)
            beyond = (0, out.shape[3] - width, 0, out.shape[2] - height)
            out[index.to(out.device)] = F.pad(changed, beyond, mode="replicate")
    return out


def _alike(batch: ImageBatch) -> list[Tensor]:
    """Rows ``[K]`` (on the CPU) of one size, modality and kind of stored value, which are done together."""
    kind = torch.cat([batch.sizes.cpu(), batch.modality[:, None], batch.hounsfield.cpu()[:, None]], dim=1)
    _, group = torch.unique(kind, dim=0, return_inverse=True)
    return [(group == number).nonzero()[:, 0] for number in range(int(group.max()) + 1)]


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


def _cut_out(batch: ImageBatch, index: Tensor, frame: Frame) -> ImageBatch:
    """Rows of one size on a canvas of their own size."""
    some = batch.take(index)
    pixels = some.pixels[:, :, : frame.height, : frame.width].contiguous()
    return ImageBatch(pixels, some.sizes, some.window, some.modality, some.rows)


def _corrupted(corruption: Corruption, some: ImageBatch, params: Params, frame: Frame) -> Tensor:
    """``[K, C, H, W]`` of rows of one size, modality and kind of stored value."""
    room = {corruption.room: float(params[corruption.room].max())} if corruption.room else {}
    op = _op(corruption, room)
    if isinstance(op, RandomWindow) and bool(some.hounsfield.all()):
        window = op.change_window(some.window, params)
        return ImageBatch(some.pixels, some.sizes, window, some.modality, some.rows).unit()
    images = some.unit()
    changed = _on_raster(op, images, params, frame) if corruption.grain else op.change(images, params)
    mask = POLICIES.get(policy_name(BY_MODALITY, BY_CODE[int(some.modality[0])].name)).mask
    if mask:
        return torch.where(MASKS.get(mask)(images, some.sizes) > 0, changed, images)
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
