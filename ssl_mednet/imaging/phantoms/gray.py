"""Gray phantoms, one function a modality: anatomy at random, then the physics that makes its picture.

Each takes a generator, a size in pixels and whether there is a lesion, and returns ``[size, size]``: uint8, or for CT
Hounsfield units in float.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.sparse import csr_matrix

from ssl_mednet.imaging.phantoms.shapes import Array, Rng, blob, field, grid, random_wobble, to_uint8


def xray(rng: Rng, size: int, lesion: bool) -> Array:
    """Chest radiograph: attenuation line integrals, Beer-Lambert transmission, Poisson photons, logarithm.

    Lesion: a round nodule in one lung. Bushberg et al., The Essential Physics of Medical Imaging, chapters 3 and 7.
    """
    x, y = grid(size)
    tilt, wide = rng.normal(0, 0.05), rng.uniform(0.85, 1.1)
    path = 2.2 * blob(size, (0, 0.25), (0.95 * wide, 1.15), tilt, random_wobble(rng, 0.04))
    lungs = np.zeros((size, size))
    for side in (-1, 1):
        centre = (side * rng.uniform(0.40, 0.47) * wide, rng.uniform(-0.12, 0.0))
        lung = blob(
            size, centre, (rng.uniform(0.27, 0.34), rng.uniform(0.55, 0.68)), side * 0.12, random_wobble(rng, 0.05)
        )
        lungs = np.maximum(lungs, lung)
    path -= 1.25 * lungs * (1 + 0.1 * field(rng, size, 0.5))
    path += 0.9 * blob(size, (rng.uniform(0.08, 0.2), 0.28), (0.3, rng.uniform(0.28, 0.36)), 0.5, None, 0.3)
    path += 0.55 * np.exp(-((x / 0.1) ** 2)) * (y < 0.9)  # spine and mediastinum
    slope, gap = rng.uniform(0.25, 0.5), rng.uniform(0.20, 0.26)
    ribs = np.cos(2 * np.pi * (y + slope * (np.abs(x) - 0.5) ** 2 - 0.3 * np.abs(x) + rng.uniform(0, 1)) / gap)
    path += 0.22 * np.clip(ribs, 0, 1) ** 2 * (np.abs(x) < 0.85 * wide) * (np.abs(x) > 0.1)
    path += 0.07 * lungs * np.abs(field(rng, size, 0.12))  # vessels
    if lesion:
        side = rng.choice((-1, 1))
        centre = (side * rng.uniform(0.33, 0.55), rng.uniform(-0.4, 0.3))
        radius = rng.uniform(0.08, 0.15)
        path += rng.uniform(0.4, 0.75) * blob(size, centre, (radius, radius), 0, random_wobble(rng, 0.06), 0.3)
    photons = 10 ** rng.uniform(3.0, 3.8)
    counts = rng.poisson(photons * np.exp(-np.clip(path, 0, 5)))
    film = -np.log((counts + 1) / photons)
    low, high = np.percentile(film, (1, 99))
    return to_uint8(np.clip((film - low) / (high - low), 0, 1) ** rng.uniform(0.8, 1.2))


@functools.lru_cache(maxsize=8)
def projector(size: int, views: int) -> csr_matrix:
    """Parallel projection as a matrix ``[views * size, size * size]``: each pixel's value is shared between the two
    detectors beside its ray. Its transpose is back-projection."""
    x, y = grid(size)
    angle = (np.arange(views)[:, None] + 0.5) * np.pi / views
    position = (x.ravel() * np.cos(angle) + y.ravel() * np.sin(angle)) * size / 2 + (size - 1) / 2
    position = np.clip(position, 0, size - 1.001)
    left = position.astype(int)
    share = position - left
    ray = left + size * np.arange(views)[:, None]
    pixel = np.broadcast_to(np.arange(size * size), ray.shape)
    rows, columns = np.concatenate([ray.ravel(), ray.ravel() + 1]), np.concatenate([pixel.ravel()] * 2)
    values = np.concatenate([(1 - share).ravel(), share.ravel()])
    return csr_matrix((values, (rows, columns)), shape=(views * size, size * size))


@functools.lru_cache(maxsize=8)
def _ramp(detectors: int) -> Array:
    """The band-limited ramp filter from its exact samples (Kak and Slaney 1988, equation 61), under a Hann window."""
    n = np.rint(np.fft.fftfreq(detectors, 1 / detectors)).astype(int)
    kernel = np.zeros(detectors)
    kernel[n == 0] = 0.25
    odd = n % 2 != 0
    kernel[odd] = -1 / (np.pi * n[odd]) ** 2
    return np.real(np.fft.fft(kernel)) * (0.5 + 0.5 * np.cos(2 * np.pi * np.fft.fftfreq(detectors)))


def filtered_back_projection(sinogram: Array) -> Array:
    """The image of parallel projections ``[views, size]`` over half a turn (Kak and Slaney 1988, section 3.3)."""
    views, size = sinogram.shape
    filtered = np.real(np.fft.ifft(np.fft.fft(sinogram, 2 * size) * _ramp(2 * size)))[:, :size]
    return (projector(size, views).T @ filtered.ravel()).reshape(size, size) * np.pi / views


def ct(rng: Rng, size: int, lesion: bool) -> Array:
    """Axial abdomen in Hounsfield units: projected, noisy, reconstructed by filtered back-projection.

    Lesion: a mass in the liver, darker than its surroundings. Noise of the line integrals is that of counted photons.
    """
    turn, fat = rng.normal(0, 0.08), rng.uniform(0.06, 0.12)
    a, b = rng.uniform(0.72, 0.86), rng.uniform(0.52, 0.66)
    body = blob(size, (0, 0), (a, b), turn, random_wobble(rng, 0.02), 0.03)
    inner = blob(size, (0, 0), (a - fat, b - fat), turn, random_wobble(rng, 0.02), 0.03)
    hu = -1000 + 900 * body + 145 * inner  # air, fat at -100, soft tissue at 45
    liver_at = (-0.3 + rng.normal(0, 0.03), -0.08 + rng.normal(0, 0.04))
    liver = blob(size, liver_at, (0.33, rng.uniform(0.28, 0.34)), 0.4, random_wobble(rng, 0.08)) * inner
    hu += rng.uniform(15, 40) * liver * (1 + 0.15 * field(rng, size, 0.15))
    hu += rng.uniform(20, 60) * blob(size, (0.42, 0.02), (0.13, 0.17), 0.3, random_wobble(rng, 0.05)) * inner  # spleen
    for side in (-1, 1):  # kidneys
        hu += rng.uniform(40, 120) * blob(size, (side * 0.33, 0.27), (0.1, 0.13), 0, random_wobble(rng, 0.05)) * inner
    hu -= (
        900 * blob(size, (rng.uniform(0.1, 0.3), -0.3), (rng.uniform(0.06, 0.14), 0.07), rng.normal()) * inner
    )  # bowel gas
    hu += rng.uniform(60, 200) * blob(size, (0.02, 0.12), (0.06, 0.06)) * inner  # aorta
    hu += 700 * blob(size, (0, 0.36), (0.13, 0.1), 0, None, 0.15) - 400 * blob(
        size, (0, 0.36), (0.07, 0.05)
    )  # vertebra
    if lesion:
        centre = (liver_at[0] + rng.uniform(-0.13, 0.13), liver_at[1] + rng.uniform(-0.1, 0.1))
        radius = rng.uniform(0.07, 0.13)
        hu -= rng.uniform(45, 90) * blob(size, centre, (radius, radius), 0, random_wobble(rng, 0.1), 0.25)
    attenuation = np.clip(1 + hu / 1000, 0, None)  # relative to water
    per_pixel = 6.0 / size  # mean free paths of water across a pixel; the picture is about 35 cm wide
    lines = (projector(size, 60) @ attenuation.ravel()).reshape(60, size) * per_pixel
    photons = 10 ** rng.uniform(4.3, 5.2)
    counts = rng.poisson(photons * np.exp(-np.clip(lines, 0, 12))) + 1
    image = filtered_back_projection(-np.log(counts / photons)) / per_pixel
    return np.clip(1000 * (image - 1), -1024, 3000)


def mri(rng: Rng, size: int, lesion: bool) -> Array:
    """Axial head: tissue contrast, a bias field, noise in k-space, magnitude (so Rician; Gudbjartsson and Patz 1995).

    Lesion: a bright mass with a darker core in one hemisphere. The contrast is T1-like or T2-like.
    """
    turn = rng.normal(0, 0.15)
    a, b = rng.uniform(0.62, 0.72), rng.uniform(0.76, 0.86)
    scalp, brain = (blob(size, (0, 0), (a * s, b * s), turn, None, 0.04) for s in (1.0, 0.86))
    skull = blob(size, (0, 0), (a * 0.94, b * 0.94), turn, None, 0.04)
    folds = 0.5 + 0.5 * np.tanh(2.5 * field(rng, size, 0.22, 16))
    depth = blob(size, (0, 0), (a * 0.66, b * 0.66), turn, random_wobble(rng, 0.05), 0.3)
    white = np.clip(depth + 0.6 * (1 - folds) * brain - 0.3, 0, 1) * brain
    t2 = rng.random() < 0.5
    gray_level, white_level, fluid_level, fat_level = (0.62, 0.42, 1.0, 0.55) if t2 else (0.5, 0.72, 0.12, 0.95)
    image = fat_level * (scalp - skull) * rng.uniform(0.5, 1) + gray_level * brain + (white_level - gray_level) * white
    for side in (-1, 1):  # ventricles
        centre = (side * rng.uniform(0.09, 0.14), rng.uniform(-0.1, 0.05))
        radii = (rng.uniform(0.04, 0.1), rng.uniform(0.18, 0.28))
        ventricle = blob(size, centre, radii, side * -0.3 + turn, random_wobble(rng, 0.1))
        image += (fluid_level - image) * ventricle
    if lesion:
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
        centre, radius = (reach * np.cos(angle), reach * np.sin(angle)), rng.uniform(0.1, 0.2)
        mass = blob(size, centre, (radius, radius * rng.uniform(0.7, 1)), angle, random_wobble(rng, 0.1), 0.25)
        core = blob(size, centre, (radius * 0.5, radius * 0.5), 0, random_wobble(rng, 0.1), 0.4)
        image += (rng.uniform(0.8, 0.95) - image) * mass * 0.75 - 0.3 * core
    image *= np.exp(0.25 * field(rng, size, 2.5, 4))
    kspace = np.fft.fftshift(np.fft.fft2(image))
    sigma = rng.uniform(0.02, 0.06) * size
    kspace += sigma * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    lines = int(size * rng.uniform(0.35, 0.5))  # partial acquisition: the outer lines are not measured
    kspace[: size // 2 - lines] = kspace[size // 2 + lines :] = 0
    magnitude = np.abs(np.fft.ifft2(np.fft.ifftshift(kspace)))
    return to_uint8(magnitude / np.percentile(magnitude, 99.5))


def ultrasound(rng: Rng, size: int, lesion: bool) -> Array:
    """Sector scan: scatterers convolved with a point spread in beam coordinates, envelope, log compression, scan
    conversion (Wagner et al. 1983). Black outside the fan. Lesion: a dark mass, with a shadow or enhancement behind it.
    """
    beams, samples = size, 2 * size
    half_angle, near = rng.uniform(0.5, 0.75), rng.uniform(0.15, 0.35)
    depth = np.linspace(0, 1, samples)[:, None]
    beam = np.linspace(-1, 1, beams)[None]
    # Structure is drawn on a square and read along the beams: layers of tissue that wave with the beam.
    coarse = map_coordinates(
        field(rng, size, 0.6), np.meshgrid(np.linspace(0, size - 1, samples), np.arange(beams), indexing="ij"), order=1
    )
    echo = np.exp(0.7 * coarse + 0.5 * np.sin(2 * np.pi * (depth * rng.uniform(2, 4) + 0.15 * beam * rng.normal())))
    loss = np.zeros((samples, 1))
    if lesion:
        centre, radius = (rng.uniform(-0.45, 0.45), rng.uniform(0.3, 0.6)), rng.uniform(0.11, 0.2)
        distance = np.hypot((beam - centre[0]) / (1.8 * radius), (depth - centre[1]) / radius)
        mass = 1 / (
            1 + np.exp((distance - 1 + 0.12 * np.sin(5 * np.arctan2(depth - centre[1], beam - centre[0]))) / 0.05)
        )
        echo *= 1 - rng.uniform(0.85, 0.95) * mass
        behind = np.exp(-0.5 * ((beam - centre[0]) / (1.3 * radius)) ** 2) * (depth > centre[1])
        loss = rng.choice((-0.5, 1.2)) * behind
    scatter = np.sqrt(echo) * (rng.normal(size=(samples, beams)) + 1j * rng.normal(size=(samples, beams)))
    spread = rng.uniform(0.5, 0.9) * size / 64
    signal = np.abs(
        gaussian_filter(scatter.real, (1.2 * spread, spread))
        + 1j * gaussian_filter(scatter.imag, (1.2 * spread, spread))
    )
    signal *= np.exp(-rng.uniform(0.3, 1.5) * depth - loss)
    decibel = 20 * np.log10(signal / signal.max() + 1e-6)
    polar = np.clip(1 + decibel / rng.uniform(38, 50), 0, 1)
    x, y = grid(size)
    rise = (y + 1) / 2 * (1 + near) * 0.98 + near  # distance below the apex; the probe's face is at `near`
    radius_at = np.hypot(x * 0.9, rise)
    angle_at = np.arctan2(x * 0.9, rise)
    coordinates = [(radius_at - near) / (1 + near * 0.4) * (samples - 1), (angle_at / half_angle + 1) / 2 * (beams - 1)]
    fan = map_coordinates(polar, coordinates, order=1, cval=0.0)
    return to_uint8(fan)


def pet(rng: Rng, size: int, lesion: bool) -> Array:
    """Coronal whole-body tracer uptake: activity, point spread of 5 to 8 mm, Poisson counts; shown as counts.

    Lesion: a small hot spot away from heart, kidneys and bladder. Cherry et al., Physics in Nuclear Medicine, ch. 18.
    """
    wide = rng.uniform(0.42, 0.52)
    body = blob(size, (0, 0.25), (wide, 0.95), 0, random_wobble(rng, 0.03), 0.05)
    head = blob(size, (0, -0.75), (0.2, 0.22), 0, None, 0.1)
    activity = 0.16 * np.maximum(body, head) * (1 + 0.25 * field(rng, size, 0.4))
    activity += rng.uniform(0.5, 0.9) * blob(size, (0, -0.78), (0.15, 0.15), 0, random_wobble(rng, 0.05), 0.2)  # brain
    activity += rng.uniform(0.0, 0.5) * blob(
        size, (0.1, -0.15), (0.13, 0.11), 0.5, random_wobble(rng, 0.08), 0.3
    )  # heart
    activity += rng.uniform(0.1, 0.2) * blob(size, (-0.2, 0.1), (0.22, 0.15), 0.2, random_wobble(rng, 0.08))  # liver
    for side in (-1, 1):
        activity += rng.uniform(0.1, 0.45) * blob(
            size, (side * 0.22, rng.uniform(0.22, 0.3)), (0.06, 0.1), 0, None, 0.3
        )
        activity -= 0.09 * blob(size, (side * 0.22, -0.2), (0.14, 0.22), 0, None, 0.3) * body  # lungs
    activity += rng.uniform(0.4, 0.9) * blob(size, (0, 0.85), (0.1, 0.08), 0, None, 0.3)  # bladder
    if lesion:
        centre = (rng.uniform(-0.3, 0.3), rng.uniform(-0.45, 0.65))
        radius = rng.uniform(0.045, 0.08)
        activity += rng.uniform(0.4, 0.7) * blob(size, centre, (radius, radius), 0, None, 0.4)
    blurred = gaussian_filter(np.clip(activity, 0, None), rng.uniform(0.012, 0.02) * size)
    counts = rng.poisson(blurred * 10 ** rng.uniform(1.5, 2.3))
    shown = gaussian_filter(counts.astype(float), 0.012 * size)
    return to_uint8(shown / np.percentile(shown, 99.7))
