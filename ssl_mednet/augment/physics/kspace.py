"""Artefacts of magnetic resonance that arise in k-space: truncation, ghosts, motion. They act on the whole image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, register_op

_CENTRE = 0.02  # share of the lines, about zero frequency, that ghosts leave alone (as in TorchIO)
_MAX_EVENTS = 4


@register_op("gibbs_ringing")
class GibbsRinging(RowOp):
    """K-space cut off beyond ``1 - alpha / 2`` of its corner's radius, alpha uniform in [0, alpha]; magnitude shown.

    Morelli et al. 2011 on truncation artefacts; the range is that of MONAI's GibbsNoise up to its half.
    """

    numbers = 1
    stage = "source"

    def __init__(self, alpha: float = 1.0, p: float = 0.1, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.alpha = alpha * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"alpha": u[:, 0] * self.alpha}

    def change(self, images: Tensor, params: Params) -> Tensor:
        fy, fx = _frequencies(images)
        kept = (1 - params["alpha"].float() / 2) * math.sqrt(0.5)
        radius = torch.hypot(fy[:, None], fx)
        return _filtered(images, (radius <= kept[:, None, None] + 1e-6).float())


@register_op("ghosting")
class Ghosting(RowOp):
    """Every g-th line of k-space along one of two axes times ``1 - intensity``: faint copies, 1 / g of the field apart.

    A copy has at most ``intensity / g`` of the signal. The central lines are kept, and so is the mean.
    As TorchIO's RandomGhosting (Perez-Garcia et al. 2021).

    Args:
        ghosts: smallest and largest g, drawn evenly.
        intensity: largest; drawn uniform in [intensity / 2, intensity].
    """

    numbers = 3
    stage = "source"

    def __init__(
        self, ghosts: tuple[int, int] = (4, 10), intensity: float = 1.0, p: float = 0.1, strength: float = 1.0
    ) -> None:
        super().__init__(p, strength)
        self.ghosts, self.intensity = ghosts, intensity * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "ghosts": between(u[:, 0], self.ghosts[0], self.ghosts[1] + 1).floor(),
            "intensity": between(u[:, 1], self.intensity / 2, self.intensity),
            "vertical": u[:, 2] < 0.5,
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        vertical = params["vertical"][:, None]
        fy, fx = _frequencies(images)
        rows = self._lines(fy, images.shape[2], params).masked_fill(~vertical, 1)
        columns = self._lines(fx, images.shape[3], params).masked_fill(vertical, 1)
        return _filtered(images, rows[:, :, None] * columns[:, None, :])

    @staticmethod
    def _lines(frequency: Tensor, size: int, params: Params) -> Tensor:
        line = (frequency * size).round()
        struck = (line.remainder(params["ghosts"].float()[:, None]) == 0) & (line.abs() > size * _CENTRE / 2)
        return 1 - params["intensity"].float()[:, None] * struck


@register_op("motion")
class Motion(RowOp):
    """The patient moves during the acquisition: segments of k-space lines come from shifted copies; magnitude shown.

    Lines are measured from one edge of k-space to the other along one of two axes; before each event they belong to one
    position, after it to another. The position at the central line counts as none, so that the anatomy stays in place.
    Shaw et al. 2019, with translations only: a shift is a phase ramp.

    Args:
        translation: largest shift along each axis, share of the field.
        events: movements during the acquisition, at most 4, at uniform times.
    """

    numbers = 1 + 3 * _MAX_EVENTS
    stage = "source"

    def __init__(self, translation: float = 0.03, events: int = 2, p: float = 0.1, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        if not 1 <= events <= _MAX_EVENTS:
            raise ValueError(f"Motion has 1 to {_MAX_EVENTS} events, not {events}")
        self.translation, self.events = translation * strength, events

    def parameters_from(self, u: Tensor) -> Params:
        shifts = u[:, 1 + _MAX_EVENTS :][:, : 2 * self.events].unflatten(1, (self.events, 2))
        return {
            "vertical": u[:, 0] < 0.5,
            "times": u[:, 1 : 1 + self.events].sort(dim=1).values,
            "shifts": between(shifts, -self.translation, self.translation),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        times, shifts = params["times"].float(), params["shifts"].float()
        start = torch.cat([torch.zeros_like(times[:, :1]), times], dim=1)[:, :, None]
        end = torch.cat([times, torch.ones_like(times[:, :1])], dim=1)[:, :, None]
        position = torch.cat([torch.zeros_like(shifts[:, :1]), shifts], dim=1)  # [B, segments, 2]
        central = (start <= 0.5) & (end > 0.5)
        position = position - (position * central).sum(dim=1, keepdim=True)
        vertical = params["vertical"][:, None, None]
        ramps = []
        for dim, along in ((2, vertical), (3, ~vertical)):
            size = images.shape[dim]
            frequency = torch.fft.fftfreq(size, device=images.device)
            angle = -2 * math.pi * size * frequency * position[:, :, 3 - dim, None]
            measured = (start <= frequency + 0.5) & (end > frequency + 0.5)  # [B, segments, lines]
            ramps.append(torch.polar((measured | ~along).float(), angle))
        # Segments as the inner dimension: of the products of ramps, each line keeps that of its own segment.
        phase = ramps[0].mT @ ramps[1]
        moved = torch.fft.ifft2(torch.fft.fft2(images.float()) * phase[:, None])
        return moved.abs().clamp(max=1).to(images.dtype)


def _frequencies(images: Tensor) -> tuple[Tensor, Tensor]:
    """Along y and x, cycles a pixel, of a real image's spectrum."""
    height, width = images.shape[-2:]
    return torch.fft.fftfreq(height, device=images.device), torch.fft.rfftfreq(width, device=images.device)


def _filtered(images: Tensor, weights: Tensor) -> Tensor:
    """The magnitude, clipped at 1, after real, symmetric ``[B, H, W // 2 + 1]`` weights of the spectrum."""
    spectrum = torch.fft.rfft2(images.float()) * weights[:, None]
    return torch.fft.irfft2(spectrum, s=images.shape[-2:]).abs().clamp(max=1).to(images.dtype)
