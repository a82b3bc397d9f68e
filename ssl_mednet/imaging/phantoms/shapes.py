"""Shapes and fields the phantoms are built from, in coordinates where the picture spans [-1, 1] both ways."""

from __future__ import annotations

import functools

import numpy as np

Array = np.ndarray
Rng = np.random.Generator


@functools.lru_cache(maxsize=16)
def grid(size: int) -> tuple[Array, Array]:
    """x (to the right) and y (downwards) of every pixel centre, ``[size, size]`` each."""
    axis = (np.arange(size) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(axis, axis)
    return x, y


def blob(
    size: int,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float = 0.0,
    wobble: Array | None = None,
    soft: float = 0.06,
) -> Array:
    """A soft ellipse, 1 inside and 0 outside.

    Args:
        wobble: relative deviations of the outline, ``[K, 2]`` amplitude and phase of the angular frequencies 2, 3, ...
        soft: width of the edge as a share of the radius.
    """
    x, y = grid(size)
    dx, dy = x - centre[0], y - centre[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radii[0]
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / radii[1]
    distance = np.hypot(u, v)
    if wobble is not None:
        theta = np.arctan2(v, u)
        frequency = np.arange(2, 2 + len(wobble))[:, None, None]
        distance = distance / (1 + (wobble[:, :1, None] * np.cos(frequency * theta + wobble[:, 1:, None])).sum(0))
    return 1 / (1 + np.exp(np.clip((distance - 1) / (soft / 2), -40, 40)))


def random_wobble(rng: Rng, amount: float, count: int = 4) -> Array:
    """Outline deviations for :func:`blob`, falling off with the frequency."""
    amplitude = amount * rng.normal(size=count) / np.arange(1, count + 1)
    return np.stack([amplitude, rng.uniform(0, 2 * np.pi, count)], axis=1)


def field(rng: Rng, size: int, scale: float, count: int = 12) -> Array:
    """A smooth random field of mean 0 and deviation about 1: plane waves of wavelengths around ``scale`` (in [-1, 1]
    units), random directions and phases."""
    x, y = grid(size)
    k = 2 * np.pi / (scale * np.exp(rng.normal(0, 0.35, count)))
    direction, phase = rng.uniform(0, 2 * np.pi, (2, count))
    waves = np.cos(
        (k * np.cos(direction))[:, None, None] * x + (k * np.sin(direction))[:, None, None] * y + phase[:, None, None]
    )
    return waves.sum(0) * np.sqrt(2 / count)


def strokes(size: int, paths: list[Array], widths: list[float]) -> Array:
    """Darkness of soft strokes along point lists ``[N, 2]`` of (x, y): the largest of all points' Gaussian profiles."""
    x, y = grid(size)
    out = np.zeros((size, size))
    for path, width in zip(paths, widths, strict=True):
        reach = max(width, 1.2 / size)
        gx = (x[0] - path[:, :1]) / reach  # [N, size]: a point's profile is separable
        gy = (y[:, :1] - path[:, 1]) / reach  # [size, N]
        near = np.exp(-0.5 * gy[:, :, None] ** 2) * np.exp(-0.5 * gx[None] ** 2)
        out = np.maximum(out, near.max(axis=1) * min(1.0, width / reach))
    return out


def to_uint8(unit: Array) -> Array:
    """[0, 1] to 0..255, clipped."""
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
