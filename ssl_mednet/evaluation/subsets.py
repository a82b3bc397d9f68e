"""Which training labels a protocol may use: the same for every model, smaller ones inside larger ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssl_mednet.draws import stable_hash


def few_shot(labels: np.ndarray, shots: int, draw: int, seed: int) -> np.ndarray:
    """Positions of ``shots`` rows of each class, all of a class that has fewer.

    Args:
        labels: ``[N]`` class numbers of the training rows.
        draw: which of the draws; the rows for fewer shots of a draw are among those for more.
    """
    return _first_of_each_class(labels, lambda count: min(shots, count), draw, seed)


def fraction(labels: np.ndarray, share: float, draw: int, seed: int) -> np.ndarray:
    """Positions of a share of the rows, of every class alike and at least one of each.

    Multi-label rows are drawn at large, but two at least, which differ in some label where any rows do.

    Args:
        labels: ``[N]`` class numbers, or ``[N, L]``.
    """
    if share >= 1:
        return np.arange(len(labels))
    if labels.ndim == 1:
        return _first_of_each_class(labels, lambda count: max(1, round(share * count)), draw, seed)
    order = _order(len(labels), draw, seed)
    unlike = np.flatnonzero((labels[order] != labels[order[0]]).any(axis=1))
    if len(unlike):  # the first of them comes second; where it is among the chosen anyway, they are the same
        order = np.concatenate([order[:1], order[unlike[:1]], np.delete(order, [0, unlike[0]])])
    return np.sort(order[: max(2, round(share * len(order)))])


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` positions, in no order that means anything: of each class as many as of the others, as far as
    there are; multi-label rows at large."""
    order = np.random.default_rng(stable_hash(len(labels), "balanced")).permutation(len(labels))
    if labels.ndim == 2:
        return order[:count]
    turn = np.empty(len(labels), np.int64)  # which of its class a row is
    for number in np.unique(labels):
        members = order[labels[order] == number]
        turn[members] = np.arange(len(members))
    return order[np.argsort(turn[order], kind="stable")][:count]


def _first_of_each_class(labels: np.ndarray, wanted: Callable[[int], int], draw: int, seed: int) -> np.ndarray:
    order = _order(len(labels), draw, seed)
    chosen = []
    for number in np.unique(labels):
        members = order[labels[order] == number]
        chosen.append(members[: wanted(len(members))])
    return np.sort(np.concatenate(chosen))


def _order(count: int, draw: int, seed: int) -> np.ndarray:
    """The order in which a draw takes the rows."""
    return np.random.default_rng(stable_hash(seed, draw, "labels")).permutation(count)
