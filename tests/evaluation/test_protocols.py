"""Protocols: who may use which labels, what is chosen where, and that the same features come only once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from ssl_mednet import evaluate
from ssl_mednet.augment.corruptions import SEVERITIES, corruptions_of
from ssl_mednet.data.corpus import Corpus, CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled
from ssl_mednet.draws import stable_hash
from ssl_mednet.errors import DataError, RecipeError
from ssl_mednet.evaluation import bench as bench_module
from ssl_mednet.evaluation import protocols as protocols_module
from ssl_mednet.evaluation.bench import PROTOCOLS, Bench, Job, Outcome, find_device, register_protocol
from ssl_mednet.evaluation.finetune import Finetuned
from ssl_mednet.evaluation.subsets import few_shot, fraction
from ssl_mednet.evaluation.suite import Suite
from ssl_mednet.evaluation.weights import Weights, load_weights
from ssl_mednet.probe import METRICS
from ssl_mednet.probe.linear import PRIOR_ROWS

TASK = "phantoms:gray?n=300&label=modality"


@pytest.fixture(scope="module")
def task() -> LabelledSet:
    return open_labelled(TASK, CorpusSpec("gray", 256), quiet=True)


@pytest.fixture
def bench(task: LabelledSet) -> Bench:
    return bench_of(task)


def bench_of(task: LabelledSet, **more: object) -> Bench:
    """Noisy features: classes overlap, so that the amount of labels matters."""
    suite = Suite.model_validate({"sets": [{"source": TASK}], "draws": 4, **more})
    made = Bench(next(load_weights(["baseline:histogram"], "gray", None, 0)), task, suite, torch.device("cpu"), True)
    rng = np.random.default_rng(0)
    means = rng.normal(size=(len(task.classes), 16))
    for split, rows in task.splits.items():
        number = task.labels[rows] if task.labels.ndim == 1 else task.labels[rows].argmax(axis=1)
        made._features[split, None] = (means[number] + 1.5 * rng.normal(size=(len(rows), 16))).astype(np.float32)
    return made


def run(bench: Bench, protocol: str, labels: float | None = 1.0, shots: int | None = None) -> Outcome:
    return PROTOCOLS.get(protocol).run(bench, Job(protocol, labels, shots, 0))


def test_draws_are_nested_balanced_and_the_same_for_every_model(task: LabelledSet) -> None:
    labels = task.labels[task.splits["train"]]
    one, five, ten = (few_shot(labels, shots, draw=3, seed=0) for shots in (1, 5, 10))
    assert set(one) < set(five) < set(ten)
    assert Counter(labels[five].tolist()) == dict.fromkeys(range(5), 5)
    np.testing.assert_array_equal(ten, few_shot(labels, 10, draw=3, seed=0))
    assert set(ten) != set(few_shot(labels, 10, draw=4, seed=0))
    assert len(few_shot(labels, 10_000, draw=0, seed=0)) == len(labels)


def test_a_share_of_the_labels_has_every_class() -> None:
    labels = np.repeat([0, 1, 2], [200, 40, 3])
    chosen = fraction(labels, 0.1, draw=0, seed=0)
    assert Counter(labels[chosen].tolist()) == {0: 20, 1: 4, 2: 1}
    assert set(fraction(labels, 0.01, draw=0, seed=0)) < set(chosen)
    assert len(fraction(np.ones((50, 3), int), 0.1, draw=0, seed=0)) == 5


def test_a_small_share_of_several_findings_has_something_to_tell_apart() -> None:
    """Rare findings: without care the few rows of a draw have none, and there is nothing to learn from."""
    labels = np.zeros((100, 2), int)
    labels[:4, 0], labels[2:6, 1] = 1, 1
    for draw in range(20):
        chosen = {share: fraction(labels, share, draw, seed=0) for share in (0.01, 0.02, 0.1, 0.5)}
        assert [len(rows) for rows in chosen.values()] == [2, 2, 10, 50]
        assert set(chosen[0.01]) <= set(chosen[0.02]) < set(chosen[0.1]) < set(chosen[0.5])
        assert all((np.ptp(labels[rows], axis=0) > 0).any() for rows in chosen.values())
        at_large = np.random.default_rng(stable_hash(0, draw, "labels")).permutation(100)[:50]
        np.testing.assert_array_equal(chosen[0.5], np.sort(at_large))  # where all is well nothing is chosen


def test_draws_of_labels_depend_on_the_seed_of_the_suite_alone(task: LabelledSet) -> None:
    """An untrained net at another seed sees the labels that the weights beside it see."""

    def scores(protocol: str, suite_seed: int, seed: int) -> np.ndarray:
        amount = {"labels": None, "shots": 2} if protocol.startswith("few") else {"labels": 0.05, "shots": None}
        return PROTOCOLS.get(protocol).run(bench_of(task, seed=suite_seed), Job(protocol, seed=seed, **amount)).scores

    for protocol in ("knn", "linear", "few_shot_linear", "few_shot_knn", "few_shot_centroid"):
        np.testing.assert_array_equal(scores(protocol, 0, 0), scores(protocol, 0, 1))
        assert not np.array_equal(scores(protocol, 0, 0), scores(protocol, 7, 0))


def test_few_shot_centroid_decides_as_scikit_learn_on_normalised_features(bench: Bench) -> None:
    outcome = run(bench, "few_shot_centroid", None, 10)
    x = bench.features("train") / np.linalg.norm(bench.features("train"), axis=1, keepdims=True)
    test = bench.features("test") / np.linalg.norm(bench.features("test"), axis=1, keepdims=True)
    rows = few_shot(bench.labels("train"), 10, draw=2, seed=0)
    y = bench.labels("train")[rows]
    centroids = np.stack([x[rows][y == c].mean(axis=0) for c in range(5)])
    # The nearest of centroids of length 1 is that of the largest cosine.
    reference = NearestCentroid().fit(centroids / np.linalg.norm(centroids, axis=1, keepdims=True), np.arange(5))
    np.testing.assert_array_equal(outcome.scores[2].argmax(axis=1), reference.predict(test))
    assert outcome.scores.shape == (4, 60, 5)
    assert outcome.n_train == 50
    np.testing.assert_allclose(outcome.scores.sum(axis=2), 1)


def test_few_shot_linear_is_scikit_learns_regression_at_the_chosen_strength(bench: Bench) -> None:
    outcome = run(bench, "few_shot_linear", None, 10)
    rows = few_shot(bench.labels("train"), 10, draw=1, seed=0)
    x, held = bench.features("train")[rows].astype(float), bench.features("test").astype(float)
    typical = np.exp(np.log(x.var(axis=0)).mean())
    deviation = np.sqrt((len(x) * x.var(axis=0) + PRIOR_ROWS * typical) / (len(x) + PRIOR_ROWS))
    reference = LogisticRegression(C=outcome.chosen["strength"], max_iter=5000, tol=1e-8)
    reference.fit((x - x.mean(axis=0)) / deviation, bench.labels("train")[rows])
    expected = reference.predict_proba((held - x.mean(axis=0)) / deviation)
    np.testing.assert_allclose(outcome.scores[1], expected, atol=5e-3)


@pytest.mark.parametrize(
    ("protocol", "amounts"),
    [("few_shot_linear", (1, 50)), ("few_shot_knn", (1, 50)), ("linear", (0.1, 1.0)), ("knn", (0.1, 1.0))],
)
def test_more_labels_help(task: LabelledSet, protocol: str, amounts: tuple[float, float]) -> None:
    bench = bench_of(task)
    values = []
    for amount in amounts:
        job = (None, int(amount)) if protocol.startswith("few") else (amount, None)
        scores = run(bench, protocol, *job).scores
        fits = scores if scores.ndim == 3 else scores[None]
        values.append(np.mean([METRICS["auroc"](bench.labels("test"), fit) for fit in fits]))
    assert values[0] < values[1] - 0.01


def test_few_labels_are_fine_tuned_on_the_draw_that_the_probe_has(
    task: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real fine-tuning; one draw of the labels a seed, the one with the same number of ``few_shot_linear``."""
    used: list[list[int]] = []
    original = protocols_module.finetune

    def spied(weights: Weights, task: LabelledSet, rows: dict[str, np.ndarray], *rest: Any, **more: Any) -> Finetuned:
        used.append(rows["train"].tolist())
        return original(weights, task, rows, *rest, **more)

    monkeypatch.setattr(protocols_module, "finetune", spied)
    said = {"finetune": {"max_steps": 3, "precision": "float32"}}
    suite = Suite.model_validate({"sets": [{"source": TASK}], "seed": 5, **said})
    untrained = next(load_weights(["random:resnet10t"], "gray", 32, 0))
    bench = Bench(replace(untrained, name="runs/trained"), task, suite, torch.device("cpu"), True)
    outcomes = [PROTOCOLS.get("few_shot_finetune").run(bench, Job("few_shot_finetune", None, 2, s)) for s in (0, 1)]
    draws = protocols_module._draws(bench, Job("few_shot_linear", None, 2, 0))[:2]
    assert used == [task.splits["train"][rows].tolist() for rows in draws]
    assert [o.n_train for o in outcomes] == [10, 10]
    assert outcomes[0].val_scores is not None
    assert "head_strength" in outcomes[0].chosen
    assert not np.allclose(outcomes[0].scores, outcomes[1].scores)


@pytest.mark.parametrize("protocol", ["linear_then_finetune", "few_shot_finetune"])
def test_an_untrained_net_starts_from_a_new_head(protocol: str, task: LabelledSet) -> None:
    """The statistics that a probe on it was fitted with move at once: the loss began in the hundreds."""
    suite = Suite.model_validate({"sets": [{"source": TASK}], "finetune": {"max_steps": 2, "precision": "float32"}})
    weights = next(load_weights(["random:resnet10t"], "gray", 32, 0))
    shots = {"shots": 5, "labels": None} if protocol.startswith("few") else {"shots": None, "labels": 0.2}
    outcome = PROTOCOLS.get(protocol).run(
        Bench(weights, task, suite, torch.device("cpu"), True), Job(protocol, seed=0, **shots)
    )
    assert "head_strength" not in outcome.chosen
    assert outcome.chosen["note"].endswith("untrained, so from a new head")
    assert outcome.more["history"][0]["loss"] < 2 * np.log(5)


def test_hyper_parameters_are_chosen_without_test_rows(task: LabelledSet) -> None:
    for protocol, job in (("knn", (1.0, None)), ("linear", (0.1, None)), ("few_shot_linear", (None, 5))):
        one, other = bench_of(task), bench_of(task)
        other._features["test", None] = np.random.default_rng(9).normal(size=(60, 16)).astype(np.float32)
        assert run(one, protocol, *job).chosen == run(other, protocol, *job).chosen


def test_the_majority_knows_the_shares_only(bench: Bench) -> None:
    outcome = run(bench, "majority")
    np.testing.assert_allclose(outcome.scores[0], np.bincount(bench.labels("train")) / 210)
    assert (outcome.scores == outcome.scores[0]).all()


def test_several_findings_have_no_shots(task: LabelledSet) -> None:
    findings = replace(task, labels=np.eye(5, dtype=np.int64)[task.labels])
    with pytest.raises(DataError, match="labels a class cannot be counted"):
        run(bench_of(findings), "few_shot_linear", None, 5)
    assert run(bench_of(findings), "linear", 0.1).scores.shape == (4, 60, 5)
    assert run(bench_of(findings), "knn").val_scores.shape == (30, 5)


def test_robustness_asks_for_every_corruption_of_the_modality(
    task: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    original = bench_module.extract

    def spied(weights: object, corpus: Corpus, rows: np.ndarray, *rest: object) -> np.ndarray:
        asked.append(rest[2])
        if rest[2] is not None:
            assert Counter(task.labels[rows].tolist()) == dict.fromkeys(range(5), 4)
        return original(weights, corpus, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_module, "extract", spied)
    said = ["protocols=[robustness]", "resamples=50", "gallery=0", "corrupted=20"]
    row = evaluate(["baseline:histogram"], data=TASK, out=tmp_path, overrides=said, quiet=True).rows[1]
    common = set.intersection(*(set(corruptions_of(m)) for m in task.classes))
    assert set(row["corruptions"]) == (common or set(corruptions_of("generic_gray")))
    assert {a for a in asked if a} == {(name, s) for name in row["corruptions"] for s in SEVERITIES}
    assert all(len(errors) == len(SEVERITIES) for errors in row["corruptions"].values())
    assert row["metrics"]["balanced_error"]["value"] == pytest.approx(np.mean(list(row["corruptions"].values())))
    assert row["metrics"]["balanced_error"]["value"] > row["metrics"]["clean_balanced_error"]["value"] + 0.05
    assert row["n"] == 20
    assert len({error for errors in row["corruptions"].values() for error in errors}) > 3  # each has its own features


def test_a_protocol_of_ones_own_stands_in_a_suite(tmp_path: Path) -> None:
    @register_protocol("always_first", "labels")
    def always_first(bench: Bench, job: Job) -> Outcome:
        """Class 0, whatever the image."""
        scores = np.zeros((len(bench.labels("test")), len(bench.task.classes)))
        scores[:, 0] = 1
        return Outcome(scores, len(bench.labels("train")))

    try:
        said = ["protocols=[always_first]", "gallery=0"]
        row = evaluate(["baseline:pixels"], data=TASK, out=tmp_path, overrides=said, quiet=True).rows[1]
    finally:
        PROTOCOLS._items.pop("always_first")
    assert row["metrics"]["accuracy"]["value"] == pytest.approx(0.2)
    assert row["per_class"]["recall"] == {"ct": 1, "mri": 0, "pet": 0, "ultrasound": 0, "xray": 0}


@pytest.mark.parametrize(("name", "says"), [("gpu", "finds none"), ("cuda:7", "finds none"), ("cpuu", "knows no such")])
def test_a_device_that_is_not_there_is_told(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError, match=f"device={name}: torch {says}"):
        find_device(name)
