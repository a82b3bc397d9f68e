"""Weights elsewhere: ONNX gives torch's figures for batches of any size, a hub's folder loads in plain timm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from ssl_mednet import export, finetune, load_backbone
from ssl_mednet.backbones import Preprocessing, backbone_args, create_backbone, save_backbone
from ssl_mednet.classifying.model import load_model
from ssl_mednet.errors import ArtifactError, RecipeError, UserError
from ssl_mednet.exporting.run import halved


def artifact(folder: Path, net: str, channels: int = 1) -> Path:
    torch.manual_seed(0)
    args = backbone_args(net, channels, 32, 8 if net == "test_vit" else None)
    kind = "gray" if channels == 1 else "color"
    pre = Preprocessing(kind, 32, (0.4,) * channels, (0.2,) * channels)
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
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_a_classifier_in_onnx_gives_its_probabilities(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rng = np.random.default_rng(0)
    for n in range(24):
        path = tmp_path / "set" / ("low" if n % 2 else "high") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 80 if n % 2 else 200, (32, 32), np.uint8)).save(path)
    made = finetune(artifact(tmp_path / "backbone", "test_resnet"), tmp_path / "set", tmp_path / "m", quiet=True)
    model = load_model(made.folder)
    folder = export(made.folder, "onnx", tmp_path / "onnx")
    about = json.loads((folder / "preprocessing.json").read_text())
    assert about["classes"] == ["high", "low"]
    images = torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        features = model.features(images)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found = dict(zip(about["outputs"], session.run(None, {"images": images.numpy()}), strict=True))
    np.testing.assert_allclose(found["features"], features.numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found["probabilities"], model.probabilities(features), atol=1e-4)


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


def test_the_licence_is_what_the_images_ask_for_unless_it_is_said(tmp_path: Path) -> None:
    folder = export(artifact(tmp_path / "backbone", "test_resnet"), "hf", tmp_path / "hf")
    assert "license: cc-by-4.0\n" in (folder / "README.md").read_text()
    own = export(tmp_path / "backbone", "hf", tmp_path / "own", licence="custom:ask us")
    assert "license: other\nlicense_name: custom-ask-us\n" in (own / "README.md").read_text()


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
