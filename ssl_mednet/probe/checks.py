"""What goes into a probe, checked once and in words for a person."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ssl_mednet.errors import DataError

Array = np.ndarray[Any, Any]
ArrayLike = Array | torch.Tensor


def to_numpy(values: ArrayLike) -> Array:
    """A view of ``values`` in numpy's memory; tensors leave their device."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def check_features(features: ArrayLike, name: str, width: int | None = None) -> torch.Tensor:
    """``[N, D]`` floats, on their device.

    Raises:
        DataError: not two-dimensional, not ``width`` wide, or with NaN or infinity in it.
    """
    tensor = torch.as_tensor(features).detach()
    if tensor.ndim != 2 or (width is not None and tensor.shape[1] != width):
        want = "D" if width is None else str(width)
        raise DataError(f"{name} features have shape {list(tensor.shape)}, wanted [N, {want}]")
    if not torch.isfinite(tensor.sum()):  # NaN and infinity stay in a sum; large finite values may overflow to it
        bad = int((~torch.isfinite(tensor)).any(dim=1).sum())
        if bad:
            hint = "did the pretraining diverge?"
            raise DataError(f"{bad} of {len(tensor)} {name} features hold NaN or infinity", hint)
    return tensor


def unit_rows(features: ArrayLike, name: str = "given", width: int | None = None) -> Array:
    """Rows ``[N, D]`` scaled to length 1, float32 and contiguous in numpy's memory; a row of zeros stays.

    Raises:
        DataError: as :func:`check_features`, which is told ``name`` and ``width``.
    """
    x = check_features(features, name, width).float().cpu()
    length = x.norm(dim=1, keepdim=True)
    if not ((length > 1e-15) & (length < 1e15)).all():  # a row of zeros, or squares that over- or underflow
        x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        length = x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return np.ascontiguousarray((x / length).numpy())


def check_targets(targets: ArrayLike, num_classes: int, name: str, rows: int | None = None) -> Array:
    """Multi-class ``[N]`` in ``0 .. num_classes - 1``, or multi-label ``[N, num_classes]`` in {0, 1}; int64 out.

    Raises:
        DataError: any other shape or value, or not ``rows`` rows.
    """
    array = to_numpy(targets)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != num_classes):
        raise DataError(f"{name} labels have shape {list(array.shape)}, wanted [N] or (multi-label) [N, {num_classes}]")
    if rows is not None and len(array) != rows:
        raise DataError(f"{name} has {rows} rows but {len(array)} labels")
    top = num_classes - 1 if array.ndim == 1 else 1
    if array.size and not ((array >= 0) & (array <= top) & (array == np.floor(array))).all():
        raise DataError(f"{name} labels are not all whole numbers in 0 .. {top}: {np.unique(array)[[0, -1]].tolist()}")
    return array.astype(np.int64)
