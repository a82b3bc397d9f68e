"""From stored images to the normalised views a method trains on, on the device, a whole batch at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssl_mednet.augment.geometry import Pyramid, draw_matrix, per_row, places, warp
from ssl_mednet.augment.ops import Params, choose, run
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

        All rows are sampled together, whatever their policies; intensity is changed policy by policy. ``trace`` is
        told of every stage; see :mod:`ssl_mednet.contact_sheet`.
        """
        with torch.autocast(batch.pixels.device.type, enabled=False):
            groups = self._groups(batch)
            stored = Pyramid(batch.pixels.float())
            views = []
            for i, spec in enumerate(self.views):
                told = None if trace is None else functools.partial(trace, i)
                views.append(self._view(spec, batch, stored, groups, draws.child(f"view{i}"), told))
            return views

    def _groups(self, batch: ImageBatch) -> list[Group]:
        """The rows of each policy, with their masks."""
        codes = torch.unique(batch.modality).tolist()
        names = {code: self.policy_of(BY_CODE[code].name) for code in codes}
        groups = []
        for name in sorted(set(names.values())):
            of_policy = torch.tensor([c for c in codes if names[c] == name])
            rows = torch.isin(batch.modality, of_policy).nonzero()[:, 0]
            policy = self._get(name)
            mask = None
            if policy.mask is not None:
                own = batch if len(rows) == len(batch) else batch.take(rows)
                mask = policy.mask(own.unit(), own.sizes)
            groups.append(Group(policy, rows, rows.to(batch.pixels.device), mask))
        return groups

    def _get(self, name: str) -> BuiltPolicy:
        if name not in self._policies:
            self._policies[name] = build(name, self.strength, self.override.get(name))
        return self._policies[name]

    def _view(
        self,
        spec: ViewSpec,
        batch: ImageBatch,
        stored: Pyramid,
        groups: list[Group],
        draws: Draws,
        trace: Callable[..., None] | None,
    ) -> Tensor:
        size = round(self.image_size * spec.size)
        matrix, fill = self._geometry(spec, batch, groups, draws)
        if not spec.intensity:
            window = batch.window
            out = seen_through(window, warp(stored, batch.sizes, matrix, size, fill, window[:, 0]))
            return self._normalised(out)
        # One table of numbers for all ops of all policies: making it costs more than reading it.
        u = draws.on("cpu").uniform("ops", max(group.policy.numbers for group in groups))
        window = batch.window.clone()
        for group in groups:
            rewindow(group, batch, window, u, trace)
        out = seen_through(window, warp(stored, batch.sizes, matrix, size, fill, window[:, 0]))
        for group in groups:
            self._intensity(group, batch, out, matrix, size, u, trace)
        return self._normalised(out)

    def _geometry(
        self, spec: ViewSpec, batch: ImageBatch, groups: list[Group], draws: Draws
    ) -> tuple[Tensor, str | Tensor]:
        """The matrix of each row, and how what lies beyond its border is filled."""
        low, high = spec.scale
        lows = [max(low, min(g.policy.crop, high)) if spec.size == 1 else low for g in groups]
        geometries = [g.policy.geometry for g in groups]
        if not spec.intensity:  # reconstruction targets: crop, flips and quarter turns, nothing resampled askew
            geometries = [replace(g, rotate=0.0, translate=0.0, zoom=0.0, shear=0.0) for g in geometries]
        which = torch.zeros(len(batch), dtype=torch.int64, device=batch.pixels.device)
        for i, group in enumerate(groups[1:], 1):
            which[group.there] = i
        ranges = per_row(geometries, which)
        smallest = lows[0] if len(groups) == 1 else torch.tensor(lows)[which.cpu()].to(which.device)
        return draw_matrix(ranges, (smallest, high), batch.sizes, draws), ranges.fill

    def _intensity(
        self,
        group: Group,
        batch: ImageBatch,
        out: Tensor,
        matrix: Tensor,
        size: int,
        u: Tensor,
        trace: Callable[..., None] | None,
    ) -> None:
        """Change the rows of one policy in place."""
        whole = len(group.rows) == len(out)
        part = out if whole else out.index_select(0, group.there)
        sizes = batch.sizes
        if not whole:
            u, matrix, sizes = u[group.rows], matrix[group.there], sizes[group.there]
        told = None if trace is None else functools.partial(trace, group.rows)
        self._from_changed_sources(group, batch, part, matrix, size, u, trace)
        if told is not None:
            told("crop", torch.arange(len(part)), {"matrix": matrix}, part)
        mask = None if group.mask is None else warp(group.mask, sizes, matrix, size)

        def place(index: Tensor) -> Tensor:
            return places(matrix[index], sizes[index], size)

        for name, op, columns in group.policy.view:
            part = run(op, part, u[:, columns], name, mask, place, told, in_place=True)
        if part is not out:
            out.copy_(part) if whole else out.index_copy_(0, group.there, part)

    def _from_changed_sources(
        self,
        group: Group,
        batch: ImageBatch,
        part: Tensor,
        matrix: Tensor,
        size: int,
        u: Tensor,
        trace: Callable[..., None] | None,
    ) -> None:
        """Sample the rows again whose whole image an op changes before the crop; in place."""
        chosen = [choose(op, u[:, columns], part.device)[0] for _, op, columns in group.policy.source]
        index = torch.unique(torch.cat(chosen)) if chosen else torch.empty(0)
        if len(index) == 0:
            return
        batch, u = batch.take(group.there[index]), u[index.cpu()]
        images = batch.unit()
        told = None if trace is None else functools.partial(trace, group.rows[index.cpu()])
        mask = None if group.mask is None else group.mask.index_select(0, index)
        for name, op, columns in group.policy.source:
            images = run(op, images, u[:, columns], name, mask, trace=told, in_place=True)
        fill = group.policy.geometry.fill
        part.index_copy_(0, index, warp(images, batch.sizes, matrix.index_select(0, index), size, fill))

    def _normalised(self, view: Tensor) -> Tensor:
        return view.sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Group:
    """The rows of a batch that share a policy: their positions on the CPU and on the device, and their masks."""

    policy: BuiltPolicy
    rows: Tensor
    there: Tensor
    mask: Tensor | None


def seen_through(window: Tensor, values: Tensor) -> Tensor:
    """Stored values ``[B, C, H, W]`` as [0, 1] through the window ``[B, 2]`` of each row, clipped."""
    low, high = (window[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    scale = 1.0 / (high - low)
    return torch.addcmul(-low * scale, values, scale).clamp_(0.0, 1.0)


def rewindow(group: Group, batch: ImageBatch, window: Tensor, u: Tensor, trace: Callable[..., None] | None) -> None:
    """Draw new windows, in place, for the rows that hold Hounsfield units and that the coin of a window op chooses.

    Rows of finished pictures (8-bit exports of CT) stay as they are: what their window cut off is lost.
    """
    for name, op, columns in group.policy.window:
        assert isinstance(op, RandomWindow)
        index, numbers = choose(op, u[group.rows, columns], window.device)
        measured = batch.hounsfield[group.there[index]]
        index, params = index[measured], op.parameters_from(numbers[measured])
        there = group.there[index]
        window[there] = op.change_window(window[there], params)
        if trace is not None:
            shown = replace(batch, window=window).unit()[group.there]
            trace(group.rows, name, index, params, shown)


def resize(batch: ImageBatch, size: int) -> Tensor:
    """The whole of every image as ``[B, C, size, size]`` in [0, 1], antialiased: what evaluation and export see."""
    images = batch.unit()
    out = images.new_empty(len(images), images.shape[1], size, size)
    for extent in torch.unique(batch.sizes, dim=0).tolist():
        index = (batch.sizes == batch.sizes.new_tensor(extent)).all(dim=1).nonzero()[:, 0]
        part = images[index, :, : extent[0], : extent[1]]
        out[index] = nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return out.clamp_(0, 1)
