"""Which corruptions the images of a modality meet, and how much of each there is at each of the five severities.

The kinds follow MedMNIST-C (Di Salvo, Doerrich and Ledig 2024, arXiv 2406.17536): digital, noise, blur, color, and
what one modality alone has. For what is specific, and for modalities that it does not have (MRI, PET, endoscopy), they
are the artefacts that :mod:`ssl_mednet.augment.physics` makes; bubbles, deposits of stain, characters and black corners
are left out. Sources of the formulas stand at the ops. The amounts are ours, set on contact sheets at 64 pixels of real
images (X-ray, MRI, ultrasound, CT, blood, dermatology) and phantoms: severity 1 is barely seen, at 5 a person still
knows what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_mednet.augment.ops import Params

_CENTRAL_LINES = 64  # of k-space, during which patients move


class Frame(NamedTuple):
    """Height and width of an image, pixels."""

    height: int
    width: int

    @property
    def longer(self) -> int:
        return max(self)

    @property
    def stretch(self) -> float:
        """From a share of the longer side to a share of the width, the unit of many ops."""
        return self.longer / self.width


# From what the op has drawn, the amount of the severity and the frame to the parameters that replace the drawn ones.
Fix = Callable[[Params, float, Frame], Params]


@dataclass(frozen=True)
class Corruption:
    """An op of :data:`~ssl_mednet.augment.ops.OPS` and its amount at each severity.

    Args:
        op: its name.
        amounts: one a severity; lengths are shares of the longer side.
        fix: what the amount makes of the drawn parameters; those it does not name stay as drawn.
        settings: of the op.
        room: a parameter that is a setting too, by which the op makes room for its kernel.
        grain: the op acts on single pixels or lines of k-space, so that it wants a raster of fixed fineness.
    """

    op: str
    amounts: tuple[float, float, float, float, float]
    fix: Fix
    settings: dict[str, Any] = field(default_factory=dict)
    room: str = ""
    grain: bool = False


def _equal(*names: str) -> Fix:
    """These parameters are the amount."""
    return lambda drawn, amount, frame: {n: torch.full_like(drawn[n], amount) for n in names}


def _of_width(name: str) -> Fix:
    """A length in the op's shares of the width."""
    return lambda drawn, amount, frame: {name: torch.full_like(drawn[name], amount * frame.stretch)}


def _pixels(name: str) -> Fix:
    """A length in pixels."""
    return lambda drawn, amount, frame: {name: torch.full_like(drawn[name], amount * frame.longer)}


def _side(drawn: Tensor, middle: float = 0.0) -> Tensor:
    """-1 or 1: on which side of the middle a number was drawn."""
    return torch.where(drawn < middle, -1.0, 1.0)


def _warmth(drawn: Params, amount: float, frame: Frame) -> Params:
    """Warmer or colder light, along the daylight locus."""
    return {"warm": amount * _side(drawn["warm"]), "green": torch.zeros_like(drawn["green"])}


def _stain(drawn: Params, amount: float, frame: Frame) -> Params:
    """More or less of each dye, by the same share."""
    return {"scale": 1 + amount * _side(drawn["scale"], 1.0)}


def _window_level(drawn: Params, amount: float, frame: Frame) -> Params:
    """Up or down by a share of the window's width."""
    return {"level": amount * _side(drawn["level"]), "width": torch.ones_like(drawn["width"])}


def _window_width(drawn: Params, amount: float, frame: Frame) -> Params:
    """Wider or narrower by a factor."""
    return {"level": torch.zeros_like(drawn["level"]), "width": amount ** _side(drawn["width"], 1.0)}


def _coarseness(drawn: Params, amount: float, frame: Frame) -> Params:
    """Pixels as wide as the amount; a picture whose own are wider stays as it is."""
    return {"zoom": torch.full_like(drawn["zoom"], min(1.0, 1 / (amount * frame.longer)))}


def _truncation(drawn: Params, amount: float, frame: Frame) -> Params:
    """No waves shorter than the amount; a picture that has none stays as it is."""
    kept = min(1.0, math.sqrt(2) / (amount * frame.longer))  # of the corner's radius, sqrt(1 / 2) cycles a pixel
    return {"alpha": torch.full_like(drawn["alpha"], 2 * (1 - kept))}


def _bias(drawn: Params, amount: float, frame: Frame) -> Params:
    """Coefficients up to the amount."""
    return {"coefficients": drawn["coefficients"] * amount}


def _motion(drawn: Params, amount: float, frame: Frame) -> Params:
    """To and fro by the amount while the central lines are measured; later it would not show in a small image."""
    times = 0.5 + (drawn["times"] - 0.5) * (_CENTRAL_LINES / frame.longer)
    return {"shifts": amount * _side(drawn["shifts"]), "times": times}


def _shadow(drawn: Params, amount: float, frame: Frame) -> Params:
    """It starts in the middle of the upper half, where every field of view has echo."""
    x, y = drawn["centre"].unbind(1)
    centre = torch.stack([0.25 + 0.5 * x, 0.1 + 0.4 * y], dim=1)
    return {"centre": centre, "darkness": torch.full_like(drawn["darkness"], amount)}


def _haze(drawn: Params, amount: float, frame: Frame) -> Params:
    """A wide band at middle depth."""
    band = {"distance": 0.25 + 0.4 * drawn["distance"], "width": torch.full_like(drawn["width"], 0.12)}
    return band | {"amount": torch.full_like(drawn["amount"], amount)}


def _hairs(drawn: Params, amount: float, frame: Frame) -> Params:
    """So many of them."""
    return {"count": torch.full_like(drawn["count"], amount), "thickness": drawn["thickness"] * frame.stretch}


def _highlights(drawn: Params, amount: float, frame: Frame) -> Params:
    """Five, so many times larger than drawn."""
    grown = {n: drawn[n] * (amount * frame.stretch) for n in ("longer", "shorter")}
    return grown | {"count": torch.full_like(drawn["count"], 5)}


CORRUPTIONS: dict[str, Corruption] = {
    # Digital. Resolution: the width of a pixel. The blocks of JPEG are 8 samples of the raster.
    "jpeg": Corruption("jpeg", (35, 24, 16, 11, 8), _equal("quality"), grain=True),
    "low_resolution": Corruption("low_resolution", (1 / 54, 1 / 44, 1 / 35, 1 / 27, 1 / 20), _coarseness),
    # Noise: deviation, of Poisson noise that at full brightness, of speckle the relative one; "grain": 1 / counts.
    "gaussian_noise": Corruption("gaussian_noise", (0.03, 0.06, 0.1, 0.15, 0.22), _equal("sigma"), grain=True),
    "rician_noise": Corruption("rician_noise", (0.03, 0.05, 0.08, 0.11, 0.15), _equal("sigma"), grain=True),
    "low_dose": Corruption("poisson_dose", (0.04, 0.08, 0.13, 0.19, 0.27), _equal("sigma"), grain=True),
    "low_counts": Corruption("count_thinning", (0.03, 0.07, 0.13, 0.24, 0.45), _equal("grain"), grain=True),
    "speckle": Corruption("speckle", (0.1, 0.17, 0.25, 0.35, 0.46), _equal("contrast"), grain=True),
    "oct_speckle": Corruption("oct_speckle", (0.18, 0.27, 0.38, 0.52, 0.7), _equal("contrast"), grain=True),
    # Blur: deviation, radius, length, full width at half maximum.
    "gaussian_blur": Corruption("gaussian_blur", (0.008, 0.012, 0.017, 0.023, 0.03), _pixels("sigma"), room="sigma"),
    "defocus": Corruption("defocus", (0.016, 0.022, 0.029, 0.037, 0.047), _of_width("radius"), room="radius"),
    "motion_blur": Corruption("motion_blur", (0.035, 0.06, 0.09, 0.13, 0.18), _of_width("length"), room="length"),
    "point_spread": Corruption("point_spread", (0.025, 0.04, 0.055, 0.075, 0.1), _of_width("fwhm"), room="fwhm"),
    # Brightness, contrast, color: factors; equal ones of brightness and contrast are a plain gain, as of exposure.
    "brightness_up": Corruption(
        "brightness_contrast", (1.08, 1.16, 1.26, 1.38, 1.55), _equal("brightness", "contrast")
    ),
    "brightness_down": Corruption(
        "brightness_contrast", (0.87, 0.74, 0.61, 0.48, 0.35), _equal("brightness", "contrast")
    ),
    "contrast_down": Corruption(
        "brightness_contrast", (0.8, 0.66, 0.53, 0.4, 0.28), _equal("contrast"), {"brightness": 0}
    ),
    "gamma_up": Corruption("gamma", (1.15, 1.35, 1.65, 2.05, 2.6), _equal("gamma")),
    "gamma_down": Corruption("gamma", (0.87, 0.74, 0.61, 0.49, 0.38), _equal("gamma")),
    "gain_up": Corruption("gain", (1.12, 1.28, 1.48, 1.72, 2.0), _equal("gain")),
    "gain_down": Corruption("gain", (0.83, 0.7, 0.57, 0.45, 0.34), _equal("gain")),
    "window_level": Corruption("random_window", (0.07, 0.13, 0.2, 0.27, 0.35), _window_level),
    "window_width": Corruption("random_window", (1.2, 1.45, 1.8, 2.3, 3.0), _window_width),
    "illuminant_shift": Corruption("illuminant_jitter", (0.05, 0.1, 0.15, 0.21, 0.28), _warmth),
    "stain_shift": Corruption("stain_jitter", (0.15, 0.28, 0.42, 0.56, 0.7), _stain, {"bias": 0}),
    "vignette": Corruption("vignette", (0.3, 0.5, 0.65, 0.8, 0.9), _equal("falloff")),
    # Of one modality.
    "bias_field": Corruption("bias_field", (0.2, 0.4, 0.65, 0.95, 1.3), _bias, {"coefficient": 1}),
    "ghosting": Corruption("ghosting", (0.2, 0.4, 0.6, 0.8, 1.0), _equal("intensity"), {"ghosts": (2, 3)}, grain=True),
    "motion": Corruption("motion", (0.004, 0.008, 0.013, 0.02, 0.028), _motion, {"events": 4}),
    "gibbs_ringing": Corruption("gibbs_ringing", (1 / 26, 1 / 21, 1 / 17, 1 / 14, 1 / 11), _truncation),
    "depth_attenuation": Corruption("depth_attenuation", (0.4, 0.8, 1.3, 1.9, 2.6), _equal("rate")),
    "shadow": Corruption("gaussian_shadow", (0.3, 0.5, 0.65, 0.8, 0.95), _shadow),
    "haze": Corruption("haze", (0.1, 0.2, 0.32, 0.47, 0.65), _haze, grain=True),
    "hair": Corruption("hair", (1, 2, 4, 6, 8), _hairs),
    "specular_highlights": Corruption("specular_highlights", (0.7, 1.0, 1.4, 1.9, 2.5), _highlights),
}

_EXPOSURE = ("brightness_up", "brightness_down")
_ANY = ("gaussian_noise", "gaussian_blur", "low_resolution", "jpeg", *_EXPOSURE, "contrast_down")
_FILM = ("low_dose", "gaussian_noise", "gaussian_blur", "low_resolution")
_CELLS = ("defocus", "gaussian_noise", *_EXPOSURE, "contrast_down", "illuminant_shift")
OF_MODALITY: dict[str, tuple[str, ...]] = {
    "generic_gray": _ANY,
    "generic_color": _ANY,
    "xray": (*_FILM, "gamma_up", "gamma_down", "contrast_down"),
    "ct": ("gaussian_noise", "gaussian_blur", "low_resolution", "window_level", "window_width"),
    "mri": ("rician_noise", "low_resolution", "bias_field", "ghosting", "motion", "gibbs_ringing"),
    "ultrasound": ("speckle", "gaussian_blur", "depth_attenuation", "shadow", "haze", "gain_up", "gain_down"),
    "pet": ("low_counts", "point_spread", "motion_blur", "low_resolution"),
    "oct": ("oct_speckle", "gaussian_blur", "motion_blur", "low_resolution", "contrast_down"),
    "histopathology": ("stain_shift", *_EXPOSURE, "contrast_down", "defocus", "jpeg"),
    "cytology": _CELLS,
    "blood": _CELLS,
    "dermatology": ("hair", "illuminant_shift", *_EXPOSURE, "defocus", "gaussian_noise", "jpeg"),
    "photo": ("illuminant_shift", *_EXPOSURE, "defocus", "motion_blur", "gaussian_noise", "jpeg"),
    "fundus": ("vignette", "illuminant_shift", *_EXPOSURE, "contrast_down", "defocus", "gaussian_noise"),
    "endoscopy": ("specular_highlights", "motion_blur", "defocus", *_EXPOSURE, "jpeg"),
}
