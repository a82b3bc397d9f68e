"""Phantoms: medical-looking images made from physics, any number of them, each a pure function of its index.

They need no download and hold no patient: demos, tests and tutorials run on them. They are not a benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssl_mednet.imaging.image import DEFAULT_CT_WINDOW, HU_OFFSET, MedicalImage
from ssl_mednet.imaging.phantoms import color, gray

Family = Literal["gray", "color"]
FAMILIES: dict[str, tuple[str, ...]] = {
    "gray": ("xray", "ct", "mri", "ultrasound", "pet"),
    "color": ("histopathology", "dermatology", "fundus", "blood", "endoscopy"),
}
_MODULES = {"gray": gray, "color": color}


@dataclass(frozen=True)
class Phantom:
    """A picture and whether it shows a lesion; its modality is in the picture."""

    image: MedicalImage
    lesion: bool


def truth(family: str, index: int, seed: int = 0) -> tuple[str, bool]:
    """Modality and lesion of a phantom, without making it. Modalities take turns; of ten consecutive phantoms of one
    modality five have a lesion, in random order."""
    names = FAMILIES[family]
    turn = index // len(names)
    code = list(FAMILIES).index(family)
    order = np.random.default_rng((seed, code, index % len(names), turn // 10)).permutation(10)
    return names[index % len(names)], bool(order[turn % 10] < 5)


def phantom(family: Family, index: int, size: int = 64, seed: int = 0) -> Phantom:
    """The phantom of an index: always the same, whatever else was made before.

    Args:
        family: ``"gray"``: X-ray, CT, MRI, ultrasound, PET; ``"color"``: histopathology, dermatology, fundus, blood,
            endoscopy; in turn.
        size: side in pixels, 32 to 256; the same content at another size.
        seed: another seed, another world.

    Returns:
        Gray is uint8, but CT holds Hounsfield units (see :class:`MedicalImage`) under a soft-tissue window.

    Raises:
        ValueError: a size out of range.
    """
    if not 32 <= size <= 256:
        raise ValueError(f"phantoms have 32 to 256 pixels a side, not {size}")
    name, lesion = truth(family, index, seed)
    code = list(FAMILIES).index(family)
    picture = getattr(_MODULES[family], name)(np.random.default_rng((seed, code, index, 1)), size, lesion)
    pixels = picture if picture.ndim == 3 else picture[..., None]
    if name == "ct":
        stored = np.clip(np.rint(pixels) + HU_OFFSET, 0, 65535).astype(np.uint16)
        window = (DEFAULT_CT_WINDOW[0] + HU_OFFSET, DEFAULT_CT_WINDOW[1] + HU_OFFSET)
        return Phantom(MedicalImage(stored, name, window, "hu"), lesion)
    return Phantom(MedicalImage(pixels, name), lesion)
