"""Temperature and threshold: against torch's optimum, a hand-made case and scikit-learn's balanced accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from ssl_mednet.probe import METRICS, best_threshold, fit_temperature, with_temperature


def overconfident(n: int = 4000, classes: int = 3, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets drawn from the true probabilities, and scores whose logits are ``factor`` times too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, classes))
    targets = np.array([rng.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return targets, softmax(factor * logits, axis=1)


def test_the_temperature_is_the_factor_that_was_put_in() -> None:
    targets, scores = overconfident()
    assert fit_temperature(targets, scores) == pytest.approx(3.0, rel=0.1)


def test_the_temperature_minimises_the_likelihood_that_torch_computes() -> None:
    targets, scores = overconfident(500)
    best = fit_temperature(targets, scores)
    logits, y = torch.from_numpy(np.log(scores)), torch.from_numpy(targets)
    losses = {t: float(torch.nn.functional.cross_entropy(logits / t, y)) for t in (best, 0.95 * best, 1.05 * best)}
    assert min(losses, key=losses.__getitem__) == best


def test_calibration_lowers_the_error_on_rows_that_it_did_not_see_and_keeps_the_decisions() -> None:
    targets, scores = overconfident()
    temperature = fit_temperature(targets[:2000], scores[:2000])
    test, truth = scores[2000:], targets[2000:]
    calibrated = with_temperature(test, temperature, multilabel=False)
    assert METRICS["ece"](truth, calibrated) < 0.3 * METRICS["ece"](truth, test)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), test.argmax(axis=1))
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)


def test_labels_are_calibrated_each_by_the_same_temperature() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(4000, 4))
    targets = (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(int)
    scores = 1 / (1 + np.exp(-2 * z))
    assert fit_temperature(targets, scores) == pytest.approx(2.0, rel=0.1)
    np.testing.assert_allclose(with_temperature(scores, 2.0, multilabel=True), 1 / (1 + np.exp(-z)), atol=1e-9)


def test_certain_scores_have_a_temperature() -> None:
    targets, scores = np.array([0, 1, 1, 0]), np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]])
    assert np.isfinite(with_temperature(scores, fit_temperature(targets, scores), multilabel=False)).all()


def test_the_threshold_has_the_best_balanced_accuracy_of_all() -> None:
    rng = np.random.default_rng(2)
    targets = (rng.random(300) < 0.1).astype(int)
    second = np.clip(0.2 + 0.2 * targets + 0.1 * rng.normal(size=300), 0, 1)
    chosen = best_threshold(targets, np.stack([1 - second, second], axis=1))
    found = balanced_accuracy_score(targets, second >= chosen)
    assert found == max(balanced_accuracy_score(targets, second >= t) for t in second)
    assert found > balanced_accuracy_score(targets, second >= 0.5)
