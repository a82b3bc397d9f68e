"""Cross-validation of few labels: scores that are ranked and calibrated as those of fresh images, however few."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ssl_mednet.classifying.folds import CrossValidated, _at_prior, _folds, cross_validate
from ssl_mednet.errors import DataError
from ssl_mednet.probe import DEFAULT_STRENGTHS, METRICS, fit_temperature, with_temperature

Drawn = tuple[np.ndarray, np.ndarray]


def drawn(counts: list[int], signal: float, seed: int = 0, d: int = 32) -> Drawn:
    """Features and labels of so many images a class, around the same means for every seed."""
    means = np.random.default_rng(99).normal(size=(len(counts), d))
    labels = np.repeat(np.arange(len(counts)), counts)
    return signal * means[labels] + np.random.default_rng(seed).normal(size=(len(labels), d)), labels


def validated(x: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> CrossValidated:
    groups = np.full(len(labels), -1) if groups is None else groups
    return cross_validate(x, labels, groups, DEFAULT_STRENGTHS, "abc"[: labels.max() + 1])


def test_no_score_knows_its_own_label_or_group() -> None:
    """Labels that are noise, equal in each group: a probe that had seen a row's group would know its label."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    labels = rng.permutation(np.repeat([0, 1], 15))[groups]
    features = rng.normal(size=(30, 60))[groups] + 0.01 * rng.normal(size=(120, 60))
    fold = _folds(labels, groups, 0)
    assert all(len(set(fold[groups == g])) == 1 for g in range(30))
    strengths = (1e-3, 1e-1, 10.0)
    found = cross_validate(features, labels, groups, strengths, "ab")
    assert roc_auc_score(labels, found.scores[:, 1]) < 0.75
    leaked = cross_validate(features, labels, np.full(120, -1), strengths, "ab")
    assert roc_auc_score(labels, leaked.scores[:, 1]) > 0.85


def test_scores_of_noise_are_a_coin_though_groups_have_one_class() -> None:
    """A probe that sees few of a class thinks it rare, and exactly then the fold holds many of it."""
    values = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(24), 6)
        labels = rng.permutation(np.arange(24) % 3 == 0).astype(int)[groups]
        x = rng.normal(size=(24, 8))[groups] + 0.3 * rng.normal(size=(144, 8))
        values.append(roc_auc_score(labels, validated(x, labels, groups).scores[:, 1]))
    assert 0.4 < np.mean(values) < 0.6


def test_a_probe_that_knows_the_frequencies_alone_says_those_of_all_rows() -> None:
    labels, fitted = np.repeat([0, 1, 2], [50, 30, 20]), np.repeat([0, 1], [40, 10])
    moved = _at_prior(np.tile([0.8, 0.2, 0.0], (4, 1)), fitted, labels)
    np.testing.assert_allclose(moved, np.tile([0.625, 0.375, 0.0], (4, 1)))  # the third was never seen
    findings, few = np.stack([labels == 0, labels == 1], axis=1).astype(int), np.eye(2, dtype=int)[fitted]
    np.testing.assert_allclose(_at_prior(np.tile([0.8, 0.2], (4, 1)), few, findings), np.tile([0.5, 0.3], (4, 1)))


@pytest.mark.parametrize("counts", [[50, 50], [47, 53], [40, 60], [60, 20, 10]])
def test_easy_classes_are_told_apart_calibrated_and_decided(counts: list[int]) -> None:
    """Images that are ranked without fault at every strength: only the loss tells which probabilities are right."""
    found = validated(*drawn(counts, 1.5))
    labels, many = drawn(counts, 1.5)[1], drawn([200] * len(counts), 1.5, seed=1)
    assert METRICS["auroc"](labels, found.scores) > 0.99
    temperature = fit_temperature(labels, found.scores)
    assert 0.02 < temperature < 20
    fresh = with_temperature(found.probe.predict_proba(many[0]), temperature, multilabel=False)
    assert METRICS["balanced_accuracy"](many[1], fresh) > 0.95
    assert METRICS["ece"](many[1], fresh) < 0.1


def test_classes_that_overlap_are_calibrated_on_fresh_images() -> None:
    x, labels = drawn([60, 60], 0.25)
    found, (fresh, truth) = validated(x, labels), drawn([2000, 2000], 0.25, seed=1)
    scores = with_temperature(found.probe.predict_proba(fresh), fit_temperature(labels, found.scores), False)
    assert 0.7 < METRICS["auroc"](truth, scores) < 0.95
    assert METRICS["ece"](truth, scores) < 0.12


@pytest.mark.parametrize("each", [3, 4])
def test_three_images_of_a_class_are_enough(each: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = validated(*drawn([each, each], 3.0))
    assert found.folds == each
    assert found.scores.shape == (2 * each, 2)


def test_a_class_with_one_image_does_not_make_the_others_uncertain() -> None:
    x, labels = drawn([50, 50, 1], 1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = validated(x, labels)
    alone = validated(x[:100], labels[:100])
    assert fit_temperature(labels, found.scores) < 2 * fit_temperature(labels[:100], alone.scores) + 0.2


def test_fewer_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="at most 2 of a class"):
        validated(*drawn([2, 2], 3.0))
    with pytest.raises(DataError, match="of 2 groups are too few"):
        validated(*drawn([3, 3], 3.0), np.repeat([0, 1], 3))


@pytest.mark.parametrize("kind", ["two images", "two patients", "two findings"])
def test_a_class_of_two_groups_is_enough(kind: str) -> None:
    """Without the two folds that hold it there is nothing to tell apart; every other pair of folds chooses."""
    x, labels = drawn([30, 2] if kind == "two images" else [30, 20], 3.0)
    groups = np.where(labels == 0, np.arange(len(labels)), 100 + np.arange(len(labels)) % 2)
    findings = np.stack([labels, labels], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = validated(x, findings if kind == "two findings" else labels, groups)
    assert len(np.unique(found.fold[labels == 1])) == 2
    assert found.folds == 5
    assert METRICS["auroc"](labels, found.scores) > 0.95
    assert np.isfinite(found.scores).all()


def test_a_class_of_one_group_is_refused_by_its_name() -> None:
    x, labels = drawn([30, 20], 3.0)
    groups = np.where(labels == 0, np.arange(len(labels)), 100)
    with pytest.raises(DataError, match=r"class 'b' comes from 1 group .*\(2 groups of it at least\)"):
        validated(x, labels, groups)
    with pytest.raises(DataError, match="no finding varies"):
        validated(x, np.stack([labels, labels], axis=1), groups)
    assert validated(*drawn([30, 20, 1], 3.0)).folds == 5  # the two others are still told apart


def test_several_findings_are_validated_too() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 16))
    labels = np.stack([x[:, 0] > 0, x[:, 1] > 1], axis=1).astype(int)
    found = cross_validate(x, labels, np.full(120, -1), DEFAULT_STRENGTHS, "ab")
    assert METRICS["auroc"](labels, found.scores) > 0.85
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
