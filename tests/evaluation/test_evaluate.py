"""Evaluation end to end: rows to trust, baselines of the same architecture, refusals of what does not fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ssl_mednet import evaluate, pretrain
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled
from ssl_mednet.errors import ArtifactError, DataError, RecipeError
from ssl_mednet.evaluation import bench as bench_module
from ssl_mednet.evaluation import run as run_module
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.suite import Suite, load_suite
from ssl_mednet.evaluation.table import show
from ssl_mednet.evaluation.weights import Weights, load_weights, state_hash
from ssl_mednet.shipped import list_shipped

TASK = "phantoms:gray?n=300&label=modality"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {
        "name": "small",
        "data": {"source": "phantoms:gray?n=60", "channels": "gray", "image_size": 32},
        "backbone": {"name": "test_vit", "patch_size": 8},
        "method": {"name": "mae"},
        "optim": {"batch_size": 8},
        "train": {"steps": 4, "device": "cpu"},
    }
    return pretrain(recipe, out=tmp_path_factory.mktemp("runs") / "small", quiet=True).folder


def test_several_weights_make_one_list_of_rows(trained: Path, tmp_path: Path) -> None:
    results = evaluate([str(trained), "random:", "random:test_resnet"], data=TASK, out=tmp_path / "out", quiet=True)
    assert results.path == tmp_path / "out" / "results.json"
    rows = json.loads(results.path.read_text())
    assert rows == json.loads(json.dumps(results.rows))
    assert [(Path(r["weights"]).name, r["protocol"]) for r in rows] == [
        ("baseline:majority", "majority"),
        *((w, p) for w in ("small", "random:", "random:test_resnet") for p in ("knn", "linear")),
    ]
    assert rows[0]["metrics"]["auroc"]["value"] == 0.5
    for row in rows[1:]:
        assert row["n"] == 60
        assert row["n_train"] == 210
        assert len(row["classes"]) == 5
        for name in ("auroc", "accuracy", "balanced_accuracy"):
            interval = row["metrics"][name]
            assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
        assert row["metrics"]["auroc"]["value"] > 0.8  # five modalities are easy to tell apart
        assert len(row["weights_sha256"]) == 64
        assert row["data_fingerprint"]
    assert rows[1]["weights_sha256"] != rows[3]["weights_sha256"]
    assert rows[1]["weights_sha256"] in (trained / "backbone" / "README.md").read_text()


def test_the_same_evaluation_gives_the_same_rows(trained: Path, tmp_path: Path) -> None:
    one, two = (evaluate([trained, "random:"], data=TASK, out=tmp_path / n, quiet=True).rows for n in "ab")
    assert [r | {"seconds": 0} for r in one] == [r | {"seconds": 0} for r in two]


def test_random_alone_is_the_same_architecture_with_the_same_preprocessing(trained: Path) -> None:
    weights = list(load_weights([str(trained), "random:"], "gray", None, seed=0))
    assert weights[0].model.state_dict().keys() == weights[1].model.state_dict().keys()
    assert weights[0].preprocessing == weights[1].preprocessing
    assert weights[0].digest != weights[1].digest
    assert next(load_weights(["random:test_resnet"], "gray", 48, seed=0)).preprocessing.image_size == 48
    with pytest.raises(ArtifactError, match="no"):
        list(load_weights(["random:"], "gray", None, seed=0))
    with pytest.raises(RecipeError, match="did you mean"):
        list(load_weights(["random:resnet19"], "gray", None, seed=0))


def test_weights_for_other_channels_are_refused(trained: Path) -> None:
    with pytest.raises(ArtifactError, match="made for gray images, the data is color"):
        list(load_weights([str(trained)], "color", None, seed=0))
    with pytest.raises(DataError, match="color image in a gray corpus"):
        evaluate([str(trained)], data="phantoms:color?n=60", quiet=True)


@pytest.fixture
def task() -> LabelledSet:
    return open_labelled(TASK, CorpusSpec("gray", 256), quiet=True)


def test_frozen_means_frozen(trained: Path, task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = next(load_weights(["random:test_resnet"], "gray", 32, seed=0))
    before = state_hash(weights.model)
    weights.model.train()  # whoever left it in training mode: it is put into evaluation mode
    extract(weights, task.corpus, task.splits["val"], torch.device("cpu"), quiet=True)
    assert state_hash(weights.model) == before
    monkeypatch.setattr(weights.model, "eval", lambda: weights.model.train())
    with pytest.raises(ArtifactError, match="changed during evaluation"):
        extract(weights, task.corpus, task.splits["test"], torch.device("cpu"), quiet=True)


def test_features_do_not_depend_on_the_batch(task: LabelledSet) -> None:
    weights = next(load_weights(["random:test_resnet"], "gray", 32, seed=0))
    rows = task.splits["test"]
    device = torch.device("cpu")
    whole = extract(weights, task.corpus, rows, device, quiet=True)
    one = extract(weights, task.corpus, rows[7:8], device, quiet=True)
    np.testing.assert_allclose(one[0], whole[7], atol=1e-5)


def test_features_that_are_not_finite_are_refused(task: LabelledSet) -> None:
    weights = next(load_weights(["random:test_resnet"], "gray", 32, seed=0))
    with torch.no_grad():
        next(weights.model.parameters()).fill_(float("nan"))
    weights = replace(weights, digest=state_hash(weights.model))
    with pytest.raises(ArtifactError, match="not finite"):
        extract(weights, task.corpus, task.splits["val"], torch.device("cpu"), quiet=True)


def test_labels_without_meaning_give_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled labels: a fair evaluation finds .5 within its interval, because the test rows chose nothing."""

    def shuffled(*args: object, **more: object) -> LabelledSet:
        honest = open_labelled(*args)  # type: ignore[arg-type]
        labels = np.random.default_rng(0).permutation(honest.labels)
        return LabelledSet(**{f: getattr(honest, f) for f in honest.__dataclass_fields__} | {"labels": labels})

    monkeypatch.setattr(run_module, "open_labelled", shuffled)
    rows = evaluate(["random:test_resnet"], data="phantoms:gray?n=600", out=tmp_path, quiet=True).rows
    for row in rows[1:]:
        interval = row["metrics"]["auroc"]
        assert interval["low"] < 0.5 < interval["high"]


def test_a_constant_backbone_scores_half(task: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(weights: Weights, corpus: object, rows: np.ndarray, *rest: object) -> np.ndarray:
        return np.ones((len(rows), 8), np.float32)

    monkeypatch.setattr(bench_module, "extract", constant)
    rows = evaluate(["random:test_resnet"], data=TASK, out=tmp_path, quiet=True).rows
    assert all(row["metrics"]["auroc"]["value"] == pytest.approx(0.5) for row in rows)


def test_a_perfect_backbone_scores_one_and_its_interval_is_a_point(
    task: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perfect(weights: Weights, corpus: object, rows: np.ndarray, *rest: object) -> np.ndarray:
        return np.eye(5, dtype=np.float32)[task.labels[rows]]

    monkeypatch.setattr(bench_module, "extract", perfect)
    said = ["protocols=[knn,linear,few_shot_centroid]", "shots=[1]", "draws=3"]
    for row in evaluate(["random:test_resnet"], data=TASK, out=tmp_path, overrides=said, quiet=True).rows[1:]:
        assert row["metrics"]["auroc"] == {"value": 1, "low": 1, "high": 1, "resamples": 1000}


@pytest.fixture
def findings(tmp_path: Path) -> Path:
    """Pictures that have several findings or none, of patients with three pictures each."""
    folder, rng = tmp_path / "findings", np.random.default_rng(0)
    folder.mkdir()
    lines = ["path,label,group"]
    for i in range(240):
        bright, striped = rng.random(2) < 0.4
        picture = rng.integers(0, 80, (24, 24)) + 80 * bright
        picture[::4] += 60 * striped
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(n for n, has in (('bright', bright), ('striped', striped)) if has)},p{i // 3}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_several_findings_an_image_and_groups_go_all_the_way(findings: Path, tmp_path: Path) -> None:
    said = ["protocols=[knn,linear,few_shot_linear,robustness]", "labels=[0.1,1.0]", "draws=3", "resamples=100"]
    rows = evaluate(["baseline:histogram"], data=str(findings), out=tmp_path / "out", overrides=said, quiet=True).rows
    assert [(r["protocol"], r["labels"]) for r in rows] == [
        ("majority", 1.0), ("knn", 0.1), ("knn", 1.0), ("linear", 0.1), ("linear", 1.0), ("robustness", 1.0),
    ]  # fmt: skip
    assert all(r["kind"] == "multi-label" and r["grouped"] and r["splits_made"] for r in rows)
    full = rows[4]
    assert full["metrics"]["auroc"]["value"] > 0.95
    assert set(full["per_class"]["auroc"]) == {"bright", "striped"}
    assert "operating_point" not in full
    assert "ece_calibrated" in full["metrics"]
    console = Console(width=80, record=True, file=(tmp_path / "out.txt").open("w"))
    show(rows, console=console)
    assert "bootstrap over groups" in console.export_text()


@pytest.mark.parametrize("name", list_shipped("eval"))
def test_every_shipped_suite_is_right(name: str) -> None:
    assert load_suite(name, None, None).sets


def test_a_suite_that_says_something_wrong_is_told_what(trained: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'protocols'"):
        evaluate([str(trained)], suite={"sets": [{"source": TASK}], "protocol": ["knn"]})
    with pytest.raises(RecipeError, match="did you mean 'linear'"):
        evaluate([str(trained)], suite={"sets": [{"source": TASK}], "protocols": ["lineer"]})
    with pytest.raises(RecipeError, match="one of them"):
        evaluate([str(trained)])
    with pytest.raises(RecipeError, match="nothing to evaluate"):
        evaluate([], data=TASK)
    with pytest.raises(RecipeError, match="no such suite"):
        evaluate([str(trained)], suite="demoo.yaml")


def test_the_table_fits_eighty_columns_and_says_how_the_intervals_were_made(trained: Path, tmp_path: Path) -> None:
    said = ["protocols=[knn,linear,few_shot_centroid,robustness]", "shots=[5]", "draws=2", "corrupted=10", "gallery=0"]
    rows = evaluate([str(trained), "random:"], data=TASK, out=tmp_path, overrides=said, quiet=True).rows
    console = Console(width=80, record=True, file=(tmp_path / "out.txt").open("w"))
    show(rows, console=console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "5 classes, 210 training and 60 test images" in text
    assert " ".join(text.split()).count("names no groups") == 3  # all labels, fewer labels, robustness
    assert "…" not in text
    intervals = re.findall(r"(\.\d{3}|1\.00) (\.\d{3}|1\.00)-(\.\d{3}|1\.00)", text)
    assert len(intervals) == 5 * 2 + 2 * 2  # one behind each figure


def pictures(folder: Path, count: int, side: int, channels: int) -> Path:
    """Darker and brighter noise, one class each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        shape = (side, side, 3) if channels == 3 else (side, side)
        pixels = rng.integers(0, 120, shape, dtype=np.uint8) + np.uint8(100 * (number % 2))
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_images_are_kept_no_smaller_than_nets_see_them(tmp_path: Path) -> None:
    plan = Suite.model_validate({"sets": [{"source": str(pictures(tmp_path / "set", 20, 300, 1))}]})
    sides = {}
    for seen in (0, 96, 288):
        task = run_module.open_set(plan.sets[0], "gray", plan, True, seen)
        sides[seen] = int(task.corpus.batch(np.arange(2)).pixels.shape[-1])
    assert sides == {0: 256, 96: 256, 288: 288}


def test_sets_of_the_other_kind_are_turned_into_the_kind_of_the_weights(tmp_path: Path) -> None:
    """Color images under a net for gray ones: refused one by one, unless the user says ``convert=true``."""
    folder = pictures(tmp_path / "set", 60, 32, 3)
    said = ["protocols=[linear]", "gallery=0"]
    with pytest.raises(DataError, match=r"convert=true.*\(channels=color evaluates on color images as they are; "):
        evaluate(["random:test_resnet"], data=folder, out=tmp_path / "a", overrides=said, quiet=True)
    said.append("convert=true")
    rows = evaluate(["random:test_resnet"], data=folder, out=tmp_path / "b", overrides=said, quiet=True).rows
    assert rows[1]["channels"] == "gray"
    assert rows[1]["skipped"] == 0
    said[-1] = "channels=color"
    rows = evaluate(["random:test_resnet"], data=folder, out=tmp_path / "c", overrides=said, quiet=True).rows
    assert [r["channels"] for r in rows] == ["color"] * 2
