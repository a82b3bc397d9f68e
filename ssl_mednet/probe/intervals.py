"""How sure a figure is: percentile bootstrap intervals, of one model and of the difference of two (Efron 1979).

The unit that is drawn is the group (patient, lesion, slide) where a row has one and the row itself where it has none
(group -1): rows of one patient are not independent, and pretending so makes intervals too narrow. What is drawn depends
on the number of rows, the groups and the seed alone, so every model is measured on the same resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssl_mednet.errors import DataError
from ssl_mednet.probe.checks import Array, ArrayLike, to_numpy
from ssl_mednet.probe.metrics import Metric, mean_of_defined

LEVEL = (2.5, 97.5)
Verdict = Literal["better", "worse", "cannot tell"]
_BLOCK = 1_000_000  # weights held at once: 8 MB, so that a block stays in the cache


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval.

    ``low`` and ``high`` are NaN where there are fewer than two units to draw, or the metric was defined in no resample.
    ``resamples`` counts those it was defined in: the others are left out.
    """

    value: float
    low: float
    high: float
    resamples: int


@dataclass(frozen=True)
class Difference:
    """Model A less model B, with its 95 % interval and two-sided p value.

    ``verdict`` is about A, and minds which direction is good for the metric: "better" or "worse" needs an interval that
    excludes zero and p < 0.05; all else is "cannot tell".
    """

    value: float
    low: float
    high: float
    p: float
    verdict: Verdict


def units_of(rows: int, groups: ArrayLike | None) -> Array:
    """``[rows]``: the number 0 .. U - 1 of the unit that each row is drawn with.

    Raises:
        DataError: not one group a row.
    """
    if groups is None:
        return np.arange(rows)
    groups = to_numpy(groups)
    if groups.shape != (rows,):
        raise DataError(f"groups have shape {list(groups.shape)}, wanted [{rows}]")
    keys = np.where(groups < 0, groups.max(initial=0) + 1 + np.arange(rows), groups)
    return np.unique(keys, return_inverse=True)[1]


def resample_weights(rows: int, groups: ArrayLike | None = None, n: int = 1000, seed: int = 0) -> Iterator[Array]:
    """Blocks ``[rows, B]`` of how often each of ``n`` resamples drew each row; together they are ``n`` wide."""
    unit_of_row = units_of(rows, groups)
    units = int(unit_of_row.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(rows, 1))
    for start in range(0, n, block):
        width = min(block, n - start)
        drawn = rng.integers(units, size=(width, units)) * width + np.arange(width)[:, None]
        yield np.bincount(drawn.ravel(), minlength=units * width).reshape(units, width)[unit_of_row].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Resampled:
    """A metric on the whole sample (``value``) and on each resample (``draws`` ``[n]``, NaN where it is not defined).

    ``single`` is True where there are fewer than two units to draw, so that the draws say nothing.
    """

    value: float
    draws: Array
    single: bool = False

    def interval(self) -> Interval:
        """The percentile interval."""
        defined = self.draws[~np.isnan(self.draws)]
        if self.single or not len(defined):
            return Interval(self.value, float("nan"), float("nan"), len(defined))
        low, high = np.percentile(defined, LEVEL)
        return Interval(self.value, float(low), float(high), len(defined))


def resample(
    metrics: Mapping[str, Metric],
    targets: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Each metric on the whole sample and on ``n`` resamples of it.

    Scores of D fits on other draws of labels make the metric the mean over the fits; each resample then draws D of the
    fits too, so that the interval holds both the choice of test rows and that of labels.

    Args:
        metrics: by the name they shall have in the result.
        targets: ``[N]`` or multi-label ``[N, L]``.
        scores: ``[N, C]`` of one fit, or ``[D, N, C]``.
        groups: ``[N]`` int, -1 for a row without one.
        n: resamples.
        seed: of the draw; equal seeds, rows, groups and D give equal resamples, so two models can be paired.

    Raises:
        DataError: the shapes or values do not fit.
    """
    fits = to_numpy(scores)
    fits = fits[None] if fits.ndim == 2 else fits
    single = bool(units_of(len(targets), groups).max(initial=0) < 1)
    chosen = np.random.default_rng([seed, len(fits)]).integers(len(fits), size=(n, len(fits)))
    out = {}
    for name, metric in metrics.items():
        prepared = [metric.prepare(targets, fit) for fit in fits]
        whole = np.array([f(np.ones((len(targets), 1)))[0] for f in prepared])
        blocks = [np.stack([f(w) for f in prepared]) for w in resample_weights(len(targets), groups, n, seed)]
        draws = np.concatenate([*blocks, np.empty((len(fits), 0))], axis=1)  # [D, n]
        mixed = draws[chosen.T, np.arange(n)] if len(fits) > 1 else draws
        out[name] = Resampled(float(mean_of_defined(whole[:, None])[0]), mean_of_defined(mixed), single)
    return out


def bootstrap(
    metrics: Mapping[str, Metric],
    targets: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each metric on the whole sample, with its percentile interval over ``n`` resamples; see :func:`resample`."""
    return {k: r.interval() for k, r in resample(metrics, targets, scores, groups, n, seed).items()}


def paired_bootstrap(
    metric: Metric,
    targets: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
) -> Difference:
    """``metric`` of A less that of B on the same resamples; arguments as in :func:`resample`."""
    a, b = (resample({"": metric}, targets, s, groups, n, seed)[""] for s in (scores_a, scores_b))
    return difference(a, b, metric.higher_is_better)


def difference(a: Resampled, b: Resampled, higher_is_better: bool = True) -> Difference:
    """A less B, both of one metric on the same resamples.

    The p value is twice the smaller share of resamples on one side of zero, with one added to both counts so that it is
    never 0 (Davison and Hinkley 1997, section 4.2); it cannot be below ``2 / (n + 1)``.
    """
    less = Resampled(a.value - b.value, a.draws - b.draws, a.single or b.single)
    interval = less.interval()
    one_side = min(int((less.draws <= 0).sum()), int((less.draws >= 0).sum()))
    p = min(1.0, 2 * (one_side + 1) / (interval.resamples + 1)) if not np.isnan(interval.low) else 1.0
    verdict: Verdict = "cannot tell"
    if p < 0.05 and (interval.low > 0 or interval.high < 0):
        verdict = "better" if (interval.low > 0) == higher_is_better else "worse"
    return Difference(interval.value, interval.low, interval.high, p, verdict)
