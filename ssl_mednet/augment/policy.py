"""What a policy says: its geometry, its ops by name with their ranges, its mask; and how it is put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from kornia.augmentation import IntensityAugmentationBase2D

from ssl_mednet.augment.geometry import Geometry
from ssl_mednet.augment.ops import MASKS, Mask, create_op, numbers_of
from ssl_mednet.errors import RecipeError, did_you_mean
from ssl_mednet.imaging.modality import CHANNEL_COUNT, MODALITIES
from ssl_mednet.registry import Registry

Turns = Literal["none", "lateral", "free"]
Meaning = Literal["quantitative", "relative", "stain", "color", "natural"]
STRENGTH, MOST_STRENGTH = "strength", 2  # the key of an override, and what it may be at most
_SHARES = ("horizontal_flip", "vertical_flip", "probability")  # of the geometry


@dataclass(frozen=True)
class Policy:
    """How the images of a modality are augmented, at strength 1.

    Args:
        channels: the images it is for.
        turns: geometry class. ``"none"``: neither flips nor quarter turns (a side or a layer order is information);
            ``"lateral"``: horizontal flips; ``"free"``: any flip and turn.
        meaning: intensity class. ``"quantitative"``: values are measurements, so no brightness and gamma;
            ``"relative"``: only their order is; ``"stain"``; ``"color"``: color is diagnostic; ``"natural"``: no claim.
        geometry: ranges of turns, shifts and zoom; the crop is the method's.
        crop: no view of full size keeps a smaller share of the image than this.
        mask: name of the region outside which nothing changes, one of :data:`~ssl_mednet.augment.ops.MASKS`, or ``""``.
        ops: names of :data:`~ssl_mednet.augment.ops.OPS` (or ``kornia.NAME``) with their settings, in order.
    """

    channels: Literal["gray", "color"]
    turns: Turns
    meaning: Meaning
    geometry: Geometry
    ops: dict[str, dict[str, Any]]
    crop: float = 0.0
    mask: str = ""
    doc: str = field(default="", repr=False)

    @classmethod
    def of(cls, channels: str, turns: str, meaning: str, ops: dict[str, dict[str, Any]], **more: Any) -> Policy:
        """A policy whose flips are those of its class of turns; ``more``: ranges of the geometry, crop, mask."""
        rest = {key: more.pop(key) for key in ("crop", "mask") if key in more}
        return cls(channels, turns, meaning, Geometry(**FLIPS[turns], **more), ops, **rest)  # type: ignore[arg-type]


POLICIES: Registry[Policy] = Registry(
    "policy", ("ssl_mednet.augment.policies",), lambda item: isinstance(item, Policy), plural="policies"
)
BY_MODALITY, NATURAL = "by_modality", "natural"
FLIPS: dict[str, dict[str, Any]] = {
    "none": {"horizontal_flip": 0.0, "vertical_flip": 0.0, "quarter_turns": False},
    "lateral": {"horizontal_flip": 0.5, "vertical_flip": 0.0, "quarter_turns": False},
    "free": {"horizontal_flip": 0.5, "vertical_flip": 0.5, "quarter_turns": True},
}


def register_policy(name: str) -> Callable[[Callable[[], Policy]], Callable[[], Policy]]:
    """Decorator for a function that returns a :class:`Policy`; its docstring is what ``list policies`` shows."""

    def add(function: Callable[[], Policy]) -> Callable[[], Policy]:
        POLICIES.register(name)(replace(function(), doc=function.__doc__ or ""))
        return function

    return add


class Slot(NamedTuple):
    """An op of a policy: its name, itself, and its columns among the uniform numbers of a row."""

    name: str
    op: IntensityAugmentationBase2D
    columns: slice


@dataclass(frozen=True)
class BuiltPolicy:
    """A policy at one strength, ready to act; ops by the stage at which they do, and how many numbers they want."""

    name: str
    geometry: Geometry
    crop: float
    mask: Mask | None
    numbers: int
    window: list[Slot]
    source: list[Slot]
    view: list[Slot]


def build(name: str, strength: float, override: dict[str, Any] | None = None) -> BuiltPolicy:
    """Put a policy together.

    Args:
        strength: scales every range; 0 leaves the crop.
        override: what a recipe says differently: any field of :class:`Policy`, ``geometry`` and ``ops`` key by key (an
            op given as None is taken out, a new one comes last), and ``strength``, of this policy alone.

    Raises:
        RecipeError: an unknown name, a setting that is not there, or a color op on gray images.
    """
    override = dict(override or {})
    strength = _number(override.pop(STRENGTH, strength), f"augment.override.{name}.{STRENGTH}", MOST_STRENGTH)
    policy = overridden(name, POLICIES.get(name), override)
    stages: dict[str, list[Slot]] = {"window": [], "source": [], "view": []}
    used = 0
    for op_name, settings in policy.ops.items():
        op = create_op(op_name, settings, strength)
        if policy.channels == "gray" and _needs_color(op):
            raise RecipeError(f"policy {name!r} is for gray images, augmentation {op_name!r} acts on color")
        stage = getattr(op, "stage", "view")
        if stage not in stages or (stage == "window" and not hasattr(op, "change_window")):
            known = "view, source, or window with a method change_window as random_window has"
            raise RecipeError(f"augmentation {op_name!r} ({type(op).__module__}): its stage {stage!r} cannot be", known)
        if strength > 0:
            columns = slice(used, used + numbers_of(op))
            stages[stage].append(Slot(op_name, op, columns))
            used = columns.stop
    mask = MASKS.get(policy.mask) if policy.mask else None
    return BuiltPolicy(name, policy.geometry.scaled(strength), policy.crop, mask, used, **stages)


def overridden(name: str, policy: Policy, override: dict[str, Any]) -> Policy:
    """A policy with a recipe's own settings merged in; see :func:`build`."""
    fields = {f.name: getattr(policy, f.name) for f in dataclasses.fields(Policy) if f.name != "doc"}
    for key, value in override.items():
        where = f"augment.override.{name}.{key}"
        if key not in fields:
            known = [*fields, STRENGTH]
            raise RecipeError(f"{where}: no such setting", f"{did_you_mean(key, known)} allowed: {', '.join(known)}")
        if key == "turns":
            if value not in FLIPS:
                raise RecipeError(f"{where}: one of {', '.join(FLIPS)}, not {value!r}")
            fields |= {"turns": value, "geometry": replace(fields["geometry"], **FLIPS[value])}
        elif key == "geometry":
            known = [f.name for f in dataclasses.fields(Geometry)]
            for wrong in set(_mapping(value, where)) - set(known):
                raise RecipeError(f"{where}.{wrong}: no such setting", f"{did_you_mean(wrong, known)} allowed: {known}")
            for share in value.keys() & set(_SHARES):
                _number(value[share], f"{where}.{share}", 1)
            fields[key] = replace(fields["geometry"], **value)
        elif key == "ops":
            merged = dict(policy.ops)
            for op, settings in _mapping(value, where).items():
                if settings is None:
                    merged.pop(op, None)
                else:
                    merged[op] = merged.get(op, {}) | _mapping(settings, f"{where}.{op}")
            fields[key] = merged
        else:
            fields[key] = _number(value, where, 1) if key == "crop" else value
    return Policy(**fields)


def policy_name(chosen: str, modality: str) -> str:
    """The policy for an image of ``modality`` when the recipe says ``chosen``: its own, or the generic of its kind."""
    kind = MODALITIES[modality].channels
    if chosen == NATURAL:
        return f"natural_{kind}"
    if chosen != BY_MODALITY:
        return chosen
    return modality if modality in POLICIES else f"generic_{kind}"


def check_augment(chosen: str, channels: str, strength: float, override: dict[str, Any]) -> None:
    """Refuse, when the recipe is read, what could not act on images of these channels.

    Raises:
        RecipeError: no such policy, mask, op or setting, or one for the other kind of image.
    """
    assert channels in CHANNEL_COUNT
    if chosen not in (known := (BY_MODALITY, NATURAL, *POLICIES)) and chosen not in POLICIES.broken:
        hint = f"{did_you_mean(chosen, known)} known: {', '.join(known)}".strip()
        raise RecipeError(f"unknown policy {chosen!r}", hint)
    names = dict.fromkeys(policy_name(chosen, m) for m in MODALITIES if MODALITIES[m].channels == channels)
    for name in override:
        POLICIES.get(name)
        if name not in names:
            raise RecipeError(f"augment.override.{name}: no image gets this policy; they get {', '.join(names)}")
    for name in names:
        if POLICIES.get(name).channels != channels:
            raise RecipeError(f"policy {name!r} is for {POLICIES.get(name).channels} images, the data is {channels}")
        build(name, strength or 1.0, override.get(name))


def _number(value: Any, where: str, most: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise RecipeError(f"{where}: a number from 0 to {most}, not {value!r}")
    return float(value)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: must hold keys and values, not {value!r}")
    return value


def _needs_color(op: IntensityAugmentationBase2D) -> bool:
    return getattr(op, "color_only", False) or type(op).__name__ in _KORNIA_COLOR


# Kornia's augmentations that need three channels.
_KORNIA_COLOR = frozenset(
    f"Random{name}" for name in ("Grayscale", "Hue", "Saturation", "ChannelShuffle", "RGBShift", "PlanckianJitter")
) | {"ColorJitter", "ColorJiggle"}
