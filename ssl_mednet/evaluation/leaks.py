"""Whether test images are among the training images of their own set: a score on those says nothing."""

from __future__ import annotations

import json

import numpy as np

from ssl_mednet.auditing.copies import copied
from ssl_mednet.auditing.near import EXACT, NEAR, Pairs
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.files import cache_folder, write_json

FORMAT = 1  # part of the cache's name: counts made another way are never read


def count_copies(task: LabelledSet) -> dict[str, int]:
    """``{"exact": N, "near": M}``: test images with an equal, else with a nearly equal, image in the training split.

    Found as :func:`ssl_mednet.auditing.audit` finds them; kept in the cache by the fingerprint of the set. Phantoms are
    made each from its own number: they look alike, and none is a copy.
    """
    if task.source.startswith("phantoms:"):
        return {EXACT: 0, NEAR: 0}
    path = cache_folder() / "leaks" / f"{FORMAT}-{task.fingerprint}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    found = copied(task.corpus, task.corpus, task.splits["train"], task.splits["test"])
    counted = {kind: len(rows) for kind, rows in found.items()}
    write_json(path, counted)
    return counted


def count_parted(task: LabelledSet, rows: np.ndarray, fold: np.ndarray) -> dict[str, int]:
    """As :func:`count_copies`, of rows that folds ``[N]`` score: those with an image like them in another fold."""
    if task.source.startswith("phantoms:"):
        return {EXACT: 0, NEAR: 0}
    home = np.full(len(task.corpus), -1)
    home[rows] = fold

    def parted(pairs: Pairs) -> np.ndarray:
        return np.asarray(home[pairs.left] != home[pairs.right])

    return {kind: len(found) for kind, found in copied(task.corpus, task.corpus, rows, rows, parted).items()}
