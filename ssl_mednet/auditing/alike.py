"""Whether two pictures are one picture: compared after the shift, the zoom and the levels that fit best."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.auditing.near import Pairs
from ssl_mednet.augment.views import resize
from ssl_mednet.data.corpus import Corpus

# Of copies (JPEG at quality 70, half the size, 2 pixels cropped, 5 % brighter) of real images of 64 and 96 pixels,
# 95 in 100 or more correlate above 0.995 in every modality tried; of 794 pairs of chest X-rays of different patients
# whose hashes are near, none does.
CORRELATION = 0.995
SIDE = 32  # of the pictures that are compared
_BLUR = 1.0  # their blur (a standard deviation, pixels), so that how they were scaled does not matter
_EDGE = 2  # pixels of the border that are not compared: they may lie outside the other picture
_ROUNDS = 4
_FIRST = 0.9  # what a pair has reached after one round, or it never will
_STEP, _MOST = 0.06, 0.12  # how far a round may move, and all of them together; half the picture is 1
_BATCH, _PAIRS = 256, 2048


def pictures(corpus: Corpus, rows: np.ndarray) -> Tensor:
    """What is compared of these rows: gray, small, blurred, ``[N, 32, 32]`` float32."""
    parts = [_small(corpus, rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
    return torch.cat(parts) if parts else torch.empty(0, SIDE, SIDE)


def confirmed(candidates: Iterator[Pairs], left: Corpus, right: Corpus, threshold: float = CORRELATION) -> Pairs:
    """Those of the candidates, rows of ``left`` and ``right``, whose pictures are alike.

    Only what is named is read, a part at a time, so memory does not grow with the corpora.
    """
    return Pairs.joined([part.of(_alike(part, left, right, threshold)) for part in candidates])


def matched(
    candidates: Iterator[Pairs], left: Corpus, right: Corpus, among_kept: bool = False, threshold: float = CORRELATION
) -> np.ndarray:
    """The rows of ``right`` whose picture is that of one of their candidates, ascending, int64.

    A row that has one is not compared again, so what many rows share costs each of them one comparison, not many.

    Args:
        candidates: parts in which the pairs of a row of ``right`` stand together.
        among_kept: of one corpus, in pairs ``left < right`` of ascending parts: a row that has been found is no
            candidate any more, so that of several copies the first is left, and a copy of what is left out stays.
    """
    found = np.zeros(len(right), bool)
    for part in candidates:
        _settle(part, found, among_kept, lambda some: _alike(some, left, right, threshold))
    return np.flatnonzero(found)


def _settle(part: Pairs, found: np.ndarray, among_kept: bool, alike: Callable[[Pairs], np.ndarray]) -> None:
    """Note in ``found`` the rows of a part that have a match; few of each are looked at first, then twice as many."""
    looked, same, most = np.zeros(len(part), bool), np.zeros(len(part), bool), 1
    while True:
        counts = ~found[part.right] & (same | ~looked)
        if among_kept:
            counts &= ~found[part.left]
        part, looked, same = part.of(counts), looked[counts], same[counts]
        if not len(part):
            return
        certain = same.copy()
        if among_kept:  # a match that may yet turn out to be a copy itself is waited for
            open_rows = np.zeros_like(found)
            open_rows[part.right] = True
            certain &= ~open_rows[part.left]
        if certain.any():
            found[part.right[certain]] = True
            continue
        waiting = np.zeros_like(found)
        waiting[part.right[same]] = True
        asked = np.flatnonzero(~looked & ~waiting[part.right])
        asked = asked[part.of(asked).first(most)]
        looked[asked], same[asked] = True, alike(part.of(asked))
        most *= 2


def _alike(pairs: Pairs, left: Corpus, right: Corpus, threshold: float) -> np.ndarray:
    """Which pairs have pictures that are alike, mask ``[P]``; a part of them is read at a time."""
    parts = [np.zeros(0, bool)]
    for start in range(0, len(pairs), _PAIRS):
        some = pairs.of(np.arange(start, min(start + _PAIRS, len(pairs))))
        one, two = (_of(c, rows) for c, rows in ((left, some.left), (right, some.right)))
        parts.append((similarity(one, two) >= threshold).numpy())
    return np.concatenate(parts)


def similarity(one: Tensor, two: Tensor) -> Tensor:
    """How far pictures ``[N, 32, 32]`` are the same, in [-1, 1] ``[N]``; the larger of both directions.

    A picture is moved onto the other by Gauss-Newton over shift and zoom of both axes (Lucas and Kanade, 1981,
    section 4), with gain and offset free, and then correlated with it.
    """
    best = torch.maximum(_aligned(one, two, 1), _aligned(two, one, 1))
    hopeful = best >= _FIRST
    if hopeful.any():
        one, two = one[hopeful], two[hopeful]
        best[hopeful] = torch.maximum(_aligned(one, two, _ROUNDS), _aligned(two, one, _ROUNDS))
    return best


def _of(corpus: Corpus, rows: np.ndarray) -> Tensor:
    distinct, places = np.unique(rows, return_inverse=True)
    return pictures(corpus, distinct)[torch.from_numpy(places)]


def _small(corpus: Corpus, rows: np.ndarray) -> Tensor:
    images = resize(corpus.batch(rows), SIDE)
    weights = images.new_tensor([0.299, 0.587, 0.114] if images.shape[1] == 3 else [1.0])  # ITU-R BT.601
    gray = torch.einsum("bchw,c->bhw", images, weights)[:, None]
    reach = torch.arange(-3, 4, dtype=gray.dtype)
    kernel = torch.exp(-(reach**2) / (2 * _BLUR**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, 7)
    padded = F.pad(gray, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))[:, 0]


def _aligned(moving: Tensor, still: Tensor, rounds: int) -> Tensor:
    """The best correlation ``[N]`` on the way."""
    place = moving.new_tensor([1.0, 0.0, 1.0, 0.0]).repeat(len(moving), 1)  # zoom and shift of x, then of y
    neutral, goal = place.clone(), _inner(still)
    best = moving.new_full((len(moving),), -1.0)
    for number in range(rounds + 1):
        moved, line = _warped(moving, place)
        inner = _inner(moved)
        norms = (inner.norm(dim=-1) * goal.norm(dim=-1)).clamp_min(1e-6)
        best = torch.maximum(best, (inner * goal).sum(-1) / norms)
        if number < rounds:
            step = _step(moved, line, inner, goal).clamp(-_STEP, _STEP)
            place = neutral + (place + step - neutral).clamp(-_MOST, _MOST)
    return best


def _step(moved: Tensor, line: Tensor, inner: Tensor, goal: Tensor) -> Tensor:
    """The change of zoom and shift ``[N, 4]`` that explains most of what still differs."""
    down, right = torch.gradient(moved, dim=(-2, -1))
    down, right = down * (SIDE / 2), right * (SIDE / 2)
    basis = torch.stack([inner, *(_inner(g) for g in (right * line, right, down * line[:, None], down))], dim=1)
    gram = basis @ basis.transpose(1, 2)  # [N, 5, 5]
    gram = gram + torch.diag_embed(1e-4 * gram.diagonal(dim1=1, dim2=2) + 1e-9)  # flat pictures have no gradient
    solved = torch.linalg.solve(gram, basis @ goal[..., None])[..., 0]
    return solved[:, 1:] / solved[:, :1].clamp_min(0.2)  # the first is the gain


def _warped(pictures: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    line = (torch.arange(SIDE, dtype=pictures.dtype) + 0.5) * 2 / SIDE - 1
    x = (place[:, 0, None] * line + place[:, 1, None])[:, None, :].expand(-1, SIDE, -1)
    y = (place[:, 2, None] * line + place[:, 3, None])[:, :, None].expand(-1, -1, SIDE)
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(pictures[:, None], grid, padding_mode="border", align_corners=False)[:, 0], line


def _inner(pictures: Tensor) -> Tensor:
    """All but the border, the mean taken out, ``[N, L]``."""
    flat = pictures[:, _EDGE:-_EDGE, _EDGE:-_EDGE].flatten(1)
    return flat - flat.mean(-1, keepdim=True)
