"""What an evaluation leaves out, repeats or forgets is told, and no picture or page of an earlier one stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_mednet import evaluate
from ssl_mednet.errors import DataError, RecipeError
from ssl_mednet.evaluation import protocols as protocols_module
from ssl_mednet.evaluation.run import Results
from ssl_mednet.evaluation.table import show

TASK = "phantoms:gray?n=100&size=32&label=modality"
FEW = ["resamples=20", "gallery=0", "draws=2"]


def run(out: Path, weights: list[str], *said: str, data: str = TASK) -> Results:
    return evaluate(weights, data=data, out=out, overrides=[*FEW, *said], quiet=True)


def done(results: Results) -> list[tuple[str, str, int | None]]:
    return [(row["weights"], row["protocol"], row["shots"]) for row in results.rows]


def several_findings(folder: Path) -> str:
    folder.mkdir()
    for i in range(40):
        np.save(folder / f"{i:02}.npy", np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8))
    lines = [f"{i:02}.npy,{('a', 'b', 'a|b', '|')[i % 4]}" for i in range(40)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines]))
    return str(folder)


def test_protocols_that_weights_or_sets_do_not_allow_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path, ["baseline:pixels"], "protocols=[finetune,knn]")
    assert [protocol for _, protocol, _ in done(found)] == ["majority", "knn"]
    assert "no finetune: baseline:pixels has nothing to fine-tune" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of the protocols can be done"):
        run(tmp_path, ["baseline:pixels"], "protocols=[finetune]")
    several = several_findings(tmp_path / "set")
    found = run(tmp_path, ["baseline:pixels"], "protocols=[few_shot_knn,knn]", data=several)
    assert [protocol for _, protocol, _ in done(found)] == ["majority", "knn"]
    assert "no few_shot_knn: labels a class cannot be counted" in capsys.readouterr().err


def test_more_labels_a_class_than_there_are_are_told_and_drawn_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path, ["baseline:pixels"], "protocols=[few_shot_linear]", "shots=[2,500]")
    assert "500 labels a class: no class has as many, so all training images are used" in capsys.readouterr().err
    few, many = found.rows[1:]
    assert few["draws"] == 2
    assert "draws" not in many
    assert many["n_train"] == found.rows[0]["n_train"]
    show(found.rows, found.comparisons)
    assert "fine-tuned" not in capsys.readouterr().out


def test_what_is_named_twice_is_done_once(tmp_path: Path) -> None:
    twice = ["protocols=[knn,majority,knn]", "labels=[1.0,1.0]", "seeds=[0,0]"]
    found = run(tmp_path, ["baseline:pixels", "baseline:histogram"], *twice)
    assert [protocol for _, protocol, _ in done(found)] == ["majority", "knn", "knn"]
    assert {(pair["a"], pair["b"]) for pair in found.comparisons} == {("baseline:pixels", "baseline:histogram")}


def test_an_untrained_net_is_trained_once_for_protocols_that_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, original = [], protocols_module.finetune
    monkeypatch.setattr(protocols_module, "finetune", lambda *a, **more: trained.append(a) or original(*a, **more))
    said = ["protocols=[finetune,linear_then_finetune]", "finetune.epochs=1", "finetune.max_steps=2", "seeds=[0,1]"]
    found = run(tmp_path, ["random:test_resnet@32"], *said)
    assert len(trained) == 2  # a seed
    first, second, third, fourth = found.rows[1:]
    assert (first["seed"], first["protocol"]) == (0, "finetune")
    assert (fourth["seed"], fourth["protocol"]) == (1, "linear_then_finetune")
    pairs = {row["seed"]: row["metrics"]["auroc"] for row in (first, second, third, fourth)}
    assert all(row["metrics"]["auroc"] == pairs[row["seed"]] for row in (first, second, third, fourth))
    assert pairs[0] != pairs[1]
    assert "untrained, so from a new head" in fourth["chosen_on_val"]["note"]


def test_rows_of_an_earlier_call_that_are_not_of_this_one_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, ["baseline:pixels"], "protocols=[knn]")
    run(tmp_path, ["baseline:pixels"], "protocols=[linear]")
    assert "held" not in capsys.readouterr().err
    run(tmp_path, ["baseline:histogram"], "protocols=[knn]")
    assert "results.json held baseline:pixels on phantoms:gray too" in capsys.readouterr().err


def test_no_picture_and_no_page_of_an_earlier_call_stays(tmp_path: Path) -> None:
    run(tmp_path, ["baseline:pixels"], "protocols=[knn]", "gallery=10")
    other = tmp_path / "gallery" / "others.npz"
    other.touch()
    assert len(list((tmp_path / "gallery").iterdir())) == 3
    for kind in ("html", "md", "csv", "tex"):
        (tmp_path / f"report.{kind}").touch()
    run(tmp_path, ["baseline:pixels"], "protocols=[knn]")
    assert list((tmp_path / "gallery").iterdir()) == [other]
    assert not list(tmp_path.glob("report.*"))


def test_damaged_predictions_are_made_again(tmp_path: Path) -> None:
    first = run(tmp_path, ["baseline:pixels"], "protocols=[knn]").rows[1]
    path = tmp_path / first["predictions"]
    whole = path.read_bytes()
    for content in (b"xx", whole[: len(whole) // 2], whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]):
        path.write_bytes(content)
        assert run(tmp_path, ["baseline:pixels"], "protocols=[knn]").rows[1]["metrics"] == first["metrics"]
        with np.load(path) as arrays:
            assert len(arrays["scores"]) == first["n"]


def graded(folder: Path, names: list[str]) -> str:
    folder.mkdir()
    for i in range(90):
        rng = np.random.default_rng(i)
        np.save(folder / f"{i:02}.npy", rng.integers(0, 200 + 25 * (i % 3), (4, 4)).astype(np.uint8))
    lines = [f"{i:02}.npy,{names[i % 3]},{('train', 'val', 'test')[i // 3 % 3]}" for i in range(90)]
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *lines]))
    return str(folder)


def test_grades_with_names_are_ordered_as_the_suite_says(tmp_path: Path) -> None:
    grades = ["none", "mild", "severe"]

    def kappa(source: str, ordinal: object) -> float:
        suite = {"sets": [{"source": source, "ordinal": ordinal}], "protocols": ["knn"], "resamples": 20, "gallery": 0}
        row = evaluate(["baseline:histogram"], suite=suite, out=tmp_path / "out", quiet=True).rows[1]
        assert row["kind"] == "ordinal"
        return float(row["metrics"]["quadratic_kappa"]["value"])

    named, numbered = graded(tmp_path / "named", grades), graded(tmp_path / "numbered", ["9", "10", "11"])
    assert kappa(named, grades) == pytest.approx(kappa(numbered, True))
    assert kappa(named, ["mild", "none", "severe"]) != pytest.approx(kappa(named, grades))
    with pytest.raises(DataError, match=r"order of its classes is not known .*LOWEST.* of mild, none, severe"):
        kappa(named, True)
    with pytest.raises(DataError, match="the order none, mild is not of its classes"):
        kappa(named, ["none", "mild"])


def test_the_size_of_untrained_nets_can_be_said(tmp_path: Path) -> None:
    found = run(tmp_path, ["gray-mednet-tiny", "random:test_resnet"], "protocols=[knn]", "image_size=32")
    assert [row["image_size"] for row in found.rows[1:]] == [96, 32]
    with pytest.raises(RecipeError, match="no net sees images of 0 pixels"):
        run(tmp_path, ["imagenet:efficientnet_lite0@0"])


def test_a_set_here_is_called_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(several_findings(tmp_path / "scans"))
    assert run(tmp_path / "out", ["baseline:pixels"], "protocols=[knn]", data=".").rows[0]["task"] == "scans"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["suite"]["name"] == "scans"
