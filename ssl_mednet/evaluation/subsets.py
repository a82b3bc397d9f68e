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
    """Positions of a share of the rows, of every class alike and at least one of each; multi-label rows at large.

    Args:
        labels: ``[N]`` class numbers, or ``[N, L]``.
    """
    if share >= 1:
        return np.arange(len(labels))
    strata = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    return _first_of_each_class(strata, lambda count: max(1, round(share * count)), draw, seed)


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
    order = np.random.default_rng(stable_hash(seed, draw, "labels")).permutation(len(labels))
    chosen = []
    for number in np.unique(labels):
        members = order[labels[order] == number]
        chosen.append(members[: wanted(len(members))])
    return np.sort(np.concatenate(chosen))
