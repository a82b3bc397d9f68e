"""From stored images to the normalised views a method trains on, on the device, a whole batch at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssl_mednet.augment.geometry import draw_matrix, places, warp
from ssl_mednet.augment.ops import Params, RowOp, Trace, draw, run
from ssl_mednet.augment.physics.ct import RandomWindow
from ssl_mednet.augment.policy import BuiltPolicy, build, policy_name
from ssl_mednet.draws import Draws
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import BY_CODE

# Number of the view, rows of the batch that its policy has; then what a Trace is told, with rows counted within those.
Tracer = Callable[[int, Tensor, str, Tensor, Params, Tensor], None]


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
        views: what the method asks for; all are made from one read of the source images.
        policy: a registered policy's name, ``"by_modality"`` or ``"natural"``.
        strength: scales every range of a policy; 0 leaves the crop.
        image_size: side of a view of size 1, pixels.
        mean, std: per channel, in [0, 1], taken out last.
        override: settings of single policies that a recipe changes; see :func:`ssl_mednet.augment.policy.build`.
    """

    def __init__(
        self,
        views: Sequence[ViewSpec],
        policy: str,
        strength: float,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        override: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.views, self.policy, self.strength, self.image_size = list(views), policy, strength, image_size
        self.override = override or {}
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._policies: dict[str, BuiltPolicy] = {}

    def policy_of(self, modality: str) -> str:
        """Name of the policy that images of this modality get."""
        return policy_name(self.policy, modality)

    @torch.no_grad()
    def forward(self, batch: ImageBatch, draws: Draws, trace: Tracer | None = None) -> list[Tensor]:
        """``[B, C, S, S]`` float32 for each view, normalised; a row's views depend on the row and its draws only.

        ``trace`` is told of every stage of the rows of each policy; see :mod:`ssl_mednet.contact_sheet`.
        """
        with torch.autocast(batch.pixels.device.type, enabled=False):
            groups = self._group(batch.modality)
            if len(groups) == 1:
                return self._of_policy(groups[0][0], batch, draws, trace, torch.arange(len(batch)))
            parts = [self._of_policy(p, batch.take(rows), draws.take(rows), trace, rows) for p, rows in groups]
            back = torch.cat([rows for _, rows in groups]).argsort().to(batch.pixels.device)
            return [torch.cat(views)[back] for views in zip(*parts, strict=True)]

    def _group(self, modality: Tensor) -> list[tuple[BuiltPolicy, Tensor]]:
        """Policies and the rows that get them."""
        codes = torch.unique(modality).tolist()
        names = {code: self.policy_of(BY_CODE[code].name) for code in codes}
        groups = []
        for name in sorted(set(names.values())):
            of_policy = torch.tensor([c for c in codes if names[c] == name])
            groups.append((self._get(name), torch.isin(modality, of_policy).nonzero()[:, 0]))
        return groups

    def _get(self, name: str) -> BuiltPolicy:
        if name not in self._policies:
            self._policies[name] = build(name, self.strength, self.override.get(name))
        return self._policies[name]

    def _of_policy(
        self, policy: BuiltPolicy, batch: ImageBatch, draws: Draws, trace: Tracer | None, rows: Tensor
    ) -> list[Tensor]:
        images = batch.unit()
        mask = policy.mask(images, batch.sizes) if policy.mask is not None else None
        views = []
        for i, spec in enumerate(self.views):
            told = None if trace is None else functools.partial(trace, i, rows)
            views.append(self._view(policy, batch, images, mask, spec, draws.child(f"view{i}"), told))
        return views

    def _view(
        self,
        policy: BuiltPolicy,
        batch: ImageBatch,
        images: Tensor,
        mask: Tensor | None,
        spec: ViewSpec,
        draws: Draws,
        trace: Trace | None,
    ) -> Tensor:
        size = round(self.image_size * spec.size)
        geometry, (low, high) = policy.geometry, spec.scale
        if spec.size == 1:
            low = max(low, min(policy.crop, high))
        if not spec.intensity:  # reconstruction targets: crop, flips and quarter turns, nothing resampled askew
            geometry = replace(geometry, rotate=0.0, translate=0.0, zoom=0.0, shear=0.0)
            matrix = draw_matrix(geometry, (low, high), batch.sizes, draws)
            return self._normalised(warp(images, batch.sizes, matrix, size, geometry.fill))
        for name, window in policy.window:
            images = rewindowed(window, batch, images, draws, name, trace)
        for name, op in policy.source:
            images = run(op, images, draws, name, mask, trace=trace)
        matrix = draw_matrix(geometry, (low, high), batch.sizes, draws)
        if mask is None:
            out, seen = warp(images, batch.sizes, matrix, size, geometry.fill), None
        else:
            out = warp(torch.cat([images, mask], dim=1), batch.sizes, matrix, size, geometry.fill)
            out, seen = out[:, :-1].contiguous(), out[:, -1:].contiguous()
        if trace is not None:
            trace("crop", torch.arange(len(out)), {"matrix": matrix}, out)

        def place(index: Tensor) -> Tensor:
            return places(matrix[index], batch.sizes[index], size)

        for name, op in policy.view:
            out = run(op, out, draws, name, seen, place, trace)
        return self._normalised(out)

    def _normalised(self, view: Tensor) -> Tensor:
        return view.sub(self.mean).div_(self.std)


def rewindowed(op: RowOp, batch: ImageBatch, images: Tensor, draws: Draws, name: str, trace: Trace | None) -> Tensor:
    """``images`` with the rows that hold Hounsfield units, and that the op's coin chooses, seen through another window.

    Rows of finished pictures (8-bit exports of CT) stay as they are: what their window cut off is lost.
    """
    assert isinstance(op, RandomWindow)
    index, u = draw(op, draws, name, images.device)
    measured = batch.hounsfield[index]
    index, u = index[measured], u[measured]
    if len(index) == 0:
        return images
    params = op.parameters_from(u)
    chosen = batch.take(index)
    seen = replace(chosen, window=op.change_window(chosen.window, params)).unit()
    out = images.index_copy(0, index, seen)
    if trace is not None:
        trace(name, index, params, out)
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
