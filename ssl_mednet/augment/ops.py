"""The base of our intensity augmentations: a kornia module whose parameters come from one row of uniform numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from ssl_mednet.draws import Draws

Params = dict[str, Tensor]


class RowOp(IntensityAugmentationBase2D):
    """An intensity augmentation in two parts: ``parameters_from`` makes physical parameters, ``change`` acts by them.

    As every kornia augmentation it takes ``[B, C, H, W]`` floats in [0, 1] and stands in any
    ``kornia.augmentation.AugmentationSequential``; there its numbers come from torch's global generator. Inside a
    policy they come from :class:`~ssl_mednet.draws.Draws`, so that they depend on (seed, step, row) only.

    Args:
        p: probability that a row is changed.
        strength: 0 leaves the picture as it is, 1 is the range stated by the op; scales the range, not ``p``.
    """

    numbers: ClassVar[int]
    # Ops of physical artefacts act on the whole source image before the crop ("source"), the others on the view.
    stage: ClassVar[str] = "view"
    # Whether ``params["mask"]`` ([B, 1, H, W], 1 where the op may act) is wanted; policies compute it once a batch.
    uses_mask: ClassVar[bool] = False
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


def run(op: IntensityAugmentationBase2D, images: Tensor, draws: Draws, name: str, mask: Tensor | None = None) -> Tensor:
    """Apply one augmentation to the rows that its coin chooses, with numbers from ``draws``.

    ``mask`` is handed to the ops that want one (``[B, 1, H, W]``, 1 where they may act).

    A kornia augmentation that is not a :class:`RowOp` draws from torch's global generator; it is seeded from the
    draws, row by row, so that its result too depends on (seed, step, row) only.
    """
    numbers = op.numbers if isinstance(op, RowOp) else 1
    u = draws.on("cpu").uniform(name, 1 + numbers)
    on_cpu = (u[:, 0] < op.p).nonzero()[:, 0]
    if len(on_cpu) == 0:
        return images
    index, u = on_cpu.to(images.device), u[on_cpu, 1:]
    chosen = images if len(index) == len(images) else images[index]
    if isinstance(op, RowOp):
        params = op.parameters_from(u.to(images.device))
        if op.uses_mask and mask is not None:
            params["mask"] = mask[index]
        changed = op.change(chosen, params)
    else:
        changed = _run_foreign(op, chosen, u[:, 0])
    if len(index) == len(images):
        return changed
    return images.index_copy(0, index, changed.to(images.dtype))


def _run_foreign(op: IntensityAugmentationBase2D, images: Tensor, u: Tensor) -> Tensor:
    seeds = (u.double() * 2**24).long().tolist()
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
