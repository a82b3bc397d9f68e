"""Temperature and threshold: against torch's optimum, a hand-made case and scikit-learn's balanced accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import log_loss as sk_log_loss

from ssl_mednet.probe import METRICS, best_threshold, fit_temperature, with_temperature
from ssl_mednet.probe.calibration import log_loss


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
    soft = np.where(np.eye(3)[targets] == 1, 501 / 502, 0.5 / 502)  # the rule of succession
    logits, y = torch.from_numpy(np.log(scores)), torch.from_numpy(soft)
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


def test_certain_scores_have_a_temperature_and_stay_certain() -> None:
    targets, scores = np.array([0, 1, 1, 0]), np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(with_temperature(scores, fit_temperature(targets, scores), multilabel=False), scores)


def test_rows_that_are_all_right_do_not_make_every_answer_certain() -> None:
    targets = np.repeat([0, 1], 50)
    second = np.clip(0.5 + 0.001 * (2 * targets - 1), 0, 1)
    scores = np.stack([1 - second, second], axis=1)
    calibrated = with_temperature(scores, fit_temperature(targets, scores), multilabel=False)
    np.testing.assert_allclose(calibrated.max(axis=1), 101 / 102, atol=1e-3)
    labels = np.stack([targets, 1 - targets], axis=1)
    each = with_temperature(scores[:, ::-1], fit_temperature(labels, scores[:, ::-1]), multilabel=True)
    np.testing.assert_allclose(np.maximum(each, 1 - each), 101 / 102, atol=1e-3)


def test_the_small_logits_of_strong_regularisation_are_made_as_large_as_they_should_be() -> None:
    targets, scores = overconfident(factor=1e-5)
    assert fit_temperature(targets, scores) == pytest.approx(1e-5, rel=0.1)


def test_a_class_that_had_no_training_row_changes_no_temperature() -> None:
    targets, scores = overconfident()
    wide = np.concatenate([scores, np.zeros((len(scores), 1))], axis=1)
    more, rows = np.concatenate([targets, [3, 3]]), np.concatenate([wide, wide[:2]])
    assert fit_temperature(more, rows) == pytest.approx(fit_temperature(targets, scores), rel=1e-3)
    assert log_loss(more, rows) == pytest.approx(log_loss(targets, scores))
    assert fit_temperature(np.array([3, 3]), wide[:2]) == 1.0


def test_the_loss_is_scikit_learn_s() -> None:
    targets, scores = overconfident()
    assert log_loss(targets, scores) == pytest.approx(sk_log_loss(targets, scores))
    labels = np.eye(3, dtype=int)[targets]
    each = [sk_log_loss(labels[:, c], scores[:, c]) for c in range(3)]
    assert log_loss(labels, scores) == pytest.approx(np.mean(each))


def test_the_threshold_has_the_best_balanced_accuracy_of_all() -> None:
    rng = np.random.default_rng(2)
    targets = (rng.random(300) < 0.1).astype(int)
    second = np.clip(0.2 + 0.2 * targets + 0.1 * rng.normal(size=300), 0, 1)
    chosen = best_threshold(targets, np.stack([1 - second, second], axis=1))
    found = balanced_accuracy_score(targets, second >= chosen)
    assert found == max(balanced_accuracy_score(targets, second >= t) for t in second)
    assert found > balanced_accuracy_score(targets, second >= 0.5)
