"""Splits that are made, and splits that leak."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssl_mednet.data.corpus import CorpusSpec, open_corpus
from ssl_mednet.data.labelled import LabelledSet, kept_together, open_labelled, task_names
from ssl_mednet.errors import DataError

GRAY = CorpusSpec("gray", 32)


def labelled(tmp_path: Path, rows: list[tuple[str, str, str]]) -> LabelledSet:
    """A set from (label, split, group) rows."""
    lines = [f"{i:04}.npy,{label},{split},{group}" for i, (label, split, group) in enumerate(rows)]
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split,group", *lines]))
    for i in range(len(rows)):
        np.save(tmp_path / f"{i:04}.npy", np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8))
    return open_labelled(tmp_path, GRAY, quiet=True)


def test_missing_splits_are_made_by_group_and_stratified(tmp_path: Path) -> None:
    rows = [("ab"[i // 100], "", f"p{i // 4}") for i in range(200)]
    task = labelled(tmp_path / "set", rows)
    assert task.made == ("test", "val")
    groups = [set(task.groups[task.splits[s]]) for s in ("train", "val", "test")]
    assert not (groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2])
    sizes = {s: len(r) for s, r in task.splits.items()}
    assert sum(sizes.values()) == 200
    assert 32 <= sizes["test"] <= 48
    for split in ("train", "val", "test"):
        assert abs(task.labels[task.splits[split]].mean() - 0.5) < 0.1
    again = labelled(tmp_path / "again", rows)
    assert all(np.array_equal(again.splits[s], task.splits[s]) for s in task.splits)


def test_a_missing_validation_split_comes_from_training_rows_only(tmp_path: Path) -> None:
    rows = [("ab"[i % 2], "test" if i < 20 else "train", "") for i in range(100)]
    task = labelled(tmp_path, rows)
    assert task.made == ("val",)
    assert task.splits["test"].tolist() == list(range(20))
    assert 8 <= len(task.splits["val"]) <= 16
    assert not task.grouped


def test_one_image_without_a_group_does_not_take_the_groups_of_the_others(tmp_path: Path) -> None:
    rows = [("ab"[i % 2], "test" if i < 20 else "train", f"p{i // 4}" if i else "") for i in range(100)]
    task = labelled(tmp_path, rows)
    assert (task.grouped, task.ungrouped) == (True, 1)


def test_sets_of_one_stem_are_called_by_their_source() -> None:
    assert task_names(["a/x.zip", "b/y.zip"]) == ["x", "y"]
    assert task_names(["a/x.zip", "b/x.zip", "y"]) == ["a/x.zip", "b/x.zip", "y"]
    assert task_names(["m:b?size=28", "m:b?size=64"]) == ["m:b?size=28", "m:b?size=64"]
    assert task_names(["a/x.zip", "a/x.zip"]) == ["a/x.zip", "a/x.zip (2)"]


def test_a_patient_on_both_sides_of_a_split_is_refused(tmp_path: Path) -> None:
    rows = [("a", "train", "p1"), ("b", "train", "p2"), ("a", "val", "p3"), ("b", "test", "p1")]
    with pytest.raises(DataError, match=r"1 groups .* in both train and test"):
        labelled(tmp_path, rows)


def test_too_few_images_for_the_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no labelled image is left"):
        labelled(tmp_path, [("a", "", ""), ("b", "", "")])


def test_slices_of_a_volume_stay_on_one_side(tmp_path: Path) -> None:
    """NIfTI names no patient; slices of one file are neighbours."""
    rng = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "set" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 1000, (16, 16, 6)).astype(np.int16)
        nib.save(nib.Nifti1Image(pixels, np.eye(4)), folder / f"{number:02}.nii.gz")  # type: ignore[no-untyped-call]
    task = open_labelled(tmp_path / "set", GRAY, quiet=True)
    volumes = [set(task.corpus.numbers("volume")[rows].tolist()) for rows in task.splits.values()]
    assert sum(map(len, volumes)) == len(set.union(*volumes)) == 20
    assert sum(len(rows) for rows in task.splits.values()) == 120
    assert task.grouped
    assert (task.corpus.group < 0).all()


def test_made_splits_do_not_part_exact_copies(tmp_path: Path) -> None:
    lines = ["path,label"]
    for i in range(60):  # ten pictures, six times each
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i % 10).integers(0, 256, (8, 8), dtype=np.uint8))
        lines.append(f"{i}.npy,{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    task = open_labelled(tmp_path, GRAY, quiet=True)
    content = np.array(task.corpus.column("sha256").to_pylist())
    seen = [set(content[rows]) for rows in task.splits.values()]
    assert not (seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2])
    assert not task.grouped  # copies are no patients, and intervals are over images


def test_what_is_kept_together(tmp_path: Path) -> None:
    for i, content in enumerate([1, 1, 2, 2, 3, 3, 1, 4, 4, 5]):
        np.save(tmp_path / f"{i}.npy", np.full((8, 8), content, np.uint8))
    corpus = open_corpus(tmp_path, GRAY, quiet=True)
    assert kept_together(corpus, np.array([0, 0, 0, 1, 1, -1, -1, -1, -1, -1])).tolist()[:7] == [0, 0, 0, 1, 1, 1, 0]
    copies = kept_together(corpus, np.array([1, 1, 0, 1, 1, -1, -1, -1, -1, -1]))[5:]
    assert copies[:2].tolist() == [1, 1]  # of several groups with a copy the first row's, and groups stay what they are
    assert copies[2] == copies[3] != copies[4]
    assert min(copies[2:]) > 1
    assert len(set(kept_together(corpus, np.full(10, -1)))) == 5


def test_images_without_a_label_and_classes_without_training_images_are_told(tmp_path: Path) -> None:
    rows = [("ab"[i % 2], ("train", "val", "test")[i % 3], "") for i in range(60)]
    assert labelled(tmp_path / "good", rows).remarks == []
    more = [("", "train", ""), ("", "test", ""), ("c", "test", ""), ("d", "train", "")]
    task = labelled(tmp_path / "set", [*rows, *more])
    assert task.without("train") == ["c"]
    assert task.remarks == [
        "2 images have no label and are left out",
        "no train image of c, so that no net will ever say it",
        "no val image of c, d, so that nothing is chosen for it",
        "no test image of d, so that the figures say nothing of it",
        "c: fewer than 5 test images, of which intervals say little",
    ]
    capitals = labelled(tmp_path / "capitals", [(("a", "b", "B")[i % 3], "", "") for i in range(90)])
    assert capitals.remarks == ["B, b: classes that differ in capitals alone"]


def test_images_that_the_table_does_not_name_are_told(tmp_path: Path) -> None:
    rows = [("ab"[i % 2], ("train", "val", "test")[i % 3], "") for i in range(60)]
    labelled(tmp_path, rows)
    for name in ("mask.npy", "z/more.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.zeros((8, 8), np.uint8))
    task = open_labelled(tmp_path, GRAY, quiet=True)
    assert len(task.corpus) == 60
    assert "2 files could not be used" in task.left_out
    assert "mask.npy: labels.csv does not name it" in task.left_out
