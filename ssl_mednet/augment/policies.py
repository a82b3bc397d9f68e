"""The policies that ship: what is physically sensible for each modality, and the common set that has to be beaten.

Ranges follow the literature named at each; where it has none they are ours, to be checked by the strength sweep
(``eval/README.md``). Facts that hold for all: what the quantity means decides which intensity ops are allowed, and what
a side or a layer order means decides which flips are.
"""

from __future__ import annotations

from typing import Any

from ssl_mednet.augment.policy import Policy, register_policy

_BLUR: dict[str, Any] = {"sigma": 0.8, "p": 0.3}


@register_policy("generic_gray")
def generic_gray() -> Policy:
    """Gray images of unstated origin: mirror, small turns, brightness, contrast, gamma, blur, noise."""
    ops = {
        "brightness_contrast": {"brightness": 0.4, "contrast": 0.4, "p": 0.8},
        "gamma": {"gamma": 0.5, "p": 0.3},
        "gaussian_blur": _BLUR,
        "gaussian_noise": {"sigma": 0.08, "p": 0.3},
    }
    return Policy.of("gray", "lateral", "relative", ops, rotate=15, translate=0.05, zoom=0.1, probability=0.5)


@register_policy("generic_color")
def generic_color() -> Policy:
    """Color images of unstated origin: any flip and turn, brightness, contrast, little color, blur, noise."""
    ops = {
        "brightness_contrast": {"brightness": 0.4, "contrast": 0.4, "p": 0.8},
        "color_jitter": {"saturation": 0.2, "hue": 0.02, "p": 0.5},
        "gaussian_blur": _BLUR,
        "gaussian_noise": {"sigma": 0.05, "p": 0.2},
    }
    return Policy.of("color", "free", "color", ops, rotate=15, probability=0.5, fill="reflect")


@register_policy("natural_gray")
def natural_gray() -> Policy:
    """The common SimCLR set on gray images: mirror, brightness, contrast, blur (arXiv 2002.05709, appendix A)."""
    ops = {
        "brightness_contrast": {"brightness": 0.8, "contrast": 0.8, "p": 0.8},
        "gaussian_blur": {"sigma": 1.0, "p": 0.5},
    }
    return Policy.of("gray", "lateral", "natural", ops)


@register_policy("natural_color")
def natural_color() -> Policy:
    """The common SimCLR set: mirror, strong color jitter, grayscale, blur (arXiv 2002.05709, appendix A)."""
    ops = {
        "brightness_contrast": {"brightness": 0.8, "contrast": 0.8, "p": 0.8},
        "color_jitter": {"saturation": 0.8, "hue": 0.2, "p": 0.8},
        "grayscale": {"p": 0.2},
        "gaussian_blur": {"sigma": 1.0, "p": 0.5},
    }
    return Policy.of("color", "lateral", "natural", ops)


@register_policy("xray")
def xray() -> Policy:
    """Radiographs: no flip (the side is information), small turns, exposure, gamma, photon noise, blur."""
    ops = {
        "brightness_contrast": {"brightness": 0.4, "contrast": 0.4, "p": 0.8},
        "gamma": {"gamma": 0.5, "p": 0.5},
        "gaussian_blur": _BLUR,
        "poisson_dose": {"p": 0.3},
    }
    ranges = {"rotate": 15, "translate": 0.1, "zoom": 0.05, "probability": 0.5}
    return Policy.of("gray", "none", "relative", ops, crop=0.2, **ranges)


@register_policy("ct")
def ct() -> Policy:
    """Computed tomography: another window on the Hounsfield units, mild blur and noise; never brightness or gamma."""
    ops = {
        "random_window": {"level": 0.25, "width": 0.6, "p": 0.8},
        "gaussian_blur": {"sigma": 0.6, "p": 0.3},
        "gaussian_noise": {"sigma": 0.1, "p": 0.5},
    }
    return Policy.of("gray", "none", "quantitative", ops, rotate=15, zoom=0.1, probability=0.5)


@register_policy("mri")
def mri() -> Policy:
    """Magnetic resonance: bias field, Rician noise, ringing, ghosts and motion in k-space, gamma, resolution."""
    ops = {
        "gibbs_ringing": {"p": 0.1},
        "ghosting": {"p": 0.1},
        "motion": {"p": 0.1},
        "bias_field": {"coefficient": 0.5, "p": 0.3},
        "brightness_contrast": {"brightness": 0.25, "contrast": 0.25, "p": 0.5},
        "gamma": {"gamma": 0.5, "p": 0.3},
        "low_resolution": {"zoom": 0.5, "p": 0.1},
        "gaussian_blur": {"sigma": 1.0, "p": 0.2},
        "rician_noise": {"sigma": 0.1, "p": 0.2},
    }
    return Policy.of("gray", "lateral", "relative", ops, rotate=15, zoom=0.1, probability=0.5)


@register_policy("ultrasound")
def ultrasound() -> Policy:
    """B-mode: attenuation with depth, shadow, haze, speckle and gain, inside the fan only; never upside down."""
    ops = {
        "depth_attenuation": {"p": 0.4},
        "gaussian_shadow": {"p": 0.3},
        "haze": {"p": 0.2},
        "gain": {"p": 0.5},
        "brightness_contrast": {"brightness": 0.3, "contrast": 0.3, "p": 0.5},
        "speckle": {"p": 0.4},
        "gaussian_blur": _BLUR,
    }
    return Policy.of("gray", "lateral", "relative", ops, mask="fan", rotate=15, zoom=0.1, probability=0.5)


@register_policy("pet")
def pet() -> Policy:
    """Emission tomography: fewer counts and a wider point spread; uptake is a quantity: no brightness, no gamma."""
    ops: dict[str, dict[str, Any]] = {"point_spread": {"p": 0.3}, "count_thinning": {"p": 0.5}}
    return Policy.of("gray", "none", "quantitative", ops, rotate=10, translate=0.05, zoom=0.05, probability=0.5)


@register_policy("oct")
def oct() -> Policy:
    """Optical coherence tomography: speckle, contrast, blur; mirrored but never upside down (the order of layers)."""
    ops = {
        "brightness_contrast": {"brightness": 0.3, "contrast": 0.4, "p": 0.8},
        "gaussian_blur": {"sigma": 0.6, "p": 0.3},
        "oct_speckle": {"p": 0.5},
    }
    return Policy.of("gray", "lateral", "relative", ops, rotate=8, probability=0.5)


@register_policy("histopathology")
def histopathology() -> Policy:
    """Stained sections: H&E concentrations in HED space, any turn, blur, JPEG; no hue, magnification kept."""
    ops = {
        "stain_jitter": {"p": 0.8},
        "brightness_contrast": {"brightness": 0.2, "contrast": 0.2, "p": 0.5},
        "gaussian_blur": _BLUR,
        "jpeg": {"p": 0.2},
    }
    return Policy.of("color", "free", "stain", ops, translate=0.1, probability=0.5, fill="reflect")


@register_policy("cytology")
def cytology() -> Policy:
    """Cells: any turn, crops of half the image and up, brightness, contrast, defocus; hue is the class."""
    ops = {
        "brightness_contrast": {"brightness": 0.4, "contrast": 0.4, "p": 0.8},
        "defocus": {"p": 0.3},
        "gaussian_noise": {"sigma": 0.04, "p": 0.2},
    }
    ranges = {"rotate": 45, "probability": 0.7, "fill": "reflect"}
    return Policy.of("color", "free", "color", ops, crop=0.5, **ranges)


@register_policy("blood")
def blood() -> Policy:
    """Blood cells: as cytology; the color of the granules is the class."""
    return cytology()


@register_policy("dermatology")
def dermatology() -> Policy:
    """Dermoscopy and skin photographs: any turn, light of another color, brightness, hair and ruler marks."""
    ops = {
        "hair": {"p": 0.15},
        "ruler_marks": {"p": 0.05},
        "illuminant_jitter": {"p": 0.5},
        "brightness_contrast": {"brightness": 0.4, "contrast": 0.4, "p": 0.8},
        "color_jitter": {"saturation": 0.15, "hue": 0.02, "p": 0.3},
        "gaussian_blur": _BLUR,
    }
    ranges = {"rotate": 45, "probability": 0.7, "fill": "reflect"}
    return Policy.of("color", "free", "color", ops, crop=0.4, **ranges)


@register_policy("photo")
def photo() -> Policy:
    """Clinical photographs: as dermatology without hair and rulers, mirrored but upright."""
    ops = {
        "illuminant_jitter": {"p": 0.5},
        "brightness_contrast": {"brightness": 0.4, "contrast": 0.4, "p": 0.8},
        "color_jitter": {"saturation": 0.15, "hue": 0.02, "p": 0.3},
        "gaussian_blur": _BLUR,
        "jpeg": {"p": 0.2},
    }
    ranges = {"rotate": 30, "probability": 0.5, "fill": "reflect"}
    return Policy.of("color", "lateral", "color", ops, crop=0.4, **ranges)


@register_policy("fundus")
def fundus() -> Policy:
    """Retinal photographs: turns and a mirror, brightness, vignette, blur, noise, inside the disc only."""
    ops = {
        "brightness_contrast": {"brightness": 0.4, "contrast": 0.3, "p": 0.8},
        "illuminant_jitter": {"p": 0.3},
        "vignette": {"p": 0.3},
        "gaussian_blur": _BLUR,
        "gaussian_noise": {"sigma": 0.05, "p": 0.2},
    }
    return Policy.of("color", "lateral", "color", ops, crop=0.4, mask="disc", rotate=45, probability=0.7)


@register_policy("endoscopy")
def endoscopy() -> Policy:
    """Endoscopic frames: any turn, mild brightness and saturation, specular highlights, motion blur, JPEG."""
    ops = {
        "specular_highlights": {"p": 0.3},
        "brightness_contrast": {"brightness": 0.3, "contrast": 0.3, "p": 0.8},
        "color_jitter": {"saturation": 0.2, "hue": 0.02, "p": 0.5},
        "motion_blur": {"p": 0.2},
        "jpeg": {"p": 0.2},
    }
    return Policy.of("color", "free", "color", ops, rotate=30, probability=0.5, fill="reflect")
