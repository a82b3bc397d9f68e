"""The figures of a classifier are those of what ``predict`` says, not only of the most probable class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ssl_mednet import export, finetune, predict
from ssl_mednet.classifying.card import model_readme
from ssl_mednet.classifying.fit import Fitted
from ssl_mednet.classifying.model import load_model
from ssl_mednet.classifying.operating import decided_by_others, operating_point
from ssl_mednet.cli import app
from ssl_mednet.probe import best_threshold


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in six is a little darker: the most probable class is nearly always the frequent one."""
    root, rng = tmp_path_factory.mktemp("rare"), np.random.default_rng(0)
    lines = ["path,label,split,modality"]
    for number in range(180):
        split, ill = ("train", "val", "test")[number % 3], number % 18 < 3
        Image.fromarray(rng.integers(0, rng.integers(150, 190 if ill else 220), (32, 32), np.uint8)).save(
            root / f"{number}.png"
        )
        lines.append(f"{number}.png,{'sick' if ill else 'healthy'},{split},xray")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_the_card_has_the_figures_of_what_predict_says(backbone: Path, rare: Path, tmp_path: Path) -> None:
    made = finetune(backbone, rare, tmp_path / "m", "linear", quiet=True)
    files = [rare / f"{number}.png" for number in range(2, 180, 3)]
    truth = np.array([number % 18 < 3 for number in range(2, 180, 3)])
    said = np.array([row.predicted == "sick" for row in predict(made.folder, files, quiet=True).rows])
    rates = said[truth].mean(), (~said[~truth]).mean()
    point = load_model(made.folder).about["operating_point"]
    assert point["thresholds_from"] == "val"
    assert point["metrics"]["accuracy"]["value"] == pytest.approx((said == truth).mean())
    assert point["metrics"]["balanced_accuracy"]["value"] == pytest.approx(np.mean(rates))
    found = point["findings"]["sick"]
    assert (found["sensitivity"]["value"], found["specificity"]["value"]) == pytest.approx(rates)
    assert found["specificity"]["low"] < rates[1] < found["specificity"]["high"]
    other = made.row["metrics"]["balanced_accuracy"]["value"]
    assert abs(other - np.mean(rates)) > 0.05
    card = (made.folder / "README.md").read_text()
    assert f"| balanced accuracy at the most probable class | {other:.3f} |" in card
    assert f"| balanced accuracy of what it says | {np.mean(rates):.3f} |" in card
    assert f"| sensitivity for sick | {rates[0]:.3f} |" in card
    assert "decided at thresholds from val, as by `predict`" in card
    terminal = CliRunner().invoke(
        app, ["finetune", "-w", str(backbone), "-d", str(rare), "-o", str(tmp_path / "t"), "--protocol", "linear", "-q"]
    )
    assert f"balanced_accuracy of predict: {np.mean(rates):.3f} (" in terminal.output
    assert all(len(line) <= 80 for line in terminal.output.splitlines() if ", on " in line)


def test_without_test_images_the_threshold_does_not_know_the_fold_that_is_scored(fitted: Fitted) -> None:
    point = load_model(fitted.folder).about["operating_point"]
    assert point["thresholds_from"] == "the other folds"
    assert "decided at thresholds from the other folds" in (fitted.folder / "README.md").read_text()
    rng = np.random.default_rng(0)
    labels, fold, scores = rng.integers(0, 2, 30), np.arange(30) % 3, rng.random((30, 1))
    scores = np.concatenate([1 - scores, scores], axis=1)
    said = decided_by_others(["a", "b"], labels, scores, fold)
    for number in range(3):
        own = fold == number
        expected = scores[own, 1] >= best_threshold(labels[~own], scores[~own])
        np.testing.assert_array_equal(said[own, 1], expected)
    same = scores[:, 1] >= best_threshold(labels, scores)
    assert (same != said[:, 1]).any()


def test_several_findings_have_rates_of_their_own(fitted: Fitted) -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    said = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
    found = operating_point(["x", "y", "z"], labels, said, None, 100, 0)
    rates = {name: tuple(m["value"] for m in each.values()) for name, each in found["findings"].items()}
    assert (rates["x"], rates["y"]) == ((0.5, 0.5), (1.0, 1.0))
    assert np.isnan(rates["z"][0])  # nobody has it
    assert rates["z"][1] == 0.75
    assert found["metrics"]["accuracy"]["value"] == 0.75
    about = load_model(fitted.folder).about | {"multilabel": True}
    card = model_readme("m", about | {"operating_point": {"thresholds_from": "val", **found}})
    assert "| specificity for x | 0.500 |" in card
    assert "| accuracy, each finding at 0.5 |" in card


@pytest.mark.parametrize(("after", "said"), [(0.25, True), (0.1, False), (0.05, False)])
def test_the_card_says_where_calibration_got_worse(fitted: Fitted, after: float, said: bool) -> None:
    about = load_model(fitted.folder).about
    figures = {"ece": 0.1, "ece_calibrated": after}
    metrics = {key: {"value": value, "low": 0.0, "high": 1.0} for key, value in figures.items()}
    card = model_readme("m", about | {"metrics": about["metrics"] | metrics})
    assert ("did not help on these images" in card) == said


def test_of_three_classes_the_most_probable_one_is_what_is_said(backbone: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(45):
        path = tmp_path / "set" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 80 * (number % 3 + 1), (32, 32), np.uint8)).save(path)
    made = finetune(backbone, tmp_path / "set", tmp_path / "m", "linear", modality="xray", quiet=True)
    assert made.point == {}
    assert json.loads((made.folder / "model.json").read_text())["operating_point"] == {}
    assert "| balanced accuracy | " in (made.folder / "README.md").read_text()


def test_a_test_split_of_one_class_is_told_and_leaves_valid_json(backbone: Path, rare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    lines = (rare / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join(line for line in lines if ",sick,test" not in line) + "\n")
    for line in lines[1:]:
        name = line.split(",")[0]
        if ",sick,test" not in line:
            (folder / name).write_bytes((rare / name).read_bytes())

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    said = ["finetune", "-w", str(backbone), "-d", str(folder), "-o", str(tmp_path / "m"), "--protocol", "linear", "-q"]
    terminal = CliRunner().invoke(app, said)
    assert "auroc: not defined (one class only), on 50 test images" in terminal.output
    for name in ("model.json", "results/results.json"):
        written = json.loads((tmp_path / "m" / name).read_text(), parse_constant=refuse)
    assert written[0]["metrics"]["auroc"]["value"] is None
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| AUROC (macro) | not defined | one class only |" in card
    assert "| sensitivity for sick | not defined | one class only |" in card
    assert "nan" not in card + terminal.output
    about = load_model(tmp_path / "m").about
    assert np.isnan(
        [about["metrics"]["auroc"]["value"], about["operating_point"]["findings"]["sick"]["sensitivity"]["value"]]
    ).all()
    pytest.importorskip("onnxscript")
    assert (
        "| auroc | not defined | one class only |"
        in (export(tmp_path / "m", "onnx", tmp_path / "onnx") / "README.md").read_text()
    )
