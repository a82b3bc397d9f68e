"""Folders: what is read, what is said where something is missing, what is refused where it is broken."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_folder import write_results, write_run

from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.evaluation.names import file_stem
from ssl_mednet.reporting.load import Missing, load_embedding, load_predictions, load_study, load_thumbnails
from ssl_mednet.reporting.tasks import sort_into_tasks


@pytest.fixture
def copy(results: Path, tmp_path: Path) -> Path:
    """A results folder that may be broken."""
    return Path(shutil.copytree(results, tmp_path / "copy"))


def change(folder: Path, edit: Any, name: str = "results.json") -> None:
    path = folder / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


def test_all_rows_are_read_and_sorted_into_tasks(results: Path) -> None:
    study = load_study([results])
    assert len(study.rows) == len(json.loads((results / "results.json").read_text()))
    assert study.notes == []
    tasks = sort_into_tasks(study)
    assert [t.name for t in tasks] == ["brain_mri", "skin", "medmnist:chestmnist"]
    assert tasks[0].protocols == ["linear", "knn", "finetune"]
    assert [c.series.name for c in tasks[1].cells("linear")] == [
        "gray",
        "random:resnet10t",
        "imagenet:efficientnet_lite0",
    ]
    assert tasks[0].settings("few_shot_linear") == [(None, 1), (None, 5), (None, 10), (None, 50)]


def test_robustness_on_a_part_of_the_images_stays_with_its_task(results: Path) -> None:
    for task in sort_into_tasks(load_study([results])):
        assert [c.row.n for c in task.cells("robustness")] == [task.one.n // 2] * 3
        assert task.one.protocol == "linear"
        assert f"on {task.one.n // 2} of the test images" in task.robust_caption
        assert f"{task.one.n} test images" in task.robust_caption


def test_captions_tell_groups_and_splits(results: Path) -> None:
    brain, skin, _ = sort_into_tasks(load_study([results]))
    assert "no groups" in brain.caption
    assert "val split made here" in brain.caption
    assert "3 files could not be used" in brain.caption
    assert "150 test images" in brain.caption
    assert "no groups" not in skin.caption
    assert "by group" in skin.caption


def test_a_comparison_is_about_the_other_weights(results: Path) -> None:
    """It is written as first less other; the report says what the other is."""
    written = json.loads((results / "comparisons.json").read_text())[0]
    task = sort_into_tasks(load_study([results]))[0]
    first, other, _ = task.cells("linear")
    assert written["a"] == first.row.weights
    assert first.compared is None
    compared = other.compared
    assert compared is not None
    assert written["verdict"] == "better"
    assert compared.verdict == "worse"
    assert (compared.value, compared.low, compared.high) == (-written["value"], -written["high"], -written["low"])
    values = [c.row.metric("auroc").value for c in (other, first)]
    assert compared.value == pytest.approx(values[0] - values[1])


def test_a_row_of_several_folders_is_shown_once(results: Path, copy: Path) -> None:
    once, twice = load_study([results]), load_study([results, copy, results])
    assert [r.key for r in twice.rows] == [r.key for r in once.rows]
    assert twice.notes == []
    change(copy, lambda rows: rows[1]["metrics"]["auroc"].update(value=0.123))
    assert "other figures" in load_study([results, copy]).notes[0]


def test_weights_of_one_name_in_two_folders_are_told_apart(results: Path, copy: Path) -> None:
    def other_keys(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["key"] += "x"

    change(copy, other_keys)
    study = load_study([results, copy])
    assert len(study.rows) == 2 * len(load_study([results]).rows)
    cells = sort_into_tasks(study)[0].cells("linear")
    assert len(cells) == 6
    assert sum(f"[{copy.parent.name}/copy]" in c.series.name for c in cells) == 3
    assert [c.reference and c.reference.name for c in cells[:3]] == [None, "gray", "gray"]
    assert [c.reference and c.reference.name for c in cells[3:]] == [None, cells[3].series.name, cells[3].series.name]
    for cell in cells:  # nothing is compared across folders
        assert cell.compared is None or cell.row.folder == (results, copy)["[" in cell.series.name]


def other_weights(key: str = "y", **facts: Any) -> Any:
    """All that one folder holds measured with other weights of the same names, at other amounts of labels."""

    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        few = [r for r in rows if r["protocol"] == "few_shot_linear"]
        for row in few:
            row |= {"key": row["key"] + key, "protocol": "few_shot_knn"} | facts
        return few

    return edit


@pytest.mark.parametrize("facts", [{"weights_sha256": "b" * 64}, {"image_size": 224}])
def test_other_weights_of_the_same_name_are_told_apart_wherever_they_were_measured(
    results: Path, copy: Path, tmp_path: Path, facts: dict[str, Any]
) -> None:
    change(copy, other_weights(**facts))
    third = Path(shutil.copytree(copy, tmp_path / "third"))
    change(third, lambda rows: [r | {"key": r["key"] + "z", "protocol": "knn", "shots": 3} for r in rows])
    study = load_study([results, copy, third])
    shown = f"[{copy.parent.name}/copy]"
    labels = {r.label for r in study.rows if r.folder in (copy, third)}
    apart = {"runs/gray", "imagenet:efficientnet_lite0"} | ({"random:resnet10t"} if "image_size" in facts else set())
    assert labels == {f"{name} {shown}" for name in apart} | ({"random:resnet10t"} - apart)
    assert {r.label for r in study.rows if r.folder == results} == {r.weights for r in study.rows}


def test_folders_that_end_alike_do_not_make_one_name(results: Path, tmp_path: Path) -> None:
    folders = []
    for i in range(3):
        folders.append(Path(shutil.copytree(results, tmp_path / str(i) / "runs" / "res")))
        change(folders[-1], other_weights(str(i), weights_sha256=str(i) * 64))
    study = load_study(folders)
    assert len({r.label for r in study.rows if r.weights == "runs/gray"}) == 3


def test_seeds_of_one_setting_are_one_cell(copy: Path) -> None:
    def more_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        own = [r for r in rows if r["protocol"] == "finetune" and r["task"] == "brain_mri"]
        moved = [json.loads(json.dumps(r)) | {"seed": 1, "key": r["key"] + "s"} for r in own]
        for row in moved:
            row["metrics"]["auroc"]["value"] = 0.5
        return rows + moved

    change(copy, more_seeds)
    cell = sort_into_tasks(load_study([copy]))[0].cells("finetune")[0]
    assert cell.row.seed == 0
    assert [r.seed for r in cell.other_seeds] == [1]
    assert cell.seeds.startswith("2 seeds: mean 0.7")


def test_nan_none_and_new_keys_are_read(copy: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[1]["metrics"]["auroc"] = {"value": float("nan"), "low": None, "high": float("nan"), "news": 1}
        rows[1]["what_comes_next"] = {}

    change(copy, edit)
    estimate = load_study([copy]).rows[1].metric("auroc")
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.low)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.json", "[{", "cannot be read"),
        ("results.json", "{}", "must hold a list"),
        ("results.json", "[3]", "keys and values"),
        ("results.json", '[{"weights": "a"}]', "row 1: .*field required"),
        ("comparisons.json", "nonsense", "cannot be read"),
        ("comparisons.json", '[{"a": 1}]', "entry 1"),
        ("run.json", "[]", "keys and values"),
    ],
)
def test_what_is_broken_is_refused_by_name(copy: Path, name: str, text: str, said: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(UserError, match=f"(?s){name}.*{said}"):
        load_study([copy])


def test_a_folder_that_holds_nothing_of_ours_is_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither results.json nor recipe.yaml .*did you mean .*results"):
        load_study([results.parent])
    (tmp_path / "rows").mkdir()
    with pytest.raises(UserError, match=r"is not finished.*goes on where it stopped"):
        load_study([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        load_study([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="nothing to report"):
        load_study([])


@pytest.mark.parametrize("name", ["comparisons.json", "run.json"])
def test_what_is_missing_beside_the_rows_is_said(copy: Path, name: str) -> None:
    (copy / name).unlink()
    study = load_study([copy])
    assert len(study.notes) == 1
    assert name in study.notes[0]


def test_predictions_that_are_missing_or_do_not_fit_are_said(copy: Path) -> None:
    row = next(r for r in load_study([copy]).rows if r.protocol == "linear" and r.all_labels)
    assert load_predictions(row).scores.shape == (150, 3)
    path = copy / (row.predictions or "")
    with np.load(path) as found:
        arrays = dict(found)
    for edit, said in (
        ({"scores": arrays["scores"][:, :2]}, "other images or classes"),
        ({"scores": arrays["scores"] * np.nan}, "no numbers"),
        ({"targets": np.array([None])}, "cannot be read"),
    ):
        np.savez(path, **(arrays | edit))
        with pytest.raises(Missing, match=said):
            load_predictions(row)
    path.write_bytes(b"PK no zip")
    with pytest.raises(Missing, match="cannot be read"):
        load_predictions(row)
    path.unlink()
    with pytest.raises(Missing, match="is missing"):
        load_predictions(row)
    with pytest.raises(Missing, match="not kept"):
        load_predictions(row.model_copy(update={"predictions": None}))


def test_galleries_are_found_by_task_and_weights(results: Path, copy: Path) -> None:
    assert load_thumbnails(results, "medmnist:chestmnist").pictures.shape == (160, 28, 28, 1)
    one = load_embedding(results, "brain_mri", "runs/gray")
    other = load_embedding(results, "brain_mri", "imagenet:efficientnet_lite0")
    assert one.xy.shape == (80, 2)
    assert not np.array_equal(one.xy, other.xy)
    with pytest.raises(Missing):
        load_embedding(results, "brain_mri", "runs/color")
    np.savez(copy / "gallery" / "brain_mri.npz", rows=np.arange(3), thumbnails=np.zeros((3, 4, 4)))
    with pytest.raises(Missing, match="no pictures"):
        load_thumbnails(copy, "brain_mri")


def test_a_run_folder_brings_its_own_results(tmp_path: Path) -> None:
    run = write_run(tmp_path / "gray")
    assert load_study([run]).rows == []
    write_results(run / "results", ("color",))
    study = load_study([run])
    assert {r.task for r in study.rows} == {"skin"}
    one = study.runs[0]
    assert one.name == "gray"
    assert one.notes == []
    assert set(one.curves) == {"loss", "lr", "feature_std"}
    assert len(one.curves["loss"][0]) == 12
    assert len(one.curves["feature_std"][0]) == 11  # empty cells are left out
    assert dict(one.card)["input"] == "gray, 64 x 64"
    assert "someone" not in one.recipe


def test_an_unfinished_run_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: young\n")
    notes = load_study([tmp_path]).notes
    assert len(notes) == 3
    assert "not finished" in notes[-1]
    (tmp_path / "metrics.csv").write_text("loss\nx\n")
    with pytest.raises(UserError, match=r"metrics.csv: is no table"):
        load_study([tmp_path])
    (tmp_path / "recipe.yaml").write_text("a: [\n")
    with pytest.raises(RecipeError, match="not YAML"):
        load_study([tmp_path])


@pytest.mark.parametrize(("kept", "asked"), [("runs/v1.0", "runs/v10"), ("runs-a", "runs/a"), ("lr1e-3", "lr1e3")])
def test_the_pictures_of_one_net_or_set_are_not_shown_for_another(kept: str, asked: str, copy: Path) -> None:
    gallery = copy / "gallery"
    (gallery / f"brain_mri--{file_stem('runs/gray')}.npz").rename(gallery / f"brain_mri--{file_stem(kept)}.npz")
    assert len(load_embedding(copy, "brain_mri", kept).sample)
    (gallery / "brain_mri.npz").rename(gallery / f"{file_stem(kept)}.npz")
    assert len(load_thumbnails(copy, kept).rows)
    for load in (lambda: load_embedding(copy, "brain_mri", asked), lambda: load_thumbnails(copy, asked)):
        with pytest.raises(Missing, match=r"(was|were) kept"):
            load()
