"""From stored images to the normalised views a method trains on, on the device, a whole batch at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ssl_mednet.augment.geometry import draw_matrix, per_row
from ssl_mednet.augment.ops import Params, choose, run
from ssl_mednet.augment.physics.ct import RandomWindow
from ssl_mednet.augment.policy import BuiltPolicy, build, policy_name
from ssl_mednet.augment.warp import Pyramid, places, warp
from ssl_mednet.draws import Draws
from ssl_mednet.imaging.batch import ImageBatch, seen_through
from ssl_mednet.imaging.modality import BY_CODE

# For some pictures: number of the view and row of the batch of each; then what a Trace of an op is told of them.
Tracer = Callable[[list[int], list[int], str, Tensor, Params, Tensor], None]


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

        Views of one size are made together, and all rows are sampled together whatever their policies; intensity is
        then changed policy by policy. ``trace`` is told of every stage; see :mod:`ssl_mednet.contact_sheet`.
        """
        with torch.autocast(batch.pixels.device.type, enabled=False):
            groups = self._groups(batch)
            stored = Pyramid(batch.pixels)
            made: dict[int, Tensor] = {}
            alike: dict[tuple[float, bool], list[int]] = {}
            for i, spec in enumerate(self.views):
                alike.setdefault((spec.size, spec.intensity), []).append(i)
            for numbers in alike.values():
                scene = self._scene(numbers, batch, stored, groups, draws, trace)
                out = scene.sampled()
                if self.views[numbers[0]].intensity:
                    for group in groups:
                        change_intensity(scene, group, out)
                if len(groups) > 1:
                    out = out.index_select(0, scene.back.to(out.device, non_blocking=True))
                out.sub_(self.mean).div_(self.std)
                made |= zip(numbers, out.split(len(batch)), strict=True)
            return [made[i] for i in range(len(self.views))]

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
                seen = own.unit()
                mask = Pyramid(policy.mask(seen, own.sizes).to(seen.dtype))
            groups.append(Group(policy, rows, mask))
        return groups

    def _get(self, name: str) -> BuiltPolicy:
        if name not in self._policies:
            self._policies[name] = build(name, self.strength, self.override.get(name))
        return self._policies[name]

    def _scene(
        self,
        numbers: list[int],
        batch: ImageBatch,
        stored: Pyramid,
        groups: list[Group],
        draws: Draws,
        trace: Tracer | None,
    ) -> Scene:
        """Everything that is drawn for the views of these numbers."""
        which = torch.zeros(len(batch), dtype=torch.int64)
        for i, group in enumerate(groups):
            which[group.rows] = i
        which = which.to(batch.pixels.device, non_blocking=True)
        count = len(batch)
        # Pictures of a policy lie side by side, view after view, so that its ops act on one piece of memory in place.
        order = torch.cat([g.rows + v * count for g in groups for v in range(len(numbers))])
        there = order.to(batch.pixels.device, non_blocking=True)
        children = [draws.child(f"view{i}") for i in numbers]
        drawn = [self._geometry(self.views[i], batch, groups, which, d) for i, d in zip(numbers, children, strict=True)]
        # One table of numbers for all ops of all policies: making it costs more than reading it.
        columns = max(group.policy.numbers for group in groups)
        scene = Scene(
            numbers,
            batch,
            stored,
            size=round(self.image_size * self.views[numbers[0]].size),
            order=order,
            matrix=torch.cat([matrix for matrix, _ in drawn])[there],
            reflect=torch.cat([reflect for _, reflect in drawn])[there],
            window=batch.window[there % count],
            u=torch.cat([child.on("cpu").uniform("ops", columns) for child in children])[order],
            trace=trace,
        )
        if self.views[numbers[0]].intensity:
            for group in groups:
                rewindow(scene, group)
        return scene

    @staticmethod
    def _geometry(
        spec: ViewSpec, batch: ImageBatch, groups: list[Group], which: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """The matrix of each row, and whether it is reflected at its border; ``which`` is the group of each row."""
        low, high = spec.scale
        lows = [max(low, min(g.policy.crop, high)) if spec.size == 1 else low for g in groups]
        geometries = [g.policy.geometry for g in groups]
        if not spec.intensity:  # reconstruction targets: crop, flips and quarter turns, nothing resampled askew
            geometries = [replace(g, rotate=0.0, translate=0.0, zoom=0.0, shear=0.0) for g in geometries]
        ranges, smallest = per_row(geometries, which), torch.tensor(lows).to(which.device, non_blocking=True)[which]
        assert isinstance(ranges.fill, Tensor)
        return draw_matrix(ranges, (smallest, high), batch.sizes, draws), ranges.fill


@dataclass(frozen=True)
class Group:
    """The rows of a batch that share a policy, ``[K]`` on the CPU, and the masks of these rows."""

    policy: BuiltPolicy
    rows: Tensor
    mask: Pyramid | None


@dataclass(frozen=True)
class Scene:
    """V views of a batch of B rows, all of one size, while they are made: V * B pictures.

    Args:
        views: their numbers.
        stored: the stored values of the batch.
        order: which picture stands where, ``[V * B]`` on the CPU: row ``r`` in view ``v`` is ``v * B + r``. Policy by
            policy, view by view.
        matrix, reflect, window: of each picture: its place in the source, how its border is filled, the stored values
            that become 0 and 1.
        u: ``[V * B, columns]`` uniform numbers on the CPU, for the ops.
    """

    views: list[int]
    batch: ImageBatch
    stored: Pyramid
    size: int
    order: Tensor
    matrix: Tensor
    reflect: Tensor
    window: Tensor
    u: Tensor
    trace: Tracer | None

    @property
    def rows(self) -> Tensor:
        """``[V * B]`` on the CPU: the row of the batch that each picture shows."""
        return self.order % len(self.batch)

    @property
    def back(self) -> Tensor:
        """``[V * B]`` on the CPU: where each picture stands, view after view."""
        return torch.argsort(self.order)

    def pictures_of(self, group: Group) -> slice:
        """Where the pictures of a policy stand."""
        first = int((self.order == group.rows[0]).nonzero())
        return slice(first, first + len(self.views) * len(group.rows))

    def sampled(self) -> Tensor:
        """``[V * B, C, S, S]`` in [0, 1]: every source sampled once, then seen through its window."""
        rows = self.rows.to(self.matrix.device, non_blocking=True)
        sizes, black = self.batch.sizes[rows], self.window[:, 0]

        def finish(values: Tensor, index: Tensor) -> Tensor:
            return seen_through(self.window[index], values)

        return warp(self.stored, sizes, self.matrix, self.size, self.reflect, black, rows, finish)

    def tell(self, pictures: Tensor, name: str, index: Tensor, params: Params, images: Tensor) -> None:
        """Tell the trace of an op on some of the pictures, named as in ``order``, which ``images`` shows all of."""
        if self.trace is not None:
            view = [self.views[int(i)] for i in pictures // len(self.batch)]
            self.trace(view, (pictures % len(self.batch)).tolist(), name, index, params, images)


def rewindow(scene: Scene, group: Group) -> None:
    """Draw new windows, in place, for the pictures of Hounsfield units that the coin of a window op chooses.

    Rows of finished pictures (8-bit exports of CT) stay as they are: what their window cut off is lost.
    """
    own = scene.pictures_of(group)
    rows = scene.rows.to(scene.window.device, non_blocking=True)
    for name, op, columns in group.policy.window:
        op = cast(RandomWindow, op)  # or another with a method change_window
        index, numbers = choose(op, scene.u[own, columns], scene.window.device)
        there = index + own.start
        measured = scene.batch.hounsfield[rows[there]]
        there, params = there[measured], op.parameters_from(numbers[measured])
        scene.window[there] = op.change_window(scene.window[there], params)
        if scene.trace is not None and len(there):
            shown = replace(scene.batch.take(rows[there]), window=scene.window[there]).unit()
            scene.tell(scene.order[there.cpu()], name, torch.arange(len(there)), params, shown)


def change_intensity(scene: Scene, group: Group, out: Tensor) -> None:
    """Run the ops of one policy on the pictures of its rows, in place."""
    own = scene.pictures_of(group)
    part, pictures, u, matrix = (t[own] for t in (out, scene.order, scene.u, scene.matrix))
    sizes = scene.batch.sizes[scene.rows[own].to(out.device, non_blocking=True)]
    change_sources(scene, group, part)
    scene.tell(pictures, "crop", torch.arange(len(part)), {"matrix": matrix}, part)
    mask = None
    if group.mask is not None:
        source = torch.arange(len(group.rows), device=out.device).repeat(len(scene.views))
        mask = warp(group.mask, sizes, matrix, scene.size, source=source)

    def place(index: Tensor) -> Tensor:
        return places(matrix[index], sizes[index], scene.size)

    tell = functools.partial(scene.tell, pictures) if scene.trace is not None else None
    for name, op, columns in group.policy.view:
        part = run(op, part, u[:, columns], name, mask, place, tell, in_place=True)
    if part.data_ptr() != out[own].data_ptr():
        out[own] = part


def change_sources(scene: Scene, group: Group, part: Tensor) -> None:
    """Sample those pictures again, in place, whose whole image an op changes before the crop."""
    own = scene.pictures_of(group)
    u, pictures = scene.u[own], scene.order[own]
    chosen = [choose(op, u[:, columns], torch.device("cpu"))[0] for _, op, columns in group.policy.source]
    index = torch.unique(torch.cat(chosen)) if chosen else torch.empty(0)
    if len(index) == 0:
        return
    pictures, u, here = pictures[index], u[index], index.to(part.device, non_blocking=True)
    there = here + own.start
    images = scene.batch.take(pictures % len(scene.batch))
    whole = replace(images, window=scene.window[there]).unit()
    mask = None if group.mask is None else group.mask.level(0)[here % len(group.rows)]
    tell = functools.partial(scene.tell, pictures) if scene.trace is not None else None
    for name, op, columns in group.policy.source:
        whole = run(op, whole, u[:, columns], name, mask, trace=tell, in_place=True)
    part.index_copy_(0, here, warp(whole, images.sizes, scene.matrix[there], scene.size, scene.reflect[there]))


def resize(batch: ImageBatch, size: int) -> Tensor:
    """The whole of every image as ``[B, C, size, size]`` in [0, 1], antialiased: what evaluation and export see."""
    return squashed(batch.unit(), batch.sizes, size)


def squashed(images: Tensor, sizes: Tensor, size: int) -> Tensor:
    """Images of these ``sizes`` ``[B, 2]`` on a canvas ``[B, C, H, W]``, each as a whole at ``size`` x ``size``."""
    out = images.new_empty(len(images), images.shape[1], size, size)
    for extent in torch.unique(sizes, dim=0).tolist():
        index = (sizes == sizes.new_tensor(extent)).all(dim=1).nonzero()[:, 0]
        part = images[index, :, : extent[0], : extent[1]]
        out[index] = nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return out.clamp_(0, 1)
