"""The base of our intensity augmentations: a kornia module whose parameters come from one row of uniform numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import kornia.augmentation
import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from ssl_mednet.errors import RecipeError, did_you_mean
from ssl_mednet.registry import Registry

Params = dict[str, Tensor]
Trace = Callable[[str, Tensor, Params, Tensor], None]  # name of the op, rows it changed, their parameters, all images

_PHYSICS = ("ct", "illuminant", "jpeg", "kspace", "mri", "oct", "optics", "pet", "skin", "stain", "ultrasound", "xray")
OPS: Registry[type[RowOp]] = Registry(
    "augmentation",
    builtin=("ssl_mednet.augment.intensity", *(f"ssl_mednet.augment.physics.{name}" for name in _PHYSICS)),
    wanted=lambda item: isinstance(item, type) and issubclass(item, RowOp),
)
# Images ``[B, C, H, W]`` in [0, 1] and their sizes ``[B, 2]`` to ``[B, 1, H, W]``: 1 where ops may act.
Mask = Callable[[Tensor, Tensor], Tensor]
MASKS: Registry[Mask] = Registry(
    "mask", builtin=("ssl_mednet.augment.physics.ultrasound", "ssl_mednet.augment.physics.fundus"), wanted=callable
)
R = TypeVar("R", bound="type[RowOp]")


def register_op(name: str) -> Callable[[R], R]:
    """Class decorator: make a :class:`RowOp` known to policies and recipes by this name."""

    def add(cls: R) -> R:
        OPS.register(name)(cls)
        return cls

    return add


class RowOp(IntensityAugmentationBase2D):
    """An intensity augmentation in two parts: ``parameters_from`` makes physical parameters, ``change`` acts by them.

    As every kornia augmentation it takes ``[B, C, H, W]`` floats in [0, 1] and stands in any
    ``kornia.augmentation.AugmentationSequential``; there its numbers come from torch's global generator. Inside a
    policy they come from :class:`ssl_mednet.draws.Draws`, so that they depend on (seed, step, row) only.

    Args:
        p: probability that a row is changed.
        strength: 0 leaves the picture as it is, 1 is the range stated by the op; scales the range, not ``p``.
    """

    numbers: ClassVar[int]
    # "window": on the stored values' window, by ``change_window`` as random_window has it;
    # "source": on the whole image before the crop; "view": on the view.
    stage: ClassVar[str] = "view"
    # Whether ``params["place"]`` ([B, H, W, 2], where in the whole image each pixel lies, in [0, 1]) is wanted.
    uses_place: ClassVar[bool] = False
    # Whether the op makes sense for three channels only; such an op is refused for gray when the recipe is read.
    color_only: ClassVar[bool] = False

    def __init__(self, p: float = 1.0, strength: float = 1.0) -> None:
        super().__init__(p=p, p_batch=1.0, same_on_batch=False, keepdim=False)
        self.strength = strength

    def parameters_from(self, u: Tensor) -> Params:
        """Physical parameters, one row each, from ``[B, numbers]`` uniform numbers in [0, 1)."""
        raise NotImplementedError

    def change(self, images: Tensor, params: Params) -> Tensor:
        """``[B, C, H, W]`` in [0, 1] to the same."""
        raise NotImplementedError

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        return self.parameters_from(torch.rand(batch_shape[0], self.numbers, device=self.device))

    def apply_transform(
        self, input: Tensor, params: Params, flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        tensors = {k: v.to(input.device) for k, v in params.items() if isinstance(v, Tensor)}
        return self.change(input, tensors)


def create_op(name: str, settings: dict[str, Any], strength: float) -> IntensityAugmentationBase2D:
    """One of ours by its name, or ``kornia.NAME``: any intensity augmentation of kornia with its own settings.

    Of kornia's, which have no strength, the probability is scaled instead.

    Raises:
        RecipeError: no such augmentation, or it does not take these settings.
    """
    p = settings.get("p", 0.5)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise RecipeError(f"augmentation {name!r}: p is a probability from 0 to 1, not {p!r}")
    if name.startswith("kornia."):
        cls = getattr(kornia.augmentation, name.removeprefix("kornia."), None)
        if not (isinstance(cls, type) and issubclass(cls, IntensityAugmentationBase2D)):
            known = [f"kornia.{n}" for n in dir(kornia.augmentation) if n.startswith("Random")]
            raise RecipeError(f"{name!r} is no intensity augmentation of kornia", did_you_mean(name, known))
        extra = {"p": min(1.0, p * strength)}
    else:
        cls, extra = OPS.get(name), {"strength": strength}
    allowed = [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "strength")]
    for key in settings:
        if key not in allowed:
            raise RecipeError(
                f"augmentation {name!r} has no setting {key!r}",
                f"{did_you_mean(key, allowed)} allowed: {', '.join(allowed)}".strip(),
            )
    try:
        return cls(**{**settings, **extra})
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError(f"augmentation {name!r} does not take {settings}: {error}") from error


def numbers_of(op: IntensityAugmentationBase2D) -> int:
    """How many uniform numbers a row needs: one for the coin, and those of the op."""
    return 1 + (op.numbers if isinstance(op, RowOp) else 1)


def choose(op: IntensityAugmentationBase2D, u: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows ``[K]`` that the op's coin chooses and their remaining numbers ``[K, numbers]``, both on ``device``.

    ``u`` is ``[B, numbers_of(op)]`` uniform numbers on the CPU, so that nothing waits for a GPU to say which rows.
    """
    index = (u[:, 0] < op.p).nonzero()[:, 0]
    return index.to(device, non_blocking=True), u[index, 1:].to(device, non_blocking=True)


def run(
    op: IntensityAugmentationBase2D,
    images: Tensor,
    u: Tensor,
    name: str = "",
    mask: Tensor | None = None,
    place: Callable[[Tensor], Tensor] | None = None,
    trace: Trace | None = None,
    in_place: bool = False,
) -> Tensor:
    """Apply one augmentation to the rows that its coin chooses.

    A kornia augmentation that is not a :class:`RowOp` draws from torch's global generator; it is seeded from the
    numbers, row by row, so that its result too depends on (seed, step, row) only.

    Args:
        u: ``[B, numbers_of(op)]`` uniform numbers in [0, 1), on the CPU.
        name: what the trace calls the op.
        mask: ``[B, 1, H, W]`` in [0, 1]; where it is 0 every pixel keeps its bits.
        place: rows to ``[K, H, W, 2]``, for the ops that want to know where in the whole image a pixel lies.
        trace: told of what has been done, for a person to see.
        in_place: the images are the caller's own and may be written to.
    """
    index, u = choose(op, u, images.device)
    if len(index) == 0:
        return images
    everything = len(index) == len(images)
    chosen = images if everything else images.index_select(0, index)
    params: Params = {}
    if isinstance(op, RowOp):
        params = op.parameters_from(u)
        if op.uses_place and place is not None:
            changed = op.change(chosen, params | {"place": place(index)})
        else:
            changed = op.change(chosen, params)
    else:
        changed = _run_foreign(op, chosen, u[:, 0])
    if mask is not None:
        changed = torch.lerp(chosen, changed.to(chosen.dtype), mask if everything else mask.index_select(0, index))
    if everything:
        out = changed
    else:
        copy = images.index_copy_ if in_place else images.index_copy
        out = copy(0, index, changed.to(images.dtype))
    if trace is not None:
        trace(name, index, params, out)
    return out


def _run_foreign(op: IntensityAugmentationBase2D, images: Tensor, u: Tensor) -> Tensor:
    seeds = (u.cpu().double() * 2**24).long().tolist()
    rows = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            rows.append(op.generate_parameters((1, *images.shape[1:])))
        params = {k: torch.cat([torch.atleast_1d(r[k]) for r in rows]) for k in rows[0]}
        params = {k: v.to(images.device) for k, v in params.items()}
        return op.apply_transform(images, params, op.flags, None)


def column(values: Tensor, images: Tensor) -> Tensor:
    """``[B]`` to ``[B, 1, 1, 1]`` of the images' type, to act on them."""
    return values.to(images.dtype).view(-1, 1, 1, 1)


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers in [0, 1) to [low, high)."""
    return low + (high - low) * u
