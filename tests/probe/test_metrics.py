import time

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from ssl_mednet.errors import DataError
from ssl_mednet.probe import METRICS, bootstrap, paired_bootstrap, per_class_auroc, per_class_recall
from ssl_mednet.probe.intervals import resample_weights
from ssl_mednet.probe.metrics import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    ece,
    macro_f1,
    quadratic_kappa,
)


def sample(n=400, c=5, seed=0, digits=2, signal=0.5):
    """Labels and rows of probabilities with many ties."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(c, size=n)
    scores = rng.random((n, c)).round(digits) + 0.01
    scores[np.arange(n), targets] += signal
    return targets, scores / scores.sum(axis=1, keepdims=True)


def multilabel_sample(n=300, labels=6, seed=1):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, labels)) < np.linspace(0.1, 0.7, labels)).astype(int)
    return targets, (0.4 * targets + 0.6 * rng.random((n, labels))).round(2)


ORACLES = {
    "auroc": lambda t, s: sk.roc_auc_score(t, s, multi_class="ovr", average="macro"),
    "average_precision": lambda t, s: np.mean([sk.average_precision_score(t == c, s[:, c]) for c in range(s.shape[1])]),
    "accuracy": lambda t, s: sk.accuracy_score(t, s.argmax(1)),
    "balanced_accuracy": lambda t, s: sk.balanced_accuracy_score(t, s.argmax(1)),
    "macro_f1": lambda t, s: sk.f1_score(t, s.argmax(1), average="macro"),
    "quadratic_kappa": lambda t, s: sk.cohen_kappa_score(t, s.argmax(1), weights="quadratic"),
}
MULTILABEL_ORACLES = {
    "auroc": lambda t, s: sk.roc_auc_score(t, s, average="macro"),
    "average_precision": lambda t, s: sk.average_precision_score(t, s, average="macro"),
    "accuracy": lambda t, s: ((s > 0.5) == t).mean(),
    "balanced_accuracy": lambda t, s: np.mean(
        [sk.balanced_accuracy_score(t[:, i], s[:, i] > 0.5) for i in range(t.shape[1])]
    ),
    "macro_f1": lambda t, s: sk.f1_score(t, s > 0.5, average="macro"),
}


@pytest.mark.parametrize("name", ORACLES)
def test_multiclass_equals_scikit_learn(name):
    targets, scores = sample()
    assert METRICS[name](targets, scores) == pytest.approx(ORACLES[name](targets, scores), abs=1e-12)


@pytest.mark.parametrize("name", MULTILABEL_ORACLES)
def test_multilabel_equals_scikit_learn(name):
    targets, scores = multilabel_sample()
    assert METRICS[name](targets, scores) == pytest.approx(MULTILABEL_ORACLES[name](targets, scores), abs=1e-12)


@pytest.mark.parametrize("name", [*ORACLES, "ece"])
def test_weights_mean_what_repeating_rows_means(name):
    """The bootstrap's shortcut against the plain thing: really take the rows as often as they were drawn."""
    targets, scores = sample(n=60)
    weights = np.concatenate(list(resample_weights(60, n=7, seed=3)), axis=1)
    got = METRICS[name].prepare(targets, scores)(weights)
    for b in range(7):
        rows = np.repeat(np.arange(60), weights[:, b].astype(int))
        assert got[b] == pytest.approx(METRICS[name](targets[rows], scores[rows]), abs=1e-12)


def test_two_classes_give_the_ordinary_auroc_and_precision():
    targets, scores = sample(c=2)
    scores[:5] = [
        [1.0, 1e-20],
        [1.0, 1e-30],
        [1.0, 1e-25],
        [1.0, 0.0],
        [1.0, 1e-22],
    ]  # the first column ties, not the second
    assert auroc(targets, scores) == pytest.approx(sk.roc_auc_score(targets, scores[:, 1]), abs=1e-12)
    assert average_precision(targets, scores) == pytest.approx(
        sk.average_precision_score(targets, scores[:, 1]), abs=1e-12
    )


def test_constant_scores_are_a_coin_and_perfect_ones_are_perfect():
    targets, _ = sample()
    assert auroc(targets, np.full((400, 5), 0.2)) == 0.5
    perfect = np.eye(5)[targets]
    assert auroc(targets, perfect) == average_precision(targets, perfect) == accuracy(targets, perfect) == 1.0
    assert balanced_accuracy(targets, perfect) == macro_f1(targets, perfect) == quadratic_kappa(targets, perfect) == 1
    assert ece(targets, perfect) == 0.0
    assert auroc(targets, 1 - perfect) == 0.0


def test_shuffled_labels_are_about_a_half_within_the_interval():
    targets, scores = sample(n=1000)
    shuffled = np.random.default_rng(5).permutation(targets)
    interval = bootstrap({"auroc": auroc}, shuffled, scores)["auroc"]
    assert interval.low < 0.5 < interval.high
    assert interval.high - interval.low < 0.06


def test_a_class_that_is_absent_is_left_out_and_shown():
    targets, scores = sample(c=4)
    present = targets != 2
    each = per_class_auroc(targets[present], scores[present])
    assert np.isnan(each).tolist() == [False, False, True, False]
    assert auroc(targets[present], scores[present]) == pytest.approx(np.nanmean(each), abs=1e-15)
    only = np.zeros(10, int)
    assert np.isnan(auroc(only, scores[:10]))
    assert np.isnan(per_class_recall(targets[present], scores[present])).tolist() == [False, False, True, False]


def test_all_negative_on_rare_labels_has_high_accuracy_and_no_merit():
    """ChestMNIST's lesson (94.7 %): accuracy alone lies."""
    targets = (np.random.default_rng(0).random((2000, 14)) < 0.053).astype(int)
    scores = np.zeros((2000, 14))
    assert accuracy(targets, scores) > 0.94
    assert balanced_accuracy(targets, scores) == auroc(targets, scores) == 0.5


def test_confusion_by_hand():
    targets = np.array([0, 0, 0, 1, 1, 2])
    decided = np.array([0, 0, 1, 1, 2, 0])
    scores = np.eye(3)[decided]
    assert accuracy(targets, scores) == pytest.approx(3 / 6)
    assert per_class_recall(targets, scores) == pytest.approx([2 / 3, 1 / 2, 0])
    assert balanced_accuracy(targets, scores) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1(targets, scores) == pytest.approx((2 * 2 / 6 + 2 * 1 / 4 + 0) / 3)


def test_calibration_equals_torchmetrics_and_the_definition():
    targets, scores = sample(n=2000, digits=7)
    oracle = multiclass_calibration_error(
        torch.tensor(scores), torch.tensor(targets), num_classes=5, n_bins=15, norm="l1"
    )
    assert ece(targets, scores) == pytest.approx(float(oracle), abs=1e-6)
    labels, p = np.array([[1], [0], [0], [0]]), np.full((4, 1), 0.4)
    assert ece(labels, p) == pytest.approx(abs(0.4 - 0.25))
    assert ece(np.array([[1], [0]]), np.array([[0.03], [0.1]])) == pytest.approx((0.97 + 0.1) / 2)  # bins 1 and 2 of 15


@pytest.mark.parametrize(
    ("targets", "scores", "words"),
    [
        (np.array([0, 3]), np.ones((2, 3)), "0 .. 2"),
        (np.array([0, 1, 2]), np.ones((2, 3)), "2 rows but 3"),
        (np.array([[0], [1]]), np.ones((2, 3)), r"shape \[2, 1\]"),
        (np.array([0, 1]), np.array([[0.5, np.nan], [0.5, 0.5]]), "NaN"),
        (np.zeros(0, int), np.ones((0, 3)), "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(targets, scores, words):
    with pytest.raises(DataError, match=words):
        auroc(targets, scores)


def test_kappa_of_labels_is_refused():
    with pytest.raises(DataError, match="ordered"):
        quadratic_kappa(*multilabel_sample())


# --- intervals ------------------------------------------------------------------------------------------------------


def test_intervals_cover_the_truth_as_often_as_they_say():
    truth, covered = 0.7, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        targets = rng.integers(2, size=150)
        right = rng.random(150) < truth
        scores = np.eye(2)[np.where(right, targets, 1 - targets)]
        interval = bootstrap({"acc": accuracy}, targets, scores, n=400, seed=seed)["acc"]
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 200 <= 0.985


def test_groups_are_drawn_whole_and_widen_the_interval():
    """Twenty copies of each of 40 rows are 40 observations, not 800."""
    targets, scores = sample(n=40, c=3)
    many = np.repeat(targets, 20), np.repeat(scores, 20, axis=0)
    patients = np.repeat(np.arange(40) * 7, 20)
    plain = bootstrap({"a": accuracy}, targets, scores)["a"]
    grouped = bootstrap({"a": accuracy}, *many, groups=patients)["a"]
    naive = bootstrap({"a": accuracy}, *many)["a"]
    assert (grouped.low, grouped.high) == pytest.approx((plain.low, plain.high))
    assert naive.high - naive.low < 0.4 * (grouped.high - grouped.low)


def test_a_row_without_a_group_is_its_own():
    groups = np.array([5, 5, 5, -1, -1, 9])
    weights = np.concatenate(list(resample_weights(6, groups, n=300)), axis=1)
    assert (weights[0] == weights[1]).all()
    assert (weights[0] == weights[2]).all()
    for a, b in [(0, 3), (3, 4), (4, 5)]:
        assert (weights[a] != weights[b]).any()
    units = weights[[0, 3, 4, 5]]
    assert (units.sum(axis=0) == 4).all()


def test_resamples_depend_on_rows_groups_and_seed_alone():
    targets, scores = sample()
    names = {"auroc": auroc, "ece": ece}
    first = bootstrap(names, targets, scores, n=50, seed=4)
    assert first == bootstrap(names, targets, scores, n=50, seed=4)
    assert (
        first["auroc"]
        == bootstrap({"auroc": auroc}, torch.tensor(targets), torch.tensor(scores), n=50, seed=4)["auroc"]
    )
    assert first != bootstrap(names, targets, scores, n=50, seed=5)


def test_the_value_is_of_the_whole_sample_and_undefined_resamples_are_counted():
    targets = np.array([1, 0, 0, 0])
    scores = np.array([[0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.9, 0.1]])
    interval = bootstrap({"auroc": auroc}, targets, scores)["auroc"]
    assert interval.value == 1.0
    assert 500 < interval.resamples < 800  # without the one positive (0.75^4 = 32 %) there is no AUROC


def test_one_patient_gives_no_interval():
    targets, scores = sample(n=30)
    interval = bootstrap({"a": accuracy}, targets, scores, groups=np.zeros(30, int))["a"]
    assert np.isnan([interval.low, interval.high]).all()
    difference = paired_bootstrap(accuracy, targets, scores, scores[:, ::-1], groups=np.zeros(30, int))
    assert (difference.p, difference.verdict) == (1.0, "cannot tell")


def test_pairing_tells_apart_what_two_intervals_cannot():
    """B errs where A errs and on 3 % more: the two intervals overlap, the paired difference is clear of zero."""
    rng = np.random.default_rng(0)
    targets = rng.integers(2, size=600)
    wrong_a = rng.random(600) < 0.3
    wrong_b = wrong_a | (rng.random(600) < 0.04)
    a, b = (np.eye(2)[np.where(wrong, 1 - targets, targets)] for wrong in (wrong_a, wrong_b))
    alone = [bootstrap({"m": accuracy}, targets, s)["m"] for s in (a, b)]
    assert alone[1].high > alone[0].low
    forth, back = paired_bootstrap(accuracy, targets, a, b), paired_bootstrap(accuracy, targets, b, a)
    assert (forth.verdict, back.verdict) == ("better", "worse")
    assert forth.value == pytest.approx(wrong_b.mean() - wrong_a.mean())
    assert forth.p == back.p == pytest.approx(2 / 1001)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


def test_equal_models_cannot_be_told_apart_and_less_error_is_better():
    targets, scores = sample()
    same = paired_bootstrap(auroc, targets, scores, scores)
    assert (same.value, same.p, same.verdict) == (0.0, 1.0, "cannot tell")
    sure = np.eye(5)[scores.argmax(axis=1)]  # the same decisions, always with confidence 1
    assert paired_bootstrap(ece, targets, sure, np.eye(5)[targets]).verdict == "worse"
    assert paired_bootstrap(ece, targets, np.eye(5)[targets], sure).verdict == "better"


def test_false_alarms_of_the_verdict_are_rare():
    alarms = 0
    for seed in range(100):
        targets, _ = sample(n=120, c=2, seed=seed)
        noise = np.random.default_rng(seed + 5000).random((2, 120))
        a, b = (np.stack([1 - p, p], axis=1) for p in 0.3 * targets + 0.7 * noise)
        alarms += paired_bootstrap(auroc, targets, a, b, n=200, seed=seed).verdict != "cannot tell"
    assert alarms <= 12


def test_a_thousand_resamples_of_a_real_test_set_take_seconds():
    targets, scores = sample(n=3400, c=8)
    start = time.process_time()
    bootstrap({"auroc": auroc, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy}, targets, scores)
    assert time.process_time() - start < 10
