"""Weights elsewhere: ONNX gives torch's figures for batches of any size, a hub's folder loads in plain timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from made_files import dicom
from PIL import Image

from ssl_mednet import export, finetune, load_backbone
from ssl_mednet.augment.views import resize
from ssl_mednet.backbones import Preprocessing, backbone_args, create_backbone, save_backbone
from ssl_mednet.backbones.artifact import find_artifact, read_config, sha256
from ssl_mednet.backbones.zoo import zoo_rows
from ssl_mednet.classifying.model import load_model
from ssl_mednet.data.corpus import CorpusSpec, open_corpus
from ssl_mednet.errors import ArtifactError, RecipeError, UserError
from ssl_mednet.evaluation.suite import Suite
from ssl_mednet.exporting.run import halved
from ssl_mednet.exporting.to_onnx import images_in_words


def artifact(folder: Path, net: str, channels: int = 1, size: int = 32) -> Path:
    torch.manual_seed(0)
    args = backbone_args(net, channels, size, 8 if net == "test_vit" else None)
    kind = "gray" if channels == 1 else "color"
    pre = Preprocessing(kind, size, (0.4,) * channels, (0.2,) * channels)
    data = {"images": 5, "licences": {"CC-BY-4.0": 5}}
    save_backbone(create_backbone(net, args), folder, net, args, pre, {"data": data})
    return folder


@pytest.mark.parametrize(("net", "channels"), [("resnet10t", 1), ("test_convnext", 3), ("test_vit", 1)])
def test_onnx_is_torch_for_batches_of_any_size(net: str, channels: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights = artifact(tmp_path / "backbone", net, channels)
    folder = export(weights, "onnx", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    about = json.loads((folder / "preprocessing.json").read_text())
    assert about["input"]["shape"] == ["batch", channels, 32, 32]
    backbone = load_backbone(weights)
    for count in (1, 3, 8):
        images = torch.rand(count, channels, 32, 32)
        with torch.no_grad():
            expected = backbone(backbone.preprocessing(images)).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Tells bright noise from dark; its backbone is that of ``backbone``, its images came without a licence."""
    rng = np.random.default_rng(0)
    for n in range(24):
        path = tmp_path / "set" / ("low" if n % 2 else "high") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 80 if n % 2 else 200, (32, 32), np.uint8)).save(path)
    return finetune(artifact(tmp_path / "backbone", "test_resnet"), tmp_path / "set", tmp_path / "m", quiet=True).folder


def snippet(folder: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the example in the card leaves behind, run as it stands."""
    pytest.importorskip("onnxruntime")
    names: dict[str, Any] = {"images": images.numpy()}
    monkeypatch.chdir(folder)
    exec((folder / "README.md").read_text().split("```python")[1].split("```")[0], names)
    return names


def test_a_classifier_in_onnx_gives_its_probabilities_and_a_card_of_its_own(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    model = load_model(classifier)
    folder = export(classifier, "onnx", tmp_path / "onnx", limits=["Noise only."])
    about = json.loads((folder / "preprocessing.json").read_text())
    assert (about["classes"], about["outputs"]) == (["high", "low"], ["features", "probabilities"])
    assert about["shrink"]["longest_side"] == model.about["store_size"]
    images = torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        features = model.features(images)
    found = snippet(folder, images, monkeypatch)
    np.testing.assert_allclose(found["features"], features.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["probabilities"], model.probabilities(features), atol=1e-4, rtol=0)
    card, figure = (folder / "README.md").read_text(), model.about["metrics"]["auroc"]["value"]
    assert "Tells high, low apart in gray images" in card
    assert f"| set | linear, cross-validation | auroc | {figure:.3f} |" in card
    assert "| started from | backbone (sha256" in card
    assert "| licence of the weights | not stated |" in card  # the backbone's alone would be CC-BY-4.0
    assert "- Noise only." in card
    assert "`probabilities` of 2 classes, that sum to 1, calibrated at temperature" in card
    assert "the graph does not flag images unlike those of the training" in card
    assert "| balanced_accuracy at the most probable class |" in card
    assert "| 95 % interval | images |" in card  # there are no test images
    assert yaml.safe_load(card.split("---")[1])["tags"][1] == "image-classification"
    assert "self-supervised" not in card


def test_the_card_of_a_graph_has_an_example_that_runs_licence_limits_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    card = (export("color-mednet-tiny", "onnx", tmp_path / "color") / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"]) == ("cc-by-nc-sa-4.0", "onnxruntime")
    assert "| licence of the weights | CC-BY-NC-SA-4.0 |" in card
    shipped = read_config(find_artifact("color-mednet-tiny"))["ssl_mednet"]
    figure = next(f for f in shipped["figures"] if (f["task"], f["protocol"]) == ("pbc_blood", "linear"))
    assert f"| pbc_blood | linear | auroc | {figure['value']:.3f} | {figure['low']:.3f} to" in card
    limits = shipped["limits"]
    assert len(limits) > 2
    assert all(f"- {limit}" in card for limit in limits)
    weights = artifact(tmp_path / "backbone", "test_resnet")
    row = {"weights_sha256": read_config(weights)["ssl_mednet"]["sha256"], "labels": 1.0, "task": "brain", "n": 9}
    row |= {"protocol": "linear", "metrics": {"auroc": {"value": 0.912, "low": 0.9, "high": 0.92}}}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    said = {"licence": "CC-BY-NC-4.0", "limits": ["Noise only."], "results": [tmp_path]}
    folder = export(weights, "onnx", tmp_path / "onnx", **said)
    card = (folder / "README.md").read_text()
    for line in (
        "license: cc-by-nc-4.0",
        "- Noise only.",
        "| brain | linear | auroc | 0.912 |",
        "CC-BY-4.0 (5 images)",
    ):
        assert line in card
    assert f"| sha256 | `{sha256(folder / 'model.onnx')}` |" in card
    images, backbone = torch.rand(3, 1, 32, 32), load_backbone(weights)
    with torch.no_grad():
        features = backbone(backbone.preprocessing(images))
    found = snippet(folder, images, monkeypatch)
    np.testing.assert_allclose(found["features"], features.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("value", "resamples", "card", "line"),
    [
        (0.912, 0, "0.912 | no resamples", "AUROC .912 (no resamples) on brain, linear"),
        (0.912, 50, "0.912 | one image or group only", "AUROC .912 (one image or group only) on brain, linear"),
        (None, 0, "not defined | one class only", "AUROC not defined (one class only) on brain, linear"),
    ],
)
def test_figures_that_are_not_defined_are_words_in_the_card_and_null_in_the_config(
    value: float | None, resamples: int, card: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = artifact(tmp_path / "backbone", "test_resnet")
    row = {"weights_sha256": read_config(weights)["ssl_mednet"]["sha256"], "labels": 1.0, "task": "brain", "n": 9}
    row |= {"metrics": {"auroc": {"value": value, "low": None, "high": None, "resamples": resamples}}}
    (tmp_path / "results.json").write_text(json.dumps([row | {"protocol": "linear"}]))
    folder = export(weights, "zoo", tmp_path / "zoo/mine", results=[tmp_path])
    assert f"| brain | linear | auroc | {card} | 9 |" in (folder / "README.md").read_text()
    assert "NaN" not in (folder / "config.json").read_text()
    monkeypatch.setenv("SSL_MEDNET_ZOO", str(tmp_path / "zoo"))
    assert dict(zoo_rows())["mine"].endswith(line)


def test_a_graph_says_how_images_become_its_input_as_it_is_done_here(tmp_path: Path) -> None:
    """A picture of 16 bit and a slice in Hounsfield units, once by the words of the export, once by the corpus."""
    pytest.importorskip("onnxscript")
    folder = export(artifact(tmp_path / "backbone", "test_resnet"), "onnx", tmp_path / "onnx")
    about = json.loads((folder / "preprocessing.json").read_text())
    assert about["intensity"]["16 bit, unsigned (PNG, TIFF, npy)"].startswith("value / 4095 where")
    assert "states none -160 and 240 HU" in about["intensity"]["CT in Hounsfield units (DICOM)"]
    assert about["channels"].endswith("other RGB is refused")
    assert "0.299 R + 0.587 G + 0.114 B" in images_in_words(256, "gray", convert=True)["channels"]
    assert images_in_words(256, "color", convert=True)["channels"].endswith("becomes three equal channels")
    longest, size = about["shrink"]["longest_side"], about["input"]["shape"][-1]
    assert f"longest side of {longest} pixels" in (folder / "README.md").read_text()
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 4096, (300, 512)).astype(np.uint16), rng.integers(-900, 900, (300, 512)).astype(np.int16))
    (tmp_path / "images").mkdir()
    Image.fromarray(values[0]).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.dcm").write_bytes(dicom(values[1], Modality="CT", RescaleSlope=1, RescaleIntercept=0))
    store_size = Suite.model_fields["store_size"].default  # which evaluate and finetune have
    color = rng.integers(0, 256, (300, 512, 3)).astype(np.uint8)
    Image.fromarray(color).save(tmp_path / "images" / "c.png")
    corpus = open_corpus(tmp_path / "images", CorpusSpec("gray", store_size, convert=True), quiet=True)
    seen = resize(corpus.batch(np.arange(3)), size)
    luma = np.rint(color @ [0.299, 0.587, 0.114]).astype(np.uint8)
    for number, (stored, low, high) in enumerate(((values[0], 0, 4095), (values[1], -160, 240), (luma, 0, 255))):
        plane = Image.fromarray(stored if stored.dtype == np.uint8 else stored.astype(np.float32))
        small = plane.resize((longest, 150), Image.Resampling.BILINEAR)
        unit = torch.from_numpy((np.rint(np.asarray(small, np.float32)) - low) / (high - low)).clamp(0, 1)[None, None]
        square = torch.nn.functional.interpolate(unit, (size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(seen[number], square[0], atol=3e-4, rtol=0)  # one level of 12 bits, rounded at a tie


@pytest.mark.parametrize("form", ["timm", "hf", "zoo"])
def test_it_is_told_that_the_head_of_a_classifier_stays(
    form: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(classifier, form, tmp_path / form)
    assert "holds the backbone" in (said := capsys.readouterr().err)
    assert "--format onnx takes both" in said
    card = (folder / "README.md").read_text()
    assert "backbone of a classifier alone: the head, which tells high, low apart, is not in" in card
    export(tmp_path / "backbone", form, tmp_path / "plain")
    assert capsys.readouterr().err == ""
    assert "backbone of a classifier" not in (tmp_path / "plain" / "README.md").read_text()


def test_the_card_of_a_fine_tuned_backbone_says_that_it_saw_labels(classifier: Path, tmp_path: Path) -> None:
    start, options = tmp_path / "backbone", ["finetune.epochs=1", "resamples=50"]
    made = finetune(start, tmp_path / "set", tmp_path / "f", "finetune", overrides=options, quiet=True)
    card = (export(made.folder, "timm", tmp_path / "timm") / "README.md").read_text()
    assert "`test_resnet` fine-tuned with labels on gray medical images, from backbone." in card
    assert "unlabeled" not in card
    assert "self-supervised" not in card
    assert "| steps |" not in card


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_a_folder_for_timm_and_hubs_loads_without_us(form: str, tmp_path: Path) -> None:
    weights = artifact(tmp_path / "backbone", "test_resnet")
    folder = export(weights, form, tmp_path / form, licence="CC-BY-NC-4.0")
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(images), load_backbone(weights)(images))
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert head["license"] == "cc-by-nc-4.0"
    assert head["library_name"] == "timm"
    assert {"timm", "gray"} <= set(head["tags"])
    assert {p.name for p in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_the_card_for_a_hub_shows_how_it_is_loaded_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its example is run; a folder stands in for the hub, whose files huggingface_hub would fetch into one."""
    weights = artifact(tmp_path / "backbone", "test_resnet")
    folder = export(weights, "hf", tmp_path / "hf")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(folder / filename))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo: str(folder))
    example = (folder / "README.md").read_text().split("```")[1].removeprefix("python")
    assert 'timm.create_model("hf_hub:YOUR_NAME/THIS_REPOSITORY", pretrained=True)' in example
    assert "PATH_OF_THIS_FOLDER" not in example
    found: dict[str, Any] = {"images": torch.rand(2, 1, 50, 40)}
    exec(example, found)
    with torch.no_grad():
        ours = load_backbone(weights)
        torch.testing.assert_close(found["features"], ours(ours.preprocessing(found["images"])))


def test_no_path_of_this_machine_is_in_an_export(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "run", "test_resnet")
    config = json.loads((folder / "config.json").read_text())
    config["ssl_mednet"]["recipe"] = {
        "data": {"source": "/home/jane/a.zip", "leave_out": ["/home/jane/b.zip"], "held_out": "/home/jane/s.yaml"},
        "backbone": {"weights": "/home/jane/base"},
        "monitor": {"probe": "/home/jane/c.zip"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    out = export(folder, "hf", tmp_path / "hf")
    said = json.loads((out / "config.json").read_text())["ssl_mednet"]["recipe"]
    assert said["data"] == {"source": "a.zip", "leave_out": ["b.zip"], "held_out": "s.yaml"}
    assert (said["backbone"]["weights"], said["monitor"]["probe"]) == ("base", "c.zip")
    assert "jane" not in "".join(path.read_text() for path in out.glob("*.[jm][sd]*"))


def test_the_licence_is_what_the_images_ask_for_unless_it_is_said(tmp_path: Path) -> None:
    folder = export(artifact(tmp_path / "backbone", "test_resnet"), "hf", tmp_path / "hf")
    assert "license: cc-by-4.0\n" in (folder / "README.md").read_text()
    own = export(tmp_path / "backbone", "hf", tmp_path / "own", licence="custom:ask us")
    assert "license: other\nlicense_name: custom-ask-us\n" in (own / "README.md").read_text()
    for number, (said, name) in enumerate({"@x [a]": "x-a", "yes": "yes", "1.0": "1.0", "a\n---\nb": "a-b"}.items()):
        odd = export(tmp_path / "backbone", "hf", tmp_path / f"odd{number}", licence=said)
        assert yaml.safe_load((odd / "README.md").read_text().split("---\n")[1])["license_name"] == name


def test_only_matrices_that_fit_are_halved() -> None:
    assert halved(torch.rand(3, 4)).dtype == torch.float16
    assert halved(torch.rand(3)).dtype == torch.float32
    assert halved(torch.full((2, 2), 1e6)).dtype == torch.float32
    assert halved(torch.ones(2, 2, dtype=torch.int64)).dtype == torch.int64


def test_mistakes_are_told_and_nothing_is_overwritten(tmp_path: Path) -> None:
    weights = artifact(tmp_path / "backbone", "test_resnet")
    with pytest.raises(RecipeError, match="did you mean 'onnx'"):
        export(weights, "onxx", tmp_path / "x")
    with pytest.raises(ArtifactError, match="no such folder"):
        export("nowhere", "timm", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export(weights, "timm", tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_only_an_export_is_overwritten_and_nothing_beside_it(classifier: Path, tmp_path: Path) -> None:
    weights = tmp_path / "backbone"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="is no export"):
        export(weights, "timm", "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years"
    (tmp_path / "hub").mkdir()
    for name in ("config.json", "README.md", "model.safetensors"):  # of another program, with the same names
        (tmp_path / "hub" / name).write_text("{}")
    with pytest.raises(UserError, match="is no export"):
        export(weights, "timm", "hub", overwrite=True)
    with pytest.raises(UserError, match="is no export"):  # as good as one, but a part of a classifier
        export("gray-mednet-tiny", "timm", classifier / "backbone", overwrite=True)
    mine = export(weights, "timm", "mine")
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt beside an export"):
        export(weights, "timm", "mine", overwrite=True)
    assert load_model(classifier).classes == ["high", "low"]
    assert (mine / "notes.txt").read_text() == "mine"
    Path("file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        export(weights, "timm", "file", overwrite=True)


def test_an_export_gives_way_to_another_of_any_format_once_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    weights = artifact(tmp_path / "backbone", "test_resnet", size=288)
    folder = export(weights, "timm", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ssl_mednet.exporting.to_onnx._write_graph", full)
        with pytest.raises(OSError, match="No space"):
            export(weights, "onnx", folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    export(weights, "onnx", folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "preprocessing.json", "README.md"}
    about = json.loads((folder / "preprocessing.json").read_text())
    assert about["shrink"]["longest_side"] == 288  # never to less than the net sees
    export(weights, "timm", folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.setattr("ssl_mednet.exporting.run.write_artifact", full)
    with pytest.raises(OSError, match="No space"):
        export(weights, "timm", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_source_is_no_place_for_an_export(classifier: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()}
    for out in (classifier, classifier / "backbone", classifier / "hub" / "timm", tmp_path, Path("m/../m")):
        with pytest.raises(UserError, match="is, holds or lies in what is exported"):
            export(classifier, "timm", out, overwrite=True)
    with pytest.raises(UserError, match="is, holds or lies in"):
        export(tmp_path / "backbone", "timm", tmp_path / "backbone", overwrite=True)
    assert {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("form", ["hf", "zoo"])
def test_the_folder_in_which_one_stands_may_be_the_one(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = artifact(tmp_path / "backbone", "test_resnet")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(weights, form, ".")
    export(weights, form, ".", overwrite=True)
    assert Path("README.md").is_file()  # and it is still the same folder
    assert sorted(Path().iterdir()) == sorted(p.relative_to(tmp_path / "here") for p in (tmp_path / "here").iterdir())
    if form == "zoo":
        assert "# here\n" in Path("README.md").read_text()
