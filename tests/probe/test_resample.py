"""Intervals over several fits: they hold the choice of labels as well as that of test rows."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_mednet.probe import METRICS, bootstrap, difference, paired_bootstrap, resample

AUROC = {"auroc": METRICS["auroc"]}


def fits(draws: int, n: int = 300, noise: float = 0.3, between: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Targets and ``[D, N, 2]`` scores of fits that differ in how good they are."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, n)
    signal = np.abs(1 + between * rng.normal(size=draws))[:, None]
    second = 1 / (1 + np.exp(-(signal * (targets - 0.5) + noise * 3 * rng.normal(size=(draws, n)))))
    return targets, np.stack([1 - second, second], axis=-1)


def test_the_value_is_the_mean_over_the_fits() -> None:
    targets, scores = fits(5)
    found = resample(AUROC, targets, scores, n=50)["auroc"].value
    assert found == pytest.approx(np.mean([METRICS["auroc"](targets, s) for s in scores]))


def test_one_fit_is_the_plain_bootstrap() -> None:
    targets, scores = fits(1)
    one = resample(AUROC, targets, scores, n=200, seed=3)["auroc"].interval()
    assert one == bootstrap(AUROC, targets, scores[0], n=200, seed=3)["auroc"]


def test_fits_that_differ_widen_the_interval() -> None:
    targets, scores = fits(6, between=2.0)
    width = []
    for chosen in (scores, np.repeat(scores[:1], 6, axis=0)):
        interval = resample(AUROC, targets, chosen, n=400)["auroc"].interval()
        width.append(interval.high - interval.low)
    assert width[0] > 1.5 * width[1]


def test_the_difference_of_resampled_metrics_is_the_paired_bootstrap() -> None:
    targets, scores = fits(8)
    better = np.clip(scores + 0.2 * np.stack([1 - targets, targets], axis=-1), 0, 1)
    a, b = (resample(AUROC, targets, s, n=300)["auroc"] for s in (better, scores))
    assert difference(a, b) == paired_bootstrap(METRICS["auroc"], targets, better, scores, n=300)
    assert difference(a, b).verdict == "better"
    assert difference(b, a).verdict == "worse"
    assert difference(a, a).verdict == "cannot tell"


def test_groups_are_drawn_as_wholes_for_fits_too() -> None:
    targets, scores = fits(4, n=60)
    wide, groups = np.repeat(targets, 10), np.repeat(np.arange(60), 10)
    copies = np.repeat(scores, 10, axis=1)
    grouped = resample(AUROC, wide, copies, groups, n=300)["auroc"].interval()
    single = resample(AUROC, targets, scores, n=300)["auroc"].interval()
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.25)


def test_one_group_alone_has_no_interval() -> None:
    targets, scores = fits(3, n=40)
    assert np.isnan(resample(AUROC, targets, scores, np.zeros(40, int), n=20)["auroc"].interval().low)
