"""Contamination: what of an evaluation set is in a corpus, and the run that will not start on it."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from audit_helpers import COPIES, picture, write_labelled
from PIL import Image

from ssl_mednet import pretrain
from ssl_mednet.auditing import audit as audit_module
from ssl_mednet.auditing.audit import ContaminationError, audit
from ssl_mednet.auditing.quality import Mark, curate
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.errors import DataError, UserError
from ssl_mednet.pretraining.build import recipe_rows
from ssl_mednet.recipe import load_recipe


def worlds() -> tuple[list[Image.Image], dict[str, list[Image.Image]]]:
    """A corpus, and a set of which two test images and one for training are in it; both have black frames."""
    pictures = [picture(i, size=128) for i in range(16)]
    splits = {
        "train": [picture(i, size=128) for i in range(100, 107)] + [pictures[7]],
        "val": [picture(i, size=128) for i in range(200, 204)],
        "test": [picture(i, size=128) for i in range(300, 304)] + [pictures[3], COPIES["jpeg"](pictures[5])],
    }
    black = Image.new("L", (128, 128))
    return [*pictures, black], {name: [*images, black] for name, images in splits.items()}


def suite_of(tmp_path: Path, source: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(f"name: held\nsets:\n  - {{source: {source}, channels: gray}}\n")
    return path


def test_contamination_is_counted_by_split_and_listed_by_row(make_corpus, tmp_path: Path) -> None:
    pictures, splits = worlds()
    corpus = make_corpus(pictures)
    report = audit(corpus, [write_labelled(tmp_path / "labelled.zip", splits)], quiet=True)
    counts = {c.split: (c.images, c.exact, c.near, c.embedding) for c in report.counts}
    assert counts == {"train": (9, 1, 0, 0), "val": (5, 0, 0, 0), "test": (7, 1, 1, 0)}
    assert {c.split: round(c.share, 3) for c in report.counts}["test"] == round(2 / 7, 3)
    report.write(tmp_path / "out" / "audit.csv")
    with (tmp_path / "out" / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["split"], int(r["corpus_row"]), r["kind"]) for r in rows} == {
        ("train", 7, "exact"),
        ("test", 3, "exact"),
        ("test", 5, "near"),
    }
    assert ".png" not in (tmp_path / "out" / "audit.csv").read_text(), "names of files may be identifiers"
    assert all(len(line) <= 80 for line in report.lines())


def without_labels(source: Path, out: Path, kept: tuple[str, ...]) -> Path:
    """The set with the pictures of these splits alone, and no label on those of its test split."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(out, "w") as made:
        head, *rows = archive.read("labels.csv").decode().splitlines()
        table = [head]
        for path, label, split in (row.split(",") for row in rows):
            if split in kept:
                made.writestr(path, archive.read(path))
                table.append(f"{path},{'' if split == 'test' else label},{split}")
        made.writestr("labels.csv", "\n".join(table))
    return out


@pytest.mark.parametrize("kept", [("train", "val", "test"), ("test",)])
def test_test_images_are_found_without_their_labels(make_corpus, tmp_path: Path, kept: tuple[str, ...]) -> None:
    pictures, splits = worlds()
    whole = write_labelled(tmp_path / "labelled.zip", splits)
    source = without_labels(whole, tmp_path / "hidden.zip", kept)
    report = audit(make_corpus(pictures), [source], quiet=True)
    assert {c.split: (c.images, c.exact, c.near) for c in report.counts}["test"] == (7, 1, 1)


def test_a_folder_of_test_images_is_audited_and_made_splits_are_told(
    make_corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, splits = worlds()
    corpus = make_corpus(pictures)
    (tmp_path / "plain").mkdir()
    for i, image in enumerate(splits["test"]):
        image.save(tmp_path / "plain" / f"{i}.png")
    report = audit(corpus, [tmp_path / "plain"], quiet=True)
    assert {c.split: (c.images, c.exact, c.near) for c in report.counts}["test"] == (7, 1, 1)
    assert capsys.readouterr().err == ""
    audit(corpus, [write_labelled(tmp_path / "all.zip", {"": [picture(i, size=128) for i in range(40)]})], quiet=True)
    assert "names no test images: 8 of its 40 count as such" in capsys.readouterr().err
    with pytest.raises(DataError, match="no labelled image is left for the train split"):
        open_labelled(write_labelled(tmp_path / "only.zip", {"test": pictures[:8]}), CorpusSpec("gray", 64), True)


def test_a_suite_is_audited_set_by_set_and_says_what_it_could_not_open(make_corpus, tmp_path: Path) -> None:
    pictures, splits = worlds()
    source = write_labelled(tmp_path / "labelled.zip", splits)
    suite = suite_of(tmp_path, source)
    suite.write_text(suite.read_text() + "  - {source: nowhere.zip, channels: gray}\n")
    report = audit(make_corpus(pictures), [suite], quiet=True)
    assert len(report.counts) == 3
    assert list(report.failed) == ["nowhere.zip"]
    assert "not audited" in report.lines()[-1]
    with pytest.raises(DataError, match="nowhere"):
        audit(make_corpus(pictures), ["nowhere.zip"], quiet=True)


def test_the_second_audit_reads_no_pixels(make_corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, splits = worlds()
    corpus, source = make_corpus(pictures), write_labelled(tmp_path / "labelled.zip", splits)
    first = audit(corpus, [source], quiet=True)
    monkeypatch.setattr(audit_module, "copies", lambda *_: pytest.fail("found again"))
    assert audit(corpus, [source], quiet=True) == first


def test_embeddings_find_what_hashes_cannot(make_corpus, tmp_path: Path) -> None:
    pictures, splits = worlds()
    turned = pictures[9].transpose(Image.Transpose.ROTATE_180)
    splits["test"].append(turned)
    source, corpus = write_labelled(tmp_path / "labelled.zip", splits), make_corpus(pictures)
    assert audit(corpus, [source], quiet=True).counts[2].near == 1
    report = audit(corpus, [source], "baseline:histogram", cosine=0.9999, quiet=True)
    test = report.counts[2]
    assert (test.exact, test.near, test.embedding) == (1, 1, 1), "a histogram does not see which way is up"
    assert any(m.kind == "embedding" and m.corpus_row == 9 for m in report.matches)


RECIPE = {
    "name": "held",
    "backbone": {"name": "test_resnet"},
    "method": {"name": "simclr"},
    "optim": {"batch_size": 8},
    "train": {"steps": 1, "device": "cpu", "precision": "float32"},
    "monitor": {"pictures": 0},
}


def recipe(corpus: Path, suite: Path, **data: object) -> dict[str, object]:
    section = {"source": str(corpus), "channels": "gray", "image_size": 32, "held_out": str(suite), **data}
    return {**RECIPE, "data": section}


def test_training_on_test_images_is_refused_and_an_override_is_recorded(make_corpus, tmp_path: Path) -> None:
    pictures, splits = worlds()
    corpus = make_corpus(pictures)
    suite = suite_of(tmp_path, write_labelled(tmp_path / "labelled.zip", splits))
    with pytest.raises(ContaminationError, match=r"labelled 2 of 7 \(1 exact, 1 near\)") as caught:
        pretrain(recipe(corpus.folder, suite), out=tmp_path / "refused", quiet=True)
    assert isinstance(caught.value, UserError)
    assert "data.allow_contamination=true" in caught.value.hint
    assert f"curate {corpus.folder} --against {suite}" in caught.value.hint
    assert not (tmp_path / "refused").exists()
    run = pretrain(recipe(corpus.folder, suite, allow_contamination=True), out=tmp_path / "run", quiet=True)
    said = json.loads((run.folder / "backbone" / "config.json").read_text())["ssl_mednet"]["data"]["held_out"]
    assert said == {
        "suite": "suite.yaml",
        "test_images": 7,
        "exact": 1,
        "near": 1,
        "not_audited": [],
        "contamination_allowed": True,
    }


def test_a_corpus_that_holds_test_images_trains_without_them_when_curated(make_corpus, tmp_path: Path) -> None:
    """Every copy goes, training images of the set stay, and the run that follows has been checked all the same."""
    pictures, splits = worlds()
    corpus = make_corpus([*pictures, COPIES["half"](pictures[3])])
    suite = suite_of(tmp_path, write_labelled(tmp_path / "labelled.zip", splits))
    quality = curate(corpus, quiet=True, against=[suite])
    assert np.flatnonzero(quality.marks & Mark.HELD_OUT).tolist() == [3, 5, 17]
    assert quality.keep[7], "a training image of the set"
    run = pretrain(recipe(corpus.folder, suite, keep="good"), out=tmp_path / "run", quiet=True)
    said = json.loads((run.folder / "backbone" / "config.json").read_text())["ssl_mednet"]["data"]
    assert said["images"] == 14
    assert (said["held_out"]["exact"], said["held_out"]["near"]) == (0, 0)
    curate(corpus, quiet=True)  # without the suite its test images are good again, and refused
    with pytest.raises(ContaminationError, match="labelled 2 of 7"):
        pretrain(recipe(corpus.folder, suite, keep="good"), out=tmp_path / "again", quiet=True)


def test_curate_is_not_content_with_half_a_suite(make_corpus, tmp_path: Path) -> None:
    pictures, splits = worlds()
    corpus, suite = make_corpus(pictures), suite_of(tmp_path, write_labelled(tmp_path / "labelled.zip", splits))
    suite.write_text(suite.read_text() + "  - {source: nowhere.zip, channels: gray}\n")
    with pytest.raises(DataError, match="not all test images are known"):
        curate(corpus, quiet=True, against=[suite])


def test_a_clean_corpus_trains_and_the_training_split_of_the_set_itself_is_clean(tmp_path: Path) -> None:
    _, splits = worlds()
    source = write_labelled(tmp_path / "labelled.zip", splits)
    suite = suite_of(tmp_path, source)
    run = pretrain(recipe(source, suite), out=tmp_path / "run", quiet=True)
    said = json.loads((run.folder / "backbone" / "config.json").read_text())["ssl_mednet"]["data"]["held_out"]
    assert (said["exact"], said["near"], said["contamination_allowed"]) == (0, 0, False)
    with pytest.raises(ContaminationError, match="6 of 7"):
        pretrain(recipe(source, suite, split="all"), out=tmp_path / "all", quiet=True)


def test_a_suite_that_cannot_be_opened_proves_nothing(make_corpus, tmp_path: Path) -> None:
    pictures, splits = worlds()
    suite = suite_of(tmp_path, write_labelled(tmp_path / "labelled.zip", {**splits, "test": splits["val"]}))
    suite.write_text(suite.read_text() + "  - {source: nowhere.zip, channels: gray}\n")
    with pytest.raises(DataError, match="not all of it can be audited"):
        pretrain(recipe(make_corpus(pictures).folder, suite), out=tmp_path / "run", quiet=True)


def test_what_a_run_is_compared_on_is_left_out_of_its_training(make_corpus, tmp_path: Path, capsys) -> None:
    """An exact and a near copy of test images go; a training image of the set stays."""
    pictures, splits = worlds()
    corpus, source = make_corpus(pictures), write_labelled(tmp_path / "labelled.zip", splits)
    section = {"source": str(corpus.folder), "channels": "gray", "image_size": 32, "leave_out": [str(source)]}
    run = pretrain({**RECIPE, "data": section}, out=tmp_path / "run", quiet=False)
    assert run.images == 17 - 2
    assert f"left out 2 images: val or test images of {source}" in capsys.readouterr().err
    rows = recipe_rows(load_recipe({**RECIPE, "data": section}), corpus)
    assert set(range(17)) - set(rows.tolist()) == {3, 5}


def test_folders_of_classes_are_split_before_they_are_trained_and_tested_on(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for i in range(40):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(i, size=64).save(folder / "ab"[i % 2] / f"{i}.png")
    section = {"source": str(folder), "channels": "gray", "image_size": 32, "leave_out": [str(folder)]}
    task = open_labelled(folder, CorpusSpec("gray", 64), quiet=True)
    assert task.made == ("test", "val")
    run = pretrain({**RECIPE, "data": section}, out=tmp_path / "run", quiet=True)
    assert run.images == len(task.splits["train"])
    with pytest.raises(DataError, match=r"nowhere\.zip: no such file"):
        pretrain({**RECIPE, "data": section | {"leave_out": ["nowhere.zip"]}}, out=tmp_path / "no", quiet=True)
    assert not (tmp_path / "no").exists()
    half = pretrain({**RECIPE, "data": section | {"leave_out": [str(folder / "a")]}}, out=tmp_path / "b", quiet=True)
    assert half.images == 20  # images without a label are left out whole
