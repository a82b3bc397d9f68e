"""Nearest neighbours on frozen features: temperature-weighted votes of the k most similar bank rows.

The score of class c is ``sum_i [y_i = c] exp(sim_i / T)`` over the k neighbours by cosine (Wu, Xiong, Yu, Lin 2018,
"Unsupervised feature learning via non-parametric instance discrimination", section 3.4), here divided by the sum over
all neighbours. The search is faiss's exact one. The order of the classes is that of lightly's ``knn_predict``, which
wants normalised features and stops when k exceeds the bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from ssl_mednet.errors import DataError
from ssl_mednet.probe.checks import Array, ArrayLike, check_targets, unit_rows
from ssl_mednet.probe.metrics import auroc

DEFAULT_KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
_BLOCK = 4096  # queries searched at once


@dataclass(frozen=True)
class NeighbourChoice:
    """The k chosen on val, its macro AUROC there (NaN where val has none), all that were tried, and what to report."""

    k: int
    auroc: float
    tried: dict[int, float]
    note: str = ""


def knn_scores(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike,
    k: int,
    *,
    num_classes: int,
    temperature: float = TEMPERATURE,
) -> Array:
    """Votes of the k nearest bank rows.

    Args:
        bank: ``[M, D]``; need not be normalised. A row of zeros has cosine 0 to everything.
        bank_labels: ``[M]`` int, or multi-label ``[M, C]`` in {0, 1}.
        queries: ``[N, D]``.
        k: neighbours; all of the bank where it has fewer. Of equally near rows at the k-th place any may be taken.
        num_classes: C; a class that is not in the bank scores 0.
        temperature: T, above 0; the smaller, the more the nearest decides.

    Returns:
        ``[N, C]`` float64 in [0, 1]; multi-class rows sum to 1, a multi-label entry is the weighted share that has it.

    Raises:
        DataError: an empty bank, k below 1, NaN, or shapes and labels that do not fit.
    """
    return _sweep(bank, bank_labels, queries, [k], num_classes, temperature)[0]


def select_k(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    val: ArrayLike,
    val_labels: ArrayLike,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    num_classes: int,
    temperature: float = TEMPERATURE,
) -> NeighbourChoice:
    """The k with the best macro AUROC on val, of equals the largest; one search at the largest k serves all.

    Those above the bank size count as the bank size. Without val rows, or where val has no AUROC (one class only), the
    middle one is taken and ``note`` says so.

    Raises:
        DataError: as :func:`knn_scores`.
    """
    fitting = sorted({min(k, len(bank)) for k in ks})
    targets = check_targets(val_labels, num_classes, "val", rows=len(val))
    values = [float("nan")] * len(fitting)
    if len(val):
        values = [auroc(targets, s) for s in _sweep(bank, bank_labels, val, fitting, num_classes, temperature)]
    tried = dict(zip(fitting, values, strict=True))
    clipped = f"k is at most the {len(bank)} rows of the bank" if max(ks) > len(bank) else ""
    if np.isnan(values).all():
        k = fitting[len(fitting) // 2]
        why = f"{'val has no AUROC' if len(val) else 'no val rows'}: k {k} is fixed, not chosen"
        return NeighbourChoice(k, float("nan"), tried, "; ".join(filter(None, [why, clipped])))
    k = max(k for k, value in tried.items() if value >= np.nanmax(values) - 1e-9)
    return NeighbourChoice(k, tried[k], tried, clipped)


def _sweep(
    bank: ArrayLike, bank_labels: ArrayLike, queries: ArrayLike, ks: Sequence[int], num_classes: int, temperature: float
) -> list[Array]:
    """:func:`knn_scores` for each of the rising ``ks``."""
    if not len(bank) or min(ks) < 1 or temperature <= 0:
        raise DataError(f"kNN wants a bank (has {len(bank)}), k >= 1 (is {min(ks)}) and T > 0 (is {temperature})")
    labels = check_targets(bank_labels, num_classes, "bank", rows=len(bank))
    rows = unit_rows(bank, "bank")
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    asked = unit_rows(queries, "query", width=rows.shape[1])
    scores = [np.zeros((len(asked), num_classes)) for _ in ks]
    for start in range(0, len(asked), _BLOCK):
        similarity, neighbour = index.search(asked[start : start + _BLOCK], min(max(ks), len(rows)))
        similarity = similarity.astype(np.float64)
        vote = np.exp((similarity - similarity[:, :1]) / temperature)  # the nearest has weight 1: no T overflows
        for out, k in zip(scores, ks, strict=True):
            out[start : start + _BLOCK] = _count(vote[:, :k], labels[neighbour[:, :k]], num_classes)
    return scores


def _count(vote: Array, labels: Array, num_classes: int) -> Array:
    """Votes ``[N, k]`` for labels ``[N, k]`` or ``[N, k, C]`` -> shares ``[N, C]``."""
    if labels.ndim == 3:
        votes = np.einsum("nk,nkc->nc", vote, labels)
    else:
        cell = np.arange(len(vote))[:, None] * num_classes + labels
        votes = np.bincount(cell.ravel(), vote.ravel(), minlength=len(vote) * num_classes).reshape(-1, num_classes)
    # Rounded, so that a label all neighbours have scores 1 for every query: rounding errors must not rank them.
    return (votes / vote.sum(axis=1, keepdims=True)).round(14)
