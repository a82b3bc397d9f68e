"""Color phantoms, one function a modality: anatomy at random, then the optics that make its picture.

Each takes a generator, a size in pixels and whether there is a lesion, and returns ``[size, size, 3]`` uint8, RGB.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from ssl_mednet.imaging.phantoms.shapes import Array, Rng, blob, field, grid, random_wobble, strokes, to_uint8

# Optical density of haematoxylin and eosin in R, G, B (Ruifrok and Johnston 2001, table 1).
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


def _paint(base: Array, mask: Array, color: Array | tuple[float, ...]) -> Array:
    """``base`` ``[S, S, 3]`` covered by a color where ``mask`` ``[S, S]`` is 1."""
    return base + (np.asarray(color) - base) * mask[..., None]


def _cells(rng: Rng, size: int, count: int, radius: tuple[float, float], stretch: float) -> tuple[Array, Array]:
    """Many soft ellipses at once: the largest value at each pixel, and the number of the ellipse that has it."""
    x, y = grid(size)
    centre = rng.uniform(-1.05, 1.05, (count, 2, 1, 1))
    a = rng.uniform(*radius, (count, 1, 1))
    b, angle = a * rng.uniform(1 - stretch, 1, (count, 1, 1)), rng.uniform(0, np.pi, (count, 1, 1))
    dx, dy = x - centre[:, 0], y - centre[:, 1]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    distance = np.hypot(u / a, v / b)
    return 1 / (1 + np.exp(np.clip((distance.min(0) - 1) / 0.08, -40, 40))), distance.argmin(0)


def histopathology(rng: Rng, size: int, lesion: bool) -> Array:
    """H&E section: haematoxylin nuclei, eosin stroma, light through both by Beer-Lambert.

    Lesion: tumour: nuclei crowded, large, uneven and dark, in sheets; else small, regular ones.
    """
    eosin = 0.35 + 0.18 * field(rng, size, rng.uniform(0.25, 0.6)) + 0.1 * field(rng, size, 0.12)
    lumen = np.zeros((size, size))
    for _ in range(rng.integers(0, 3)):
        centre = tuple(rng.uniform(-0.8, 0.8, 2))
        lumen = np.maximum(
            lumen, blob(size, centre, tuple(rng.uniform(0.15, 0.35, 2)), rng.normal(), random_wobble(rng, 0.15))
        )
    eosin = np.clip(eosin, 0.08, None) * (1 - 0.9 * lumen)
    count = int(rng.integers(38, 60) if lesion else rng.integers(30, 56))
    radius = (0.06, rng.uniform(0.11, 0.13)) if lesion else (0.055, rng.uniform(0.08, 0.095))
    nuclei, which = _cells(rng, size, count, radius, 0.45 if lesion else 0.3)
    depth = rng.uniform(0.55, 1.25 if lesion else 1.0, count)[which]
    chromatin = 1 + (0.3 if lesion else 0.15) * field(rng, size, 0.07)
    haematoxylin = 0.05 + nuclei * depth * chromatin * (1 - 0.8 * lumen)
    stain = rng.uniform(0.75, 1.25, 2)
    vectors = [v / np.linalg.norm(v) + rng.normal(0, 0.03, 3) for v in (HAEMATOXYLIN, EOSIN)]
    density = stain[0] * haematoxylin[..., None] * vectors[0] + stain[1] * eosin[..., None] * vectors[1]
    light = gaussian_filter(10 ** -np.clip(density, 0, None), (0.006 * size, 0.006 * size, 0))
    return to_uint8(0.96 * light + rng.normal(0, 0.012, light.shape))


def dermatology(rng: Rng, size: int, lesion: bool) -> Array:
    """Dermoscopy: a pigmented spot on skin, pigment network, hairs, the dark rim of the instrument.

    Lesion: melanoma-like: outline and color uneven, several colors; else an even naevus. Both occur in any size.
    """
    x, y = grid(size)
    skin = np.array([0.86, 0.66, 0.56]) * rng.uniform(0.8, 1.1) + rng.normal(0, 0.03, 3)
    image = np.clip(
        skin * (1 + 0.05 * field(rng, size, 0.5)[..., None] + 0.025 * field(rng, size, 0.1)[..., None]), 0, 1
    )
    centre, radius = tuple(rng.normal(0, 0.12, 2)), rng.uniform(0.35, 0.65)
    wobble = random_wobble(rng, 0.2 if lesion else 0.05, 7)
    spot = blob(
        size, centre, (radius, radius * rng.uniform(0.75, 1)), rng.uniform(0, np.pi), wobble, 0.12 if lesion else 0.25
    )
    brown = np.array([0.48, 0.30, 0.20]) * rng.uniform(0.7, 1.25)
    image = _paint(image, spot * rng.uniform(0.75, 0.95), brown)
    net = np.abs(field(rng, size, 0.12)) < 0.25
    image = _paint(image, 0.25 * spot * gaussian_filter(net.astype(float), 0.008 * size), brown * 0.5)
    if lesion:
        for color in ((0.16, 0.12, 0.13), (0.42, 0.42, 0.52), (0.62, 0.28, 0.24))[: rng.integers(2, 4)]:
            at = (centre[0] + radius * rng.uniform(-0.5, 0.5), centre[1] + radius * rng.uniform(-0.5, 0.5))
            part = blob(size, at, tuple(radius * rng.uniform(0.2, 0.45, 2)), rng.normal(), random_wobble(rng, 0.2), 0.4)
            image = _paint(image, 0.7 * part * spot, color)
    else:
        image = _paint(
            image, 0.4 * blob(size, centre, (radius * 0.5, radius * 0.5), 0, None, 0.8), brown * rng.uniform(0.6, 0.9)
        )
    hairs = [_curve(rng) for _ in range(rng.integers(0, 6))]
    image = _paint(image, 0.8 * strokes(size, hairs, [rng.uniform(0.008, 0.016) for _ in hairs]), (0.12, 0.09, 0.08))
    if rng.random() < 0.5:
        image = image * (1 / (1 + np.exp((np.hypot(x, y) - rng.uniform(1.05, 1.3)) / 0.03)))[..., None]
    return to_uint8(image + rng.normal(0, 0.012, image.shape))


def _curve(rng: Rng) -> Array:
    """A bent line across the picture, ``[160, 2]``."""
    t = np.linspace(-1.2, 1.2, 160)
    angle, bend, offset = rng.uniform(0, np.pi), rng.normal(0, 0.3), rng.uniform(-0.8, 0.8)
    along, across = t, offset + bend * t**2
    return np.stack([along * np.cos(angle) - across * np.sin(angle), along * np.sin(angle) + across * np.cos(angle)], 1)


def _vessel_tree(rng: Rng, start: tuple[float, float], side: int) -> tuple[list[Array], list[float]]:
    """The arcades of a retina: from the disc up and down around the macula, each with branches."""
    paths, widths = [], []
    t = np.linspace(0, 1, 50)
    for up in (-1, 1):
        for spread, width in ((1.0, 0.03), (rng.uniform(0.45, 0.65), 0.02), (-0.5, 0.022)):
            bend = rng.uniform(0.5, 0.7)
            path = np.stack([start[0] - side * 1.3 * spread * t, start[1] + up * bend * np.sin(1.9 * t**0.7)], axis=1)
            path[:, 1] += 0.03 * np.sin(t * rng.uniform(8, 14) + rng.uniform(0, 6))
            paths.append(path)
            widths.append(width * rng.uniform(0.8, 1.2))
            for _ in range(3):
                root = path[rng.integers(12, 45)]
                angle = rng.uniform(0.3, 1.1) * rng.choice((-1, 1)) + np.arctan2(up * 0.6, -side)
                reach = rng.uniform(0.25, 0.5) * t[:, None]
                paths.append(root + reach * [np.cos(angle), np.sin(angle)] + 0.02 * np.sin(t[:, None] * 9))
                widths.append(width * 0.45)
    return paths, widths


def fundus(rng: Rng, size: int, lesion: bool) -> Array:
    """Retinal photograph: round field on black, optic disc with its cup, vessel arcades, macula.

    Lesion: hard exudates (bright yellow dots in clusters) and small haemorrhages (dark red spots).
    """
    x, y = grid(size)
    side = int(rng.choice((-1, 1)))
    base = np.array([0.72, 0.36, 0.16]) * rng.uniform(0.75, 1.15) * (1 + rng.normal(0, 0.06, 3))
    falloff = 1 - rng.uniform(0.2, 0.45) * (x**2 + y**2) + 0.12 * (x * rng.normal() + y * rng.normal())
    image = base * (falloff * (1 + 0.05 * field(rng, size, 0.25)))[..., None]
    disc = (side * rng.uniform(0.42, 0.55), rng.normal(0, 0.06))
    macula = (disc[0] - side * rng.uniform(0.55, 0.65), disc[1] + rng.uniform(0, 0.08))
    image *= (1 - 0.4 * blob(size, macula, (0.16, 0.16), 0, None, 1.0))[..., None]
    paths, widths = _vessel_tree(rng, disc, side)
    image = _paint(image, 0.65 * strokes(size, paths, widths), base * (0.55, 0.3, 0.3))
    image = _paint(image, 0.9 * blob(size, disc, (0.13, 0.15), 0, None, 0.2), np.minimum(base * (1.35, 1.9, 2.0), 1))
    cup = rng.uniform(0.3, 0.6)
    image = _paint(image, 0.8 * blob(size, disc, (0.13 * cup, 0.15 * cup), 0, None, 0.4), (1.0, 0.92, 0.7))
    if lesion:
        cluster = (macula[0] + rng.uniform(-0.35, 0.35), macula[1] + rng.uniform(-0.4, 0.4))
        for _ in range(rng.integers(5, 12)):
            at, r = rng.normal(cluster, 0.14), rng.uniform(0.018, 0.04)
            image = _paint(
                image, 0.8 * blob(size, tuple(at), (r, r), 0, random_wobble(rng, 0.2), 0.5), (0.93, 0.82, 0.45)
            )
        for _ in range(rng.integers(2, 6)):
            at, r = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.025, 0.05)
            image = _paint(
                image,
                0.7 * blob(size, tuple(at), (r, r * 0.8), rng.normal(), random_wobble(rng, 0.2), 0.4),
                base * (0.45, 0.2, 0.2),
            )
    image = gaussian_filter(image, (0.005 * size, 0.005 * size, 0)) + rng.normal(0, 0.01, image.shape)
    inside = np.hypot(x, y) < rng.uniform(0.92, 0.98)
    return to_uint8(image * inside[..., None])


def blood(rng: Rng, size: int, lesion: bool) -> Array:
    """Stained smear: red cells with a pale centre around one white cell.

    Lesion: a blast: one large round nucleus that nearly fills the cell, fine chromatin, a nucleolus; else a lobed
    nucleus (granulocyte) or a small round one (lymphocyte).
    """
    image = np.ones((size, size, 3)) * (np.array([0.95, 0.90, 0.88]) * rng.uniform(0.92, 1.02))
    red = np.array([0.86, 0.62, 0.60]) * rng.uniform(0.9, 1.08)
    for _ in range(rng.integers(5, 11)):
        centre, r = tuple(rng.uniform(-1.1, 1.1, 2)), rng.uniform(0.24, 0.3)
        if np.hypot(*centre) > 0.62:
            image = _paint(image, blob(size, centre, (r, r * rng.uniform(0.85, 1)), rng.normal(), None, 0.1), red)
            image = _paint(image, 0.5 * blob(size, centre, (r * 0.45, r * 0.45), 0, None, 0.9), (0.96, 0.84, 0.82))
    centre, radius = tuple(rng.normal(0, 0.05, 2)), rng.uniform(0.4, 0.55)
    cytoplasm = np.array([0.78, 0.74, 0.86]) * rng.uniform(0.92, 1.08, 3)
    image = _paint(
        image,
        blob(size, centre, (radius, radius * rng.uniform(0.88, 1)), rng.normal(), random_wobble(rng, 0.03), 0.08),
        cytoplasm,
    )
    violet = np.array([0.42, 0.26, 0.58]) * rng.uniform(0.85, 1.15)
    texture = 1 + 0.12 * field(rng, size, 0.1 if lesion else 0.16)[..., None]
    if lesion:
        r = radius * rng.uniform(0.72, 0.88)
        nucleus = blob(size, centre, (r, r * rng.uniform(0.9, 1)), rng.normal(), random_wobble(rng, 0.04), 0.08)
        pale = blob(size, (centre[0] + 0.4 * r * rng.uniform(-1, 1), centre[1]), (0.09, 0.08), 0, None, 0.5)
        image = _paint(_paint(image, nucleus * 0.92, violet * 1.12 * texture), 0.5 * pale, cytoplasm)
    else:
        lobes = int(rng.integers(1, 5))
        turn, nucleus = rng.uniform(0, 2 * np.pi), np.zeros((size, size))
        for i in range(lobes):
            angle = turn + i * 2 * np.pi / (lobes + 1.5)
            reach = 0 if lobes == 1 else radius * 0.42
            r = radius * (rng.uniform(0.55, 0.68) if lobes == 1 else rng.uniform(0.26, 0.38))
            at = (centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle))
            nucleus = np.maximum(
                nucleus, blob(size, at, (r, r * rng.uniform(0.8, 1)), angle, random_wobble(rng, 0.06), 0.1)
            )
        image = _paint(image, nucleus * 0.95, violet * texture)
        if rng.random() < 0.5:  # granules
            grains = np.clip(field(rng, size, 0.08) - 0.6, 0, 1) * blob(size, centre, (radius * 0.9, radius * 0.9))
            image = _paint(image, 0.6 * grains * (1 - nucleus), (0.66, 0.42, 0.6))
    image = gaussian_filter(image, (0.007 * size, 0.007 * size, 0))
    return to_uint8(image + rng.normal(0, 0.012, image.shape))


def endoscopy(rng: Rng, size: int, lesion: bool) -> Array:
    """Inside the colon: a tube lit by the lamp at its mouth, folds, vessels, wet highlights; black corners.

    Lesion: a polyp: a dome that stands out of the wall, with its own shading.
    """
    x, y = grid(size)
    lumen = rng.uniform(-0.4, 0.4, 2)
    distance = np.hypot(x - lumen[0], y - lumen[1]) + 0.08 * field(rng, size, 0.7)
    angle = np.arctan2(y - lumen[1], x - lumen[0])
    folds = np.sin(
        2
        * np.pi
        * (np.log(np.clip(distance, 0.05, None)) * rng.uniform(1.2, 2.0) + 0.12 * np.sin(3 * angle + rng.uniform(0, 6)))
    )
    shade = np.clip(distance / rng.uniform(0.6, 0.9), 0, 1) ** rng.uniform(0.7, 1.1) * (0.85 + 0.15 * folds)
    mucosa = np.array([0.85, 0.48, 0.40]) * rng.uniform(0.85, 1.12) * (1 + rng.normal(0, 0.05, 3))
    image = mucosa * (shade * (1 + 0.05 * field(rng, size, 0.2)))[..., None]
    vessels = [_curve(rng) * 0.7 + rng.uniform(-0.5, 0.5, 2) for _ in range(rng.integers(2, 6))]
    image = _paint(image, 0.35 * strokes(size, vessels, [0.012] * len(vessels)), mucosa * (0.7, 0.4, 0.4))
    if lesion:
        turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.65)
        at = np.clip(lumen + reach * np.array([np.cos(turn), np.sin(turn)]), -0.65, 0.65)
        r = rng.uniform(0.17, 0.3)
        dome = blob(size, tuple(at), (r, r * rng.uniform(0.8, 1)), rng.normal(), random_wobble(rng, 0.06), 0.15)
        light = np.clip(1.15 - 0.55 * np.hypot(x - at[0] + 0.3 * r, y - at[1] + 0.3 * r) / r, 0.35, 1.15)
        rim = blob(size, (at[0] + 0.05, at[1] + 0.07), (r * 1.12, r * 1.12), 0, None, 0.3)
        image *= (1 - 0.35 * rim * (1 - dome))[..., None]
        image = _paint(
            image,
            0.85 * dome,
            (mucosa * (1.05, 0.88, 0.88)) * light[..., None] * (1 + 0.07 * field(rng, size, 0.1)[..., None]),
        )
    wet = np.zeros((size, size))
    for _ in range(rng.integers(2, 8)):
        wet = np.maximum(
            wet,
            blob(
                size, tuple(rng.uniform(-0.8, 0.8, 2)), tuple(rng.uniform(0.015, 0.06, 2)), rng.uniform(0, 3), None, 0.6
            ),
        )
    image = _paint(image, 0.9 * wet, (1.0, 0.98, 0.95))
    corner = np.maximum(np.abs(x), np.abs(y)) + 0.5 * np.minimum(np.abs(x), np.abs(y)) < rng.uniform(1.28, 1.42)
    image = gaussian_filter(image, (0.007 * size, 0.007 * size, 0)) + rng.normal(0, 0.012, image.shape)
    return to_uint8(image * corner[..., None])
