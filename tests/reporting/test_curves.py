"""What is drawn agrees with scikit-learn, with the metrics of `probe`, and with cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc, confusion_matrix, roc_auc_score, roc_curve

from ssl_mednet.probe import METRICS
from ssl_mednet.reporting.curves import (
    Mistake,
    confusion,
    describe_reliability,
    reliability,
    roc,
    roc_by_class,
    worst_mistakes,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def multiclass(rng: np.random.Generator, n: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    targets = rng.integers(0, classes, n)
    scores = np.exp(rng.normal(size=(n, classes)) + 1.2 * (targets[:, None] == np.arange(classes)))
    return targets, np.round(scores / scores.sum(axis=1, keepdims=True), 2)  # rounded: with ties


def test_two_classes_have_the_roc_of_the_second(rng: np.random.Generator) -> None:
    targets, scores = multiclass(rng, classes=2)
    fpr, tpr = roc(targets, scores)
    expected = roc_curve(targets, scores[:, 1])
    np.testing.assert_array_equal(fpr, expected[0])
    np.testing.assert_array_equal(tpr, expected[1])


def test_the_area_under_the_macro_curve_is_the_mean_of_the_areas(rng: np.random.Generator) -> None:
    targets, scores = multiclass(rng)
    fpr, tpr = roc(targets, scores)
    assert (fpr[0], fpr[-1], tpr[-1]) == (0, 1, 1)
    assert np.all(np.diff(fpr) >= 0)
    assert np.all(np.diff(tpr) >= -1e-12)
    single = [roc_auc_score(targets == c, scores[:, c]) for c in range(4)]
    assert auc(fpr, tpr) == pytest.approx(np.mean(single), abs=1e-12)
    labels = rng.integers(0, 2, (150, 3))
    found = 1 / (1 + np.exp(-rng.normal(size=(150, 3)) - labels))
    assert auc(*roc(labels, found)) == pytest.approx(roc_auc_score(labels, found, average="macro"), abs=1e-12)


def test_a_class_that_is_absent_has_no_curve() -> None:
    targets = np.array([0, 0, 1, 1])
    scores = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    assert roc_by_class(targets, scores)[2] is None
    assert auc(*roc(targets, scores)) == pytest.approx(0.5 * (3 / 4 + 3 / 4))
    assert len(roc(np.zeros(4, int), scores[:, :2])[0]) == 0


@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
def test_reliability_has_the_bins_of_the_ece(rng: np.random.Generator, kind: str) -> None:
    targets, scores = multiclass(rng)
    if kind == "multi-label":
        targets, scores = rng.integers(0, 2, (80, 1)), rng.uniform(size=(80, 1))
    bins = reliability(targets, scores)
    filled = bins.count > 0
    assert len(bins.count) == 15
    assert bins.count.sum() == len(targets)
    distance = np.abs(bins.confidence - bins.frequency)[filled]
    assert (bins.count[filled] * distance).sum() / len(targets) == pytest.approx(METRICS["ece"](targets, scores))


def test_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    scores = np.array([[3 / 15, 12 / 15], [0.0, 1.0]])
    bins = reliability(np.array([1, 0]), scores)
    assert np.flatnonzero(bins.count).tolist() == [11, 14]
    assert bins.frequency[[11, 14]].tolist() == [1, 0]


def test_reliability_is_described_as_it_is() -> None:
    sure = np.tile([0.1, 0.9], (100, 1))
    half = np.arange(100) % 2
    assert describe_reliability(reliability(half, sure)) == "On average 40 points too sure of itself."
    modest = np.tile([0.4, 0.6], (100, 1))
    assert "40 points less sure" in describe_reliability(reliability(np.ones(100, int), modest))
    right = np.r_[np.ones(90, int), np.zeros(10, int)]
    assert "less than 2 points" in describe_reliability(reliability(right, sure))
    assert "hollow points" in describe_reliability(reliability(half[:6], sure[:6]))


def test_confusion_has_truth_in_rows_and_all_classes(rng: np.random.Generator) -> None:
    targets, scores = multiclass(rng)
    np.testing.assert_array_equal(confusion(targets, scores), confusion_matrix(targets, scores.argmax(axis=1)))
    one = confusion(np.array([0, 0]), np.array([[0.1, 0.2, 0.7], [0.6, 0.2, 0.2]]))
    assert one.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_worst_mistakes_are_wrong_and_in_order() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.55, 0.45], [0.4, 0.6]])
    assert worst_mistakes(np.array([1, 1, 1, 0]), scores, 2) == [Mistake(0, 1, 0, 0.9), Mistake(3, 0, 1, 0.6)]
    assert len(worst_mistakes(np.array([1, 1, 1, 0]), scores, 9)) == 3
    assert worst_mistakes(np.array([0, 1, 0, 1]), scores, 9) == []


def test_worst_mistakes_of_labels_say_which_and_whether_it_was_there() -> None:
    scores = np.array([[0.02, 0.4], [0.9, 0.6], [0.1, 0.1]])
    found = worst_mistakes(np.array([[1, 0], [0, 0], [0, 0]]), scores, 9)
    assert found == [Mistake(0, 1, 0, 0.98), Mistake(1, 0, 0, 0.9)]
