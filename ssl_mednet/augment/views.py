"""From stored images to the normalised views a method trains on, on the device, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ssl_mednet.augment.geometry import draw_matrix, warp
from ssl_mednet.augment.ops import run
from ssl_mednet.augment.policy import POLICIES, Policy, policy_name
from ssl_mednet.draws import Draws
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import BY_CODE, MODALITIES


class ViewSpec(Protocol):
    """What a method says of a view; see :class:`ssl_mednet.methods.View`."""

    @property
    def scale(self) -> tuple[float, float]: ...
    @property
    def intensity(self) -> bool: ...
    @property
    def size(self) -> float: ...


class ViewMaker(nn.Module):
    """Draws and makes views. The policy of each row's modality applies to that row.

    Args:
        views: what the method asks for.
        policy: a registered policy's name, or ``"by_modality"``.
        strength: see :class:`~ssl_mednet.augment.policy.Policy`.
        image_size: side of a view of size 1, pixels.
        mean, std: per channel, in [0, 1], taken out last.
    """

    def __init__(
        self,
        views: Sequence[ViewSpec],
        policy: str,
        strength: float,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.views, self.policy, self.strength, self.image_size = list(views), policy, strength, image_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._policies: dict[str, Policy] = {}

    def policy_of(self, modality: str) -> str:
        """Name of the policy that images of this modality get."""
        return policy_name(self.policy, modality)

    @torch.no_grad()
    def forward(self, batch: ImageBatch, draws: Draws) -> list[Tensor]:
        """``[B, C, S, S]`` float32 for each view, normalised; a row's views depend on the row and its draws only."""
        with torch.autocast(batch.pixels.device.type, enabled=False):
            images = batch.unit()
            groups = self._group(batch.modality)
            children = [draws.child(f"view{i}") for i in range(len(self.views))]
            return [
                self._view(images, batch.sizes, spec, groups, d) for spec, d in zip(self.views, children, strict=True)
            ]

    def _group(self, modality: Tensor) -> list[tuple[Policy, Tensor | None]]:
        """Rows by policy; ``None`` stands for all rows where there is one policy only."""
        codes = torch.unique(modality).tolist()
        names = {code: self.policy_of(BY_CODE[code].name) for code in codes}
        if len(set(names.values())) == 1:
            return [(self._get(names[codes[0]]), None)]
        groups: list[tuple[Policy, Tensor | None]] = []
        for name in sorted(set(names.values())):
            of_policy = torch.tensor([c for c in codes if names[c] == name])
            groups.append((self._get(name), torch.isin(modality, of_policy).nonzero()[:, 0]))
        return groups

    def _get(self, name: str) -> Policy:
        if name not in self._policies:
            self._policies[name] = POLICIES.get(name)(self.strength)
        return self._policies[name]

    def _view(
        self,
        images: Tensor,
        sizes: Tensor,
        spec: ViewSpec,
        groups: list[tuple[Policy, Tensor | None]],
        draws: Draws,
    ) -> Tensor:
        size = round(self.image_size * spec.size)
        if len(groups) == 1 and groups[0][1] is None:
            out = self._augment(groups[0][0], images, sizes, spec, size, draws)
        else:
            out = images.new_empty(len(images), images.shape[1], size, size)
            for policy, index in groups:
                assert index is not None
                there = index.to(images.device)
                part = self._augment(policy, images[there], sizes[there], spec, size, draws.take(index))
                out.index_copy_(0, there, part)
        return out.sub_(self.mean).div_(self.std)

    @staticmethod
    def _augment(policy: Policy, images: Tensor, sizes: Tensor, spec: ViewSpec, size: int, draws: Draws) -> Tensor:
        geometry = policy.geometry
        if not spec.intensity:  # reconstruction targets: crop, flips and quarter turns, nothing resampled askew
            geometry = replace(geometry, rotate=0.0, translate=0.0, zoom=0.0, shear=0.0)
        matrix = draw_matrix(geometry, spec.scale, sizes, draws)
        out = warp(images, sizes, matrix, size, geometry.fill)
        if spec.intensity:
            for i, op in enumerate(policy.ops):
                out = run(op, out, draws, f"{i}/{type(op).__name__}")
        return out


def resize(batch: ImageBatch, size: int) -> Tensor:
    """The whole of every image as ``[B, C, size, size]`` in [0, 1], antialiased: what evaluation and export see."""
    images = batch.unit()
    out = images.new_empty(len(images), images.shape[1], size, size)
    for extent in torch.unique(batch.sizes, dim=0).tolist():
        index = (batch.sizes == batch.sizes.new_tensor(extent)).all(dim=1).nonzero()[:, 0]
        part = images[index, :, : extent[0], : extent[1]]
        out[index] = nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return out.clamp_(0, 1)


def check_policy(name: str, channels: str) -> None:
    """Refuse a policy that cannot act on images of these channels, when the recipe is read.

    Raises:
        RecipeError: no such policy, or one for the other kind of image.
    """
    from ssl_mednet.errors import RecipeError

    names = [policy_name(name, m) for m in MODALITIES if MODALITIES[m].channels == channels]
    for one in dict.fromkeys(names):
        made = POLICIES.get(one)(1.0)
        if made.channels not in ("any", channels):
            raise RecipeError(f"policy {one!r} is for {made.channels} images, the data is {channels}")
