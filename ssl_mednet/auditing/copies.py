"""Which rows of one corpus are, exactly or nearly, rows of another: candidates by hash, decided by the pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ssl_mednet.auditing.alike import confirmed, matched
from ssl_mednet.auditing.near import EXACT, NEAR, Pairs, exact_between, near_between
from ssl_mednet.auditing.records import records
from ssl_mednet.data.corpus import Corpus


def copies(
    left: Corpus, right: Corpus, left_rows: np.ndarray | None = None, right_rows: np.ndarray | None = None
) -> dict[str, Pairs]:
    """Pairs with equal pixels, and pairs with other pixels that show the same picture.

    Args:
        left_rows, right_rows: those that count; all when None.
    """
    exact, candidates = _candidates(left, right, left_rows, right_rows)
    return {EXACT: exact, NEAR: confirmed(candidates, left, right)}


def copied(
    left: Corpus,
    right: Corpus,
    left_rows: np.ndarray,
    right_rows: np.ndarray,
    counts: Callable[[Pairs], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Rows of ``right`` that are in such a pair, ``[K]`` each: exact, and near those that are not exact.

    Faster than :func:`copies` where many images are alike, as a row that has one is not compared with the others.

    Args:
        counts: mask of the pairs that count; all when None.
    """
    exact, near = _candidates(left, right, left_rows, right_rows)
    if counts is not None:
        exact, near = exact.of(counts(exact)), (part.of(counts(part)) for part in near)
    equal = np.unique(exact.right)
    return {EXACT: equal, NEAR: np.setdiff1d(matched(near, left, right), equal)}


def _candidates(
    left: Corpus, right: Corpus, left_rows: np.ndarray | None, right_rows: np.ndarray | None
) -> tuple[Pairs, Iterator[Pairs]]:
    """The pairs with equal pixels, and those with other pixels whose hashes are near."""
    mine, theirs = records(left), records(right)
    own = np.arange(len(left)) if left_rows is None else left_rows
    other = np.arange(len(right)) if right_rows is None else right_rows
    a, b = own[mine.varied[own]], other[theirs.varied[other]]
    exact = exact_between(mine.sha256[a], theirs.sha256[b]).within(a, b)
    a, b = own[mine.clear[own]], other[theirs.clear[other]]

    def near() -> Iterator[Pairs]:
        for part in near_between(mine.phash[a], theirs.phash[b]):
            rows = part.within(a, b)
            yield rows.of((mine.sha256[rows.left] != theirs.sha256[rows.right]).any(axis=1))

    return exact, near()
