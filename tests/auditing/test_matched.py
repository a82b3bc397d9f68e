"""That each image is compared until it has a match and no longer, and with what stays."""

from __future__ import annotations

import numpy as np
import pytest
from audit_helpers import picture
from PIL import Image

from ssl_mednet.auditing import alike
from ssl_mednet.auditing.copies import copied, copies
from ssl_mednet.auditing.near import EXACT, NEAR, Pairs
from ssl_mednet.auditing.quality import Mark, curate

Same = np.ndarray  # [N, N] bool, symmetric: which pictures are alike


def relation(kind: str, count: int = 60) -> Same:
    generator = np.random.default_rng(3)
    apart = np.abs(np.arange(count)[:, None] - np.arange(count))
    if kind == "random":
        drawn = np.triu(generator.random((count, count)) < 0.08)
        return drawn | drawn.T
    return {"still": apart >= 0, "drifting": apart <= 7, "chain": apart <= 1, "none": apart < 0}[kind]


def first_stays(same: Same) -> list[int]:
    """Row by row, what is like an earlier one that stays."""
    left_out: list[int] = []
    for row in range(len(same)):
        if any(same[row, before] for before in range(row) if before not in left_out):
            left_out.append(row)
    return left_out


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch):
    """Take a relation for the pixels, and note which pairs were looked at."""

    def use(same: Same) -> list[tuple[int, int]]:
        looked: list[tuple[int, int]] = []

        def look(pairs: Pairs, left: object, right: object, threshold: float) -> np.ndarray:
            looked.extend(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
            return np.asarray(same[pairs.left, pairs.right])

        monkeypatch.setattr(alike, "_alike", look)
        return looked

    return use


def parts(left: np.ndarray, right: np.ndarray, size: int) -> list[Pairs]:
    """Pairs in the order of the right ones, so many right ones a part."""
    order = np.lexsort((left, right))
    left, right = left[order], right[order]
    cuts = [right // size == part for part in range(int(right.max()) // size + 1)]
    return [Pairs(left[cut], right[cut], np.zeros(int(cut.sum()), np.float32)) for cut in cuts]


@pytest.mark.parametrize("size", [7, 60])
@pytest.mark.parametrize("kind", ["random", "still", "drifting", "chain", "none"])
def test_the_first_of_several_copies_stays(kind: str, size: int, looking) -> None:
    same = relation(kind)
    looked = looking(same)
    left, right = np.triu_indices(len(same), 1)
    found = alike.matched(iter(parts(left, right, size)), range(60), range(60), among_kept=True)  # type: ignore[arg-type]
    assert found.tolist() == first_stays(same)
    assert len(looked) == len(set(looked)), "no pair is looked at twice"
    if kind == "still":
        assert len(looked) == 59, "each frame once, with the first"
    if kind == "none":
        assert len(looked) == 60 * 59 / 2


@pytest.mark.parametrize("kind", ["random", "still", "none"])
def test_between_two_sets_each_row_is_found_that_has_a_match(kind: str, looking) -> None:
    same = relation(kind)
    looked = looking(same)
    left, right = (grid.ravel() for grid in np.meshgrid(np.arange(60), np.arange(60)))
    found = alike.matched(iter(parts(left, right, 16)), range(60), range(60))  # type: ignore[arg-type]
    assert found.tolist() == np.flatnonzero(same.any(axis=0)).tolist()
    assert len(looked) == (60 if kind == "still" else len(set(looked)))


def frames(count: int) -> list[Image.Image]:
    """A picture that stands still, with the noise of each frame."""
    still, generator = np.asarray(picture(0, "ultrasound", 96), np.float32), np.random.default_rng(0)
    noisy = [(still + generator.normal(0, 2, still.shape)).clip(0, 255).astype(np.uint8) for _ in range(count)]
    return [Image.fromarray(frame) for frame in noisy]


def test_still_frames_cost_one_comparison_each(make_corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = alike.similarity
    monkeypatch.setattr(alike, "similarity", lambda one, two: (compared.append(len(one)), real(one, two))[1])
    corpus = make_corpus([picture(1), *frames(80), picture(2)], "ultrasound")
    marks = curate(corpus, quiet=True).marks
    assert (marks == Mark.NEAR).sum() == 79
    assert marks[[0, 1, 81]].tolist() == [0, 0, 0]
    assert sum(compared) < 100

    compared.clear()
    half = np.arange(1, 41), np.arange(41, 81)
    found = copied(corpus, corpus, *half)
    assert (found[EXACT].tolist(), found[NEAR].tolist()) == ([], half[1].tolist())
    assert sum(compared) < 50
    assert np.unique(copies(corpus, corpus, *half)[NEAR].right).tolist() == half[1].tolist()
