"""What may happen to an image: a geometry, a list of intensity ops, one strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kornia.augmentation import IntensityAugmentationBase2D

from ssl_mednet.augment.geometry import Geometry
from ssl_mednet.augment.intensity import BrightnessContrast, ColorJitter, Gamma, GaussianBlur, GaussianNoise
from ssl_mednet.imaging.modality import MODALITIES
from ssl_mednet.registry import Registry


@dataclass(frozen=True)
class Policy:
    """How the images of a modality are augmented.

    Args:
        geometry: flips, turns and their ranges; the crop is the method's.
        ops: intensity augmentations in the order in which they act, on ``[B, C, H, W]`` in [0, 1].
        channels: the images it is for, ``"gray"``, ``"color"`` or ``"any"``.
    """

    geometry: Geometry
    ops: list[IntensityAugmentationBase2D] = field(default_factory=list)
    channels: str = "any"


# A policy is registered as a function of the strength: 0 leaves the crop only, 1 is the default.
PolicyMaker = Callable[[float], Policy]
POLICIES: Registry[PolicyMaker] = Registry("policy", builtin=("ssl_mednet.augment.policy",))
BY_MODALITY = "by_modality"


@POLICIES.register("generic_gray")
def generic_gray(strength: float) -> Policy:
    """Gray images of unstated origin: crop, mirror, small turns, brightness, contrast, gamma, blur, noise."""
    return Policy(
        Geometry(horizontal_flip=0.5, rotate=15, translate=0.05, zoom=0.1, probability=0.5).scaled(strength),
        [
            BrightnessContrast(0.4, 0.4, p=0.8, strength=strength),
            Gamma(0.5, p=0.3, strength=strength),
            GaussianBlur(0.8, p=0.3, strength=strength),
            GaussianNoise(0.08, p=0.3, strength=strength),
        ],
        channels="gray",
    )


@POLICIES.register("generic_color")
def generic_color(strength: float) -> Policy:
    """Color images of unstated origin: crop, mirror, any quarter turn, brightness, contrast, little color, blur."""
    return Policy(
        Geometry(horizontal_flip=0.5, quarter_turns=True, rotate=15, probability=0.5, fill="reflect").scaled(strength),
        [
            BrightnessContrast(0.4, 0.4, p=0.8, strength=strength),
            ColorJitter(0.2, 0.02, p=0.5, strength=strength),
            GaussianBlur(0.8, p=0.3, strength=strength),
            GaussianNoise(0.05, p=0.2, strength=strength),
        ],
        channels="color",
    )


def policy_name(chosen: str, modality: str) -> str:
    """The policy for an image of ``modality`` when the recipe says ``chosen``: its own, or the generic of its kind."""
    if chosen != BY_MODALITY:
        return chosen
    return modality if modality in POLICIES else f"generic_{MODALITIES[modality].channels}"
