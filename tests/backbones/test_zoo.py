"""Weights known by name: offline, half as large, verified before use; and whatever ships with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from ssl_mednet import export, load_backbone, weights_path
from ssl_mednet.backbones import Preprocessing, backbone_args, create_backbone, save_backbone
from ssl_mednet.backbones.card import model_card
from ssl_mednet.backbones.start import inherited_licences
from ssl_mednet.backbones.zoo import MAX_BYTES, shipped_zoo, zoo_entries
from ssl_mednet.errors import ArtifactError, UserError
from ssl_mednet.evaluation.weights import load_weights
from ssl_mednet.listing import listing

SHIPPED = ("color-mednet-tiny", "gray-mednet-tiny")


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the entry ``gray-test``, found through the environment; what it was made of is in ``run``."""
    args = backbone_args("resnet10t", 1, 64)
    model = create_backbone("resnet10t", args).eval()
    data = {"images": 7, "licences": {"CC-BY-NC-4.0": 7}}
    recipe = {"name": "mine", "data": {"source": "/home/somebody/scans.zip"}, "method": {"name": "simclr"}}
    gray = Preprocessing("gray", 64, (0.4,), (0.2,))
    digest = save_backbone(model, tmp_path / "run", "resnet10t", args, gray, {"data": data, "recipe": recipe})
    row = {"weights_sha256": digest, "labels": 1.0, "task": "brain", "protocol": "linear", "n": 9}
    row["metrics"] = {"auroc": {"value": 0.912, "low": 0.9, "high": 0.92}}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    monkeypatch.setenv("SSL_MEDNET_ZOO", str(tmp_path / "zoo"))
    return export("run", "zoo", tmp_path / "zoo" / "gray-test", results=[tmp_path], limits=["64 px only."])


def test_weights_load_by_name_as_float32_and_give_the_features_of_the_run(entry: Path) -> None:
    backbone = load_backbone("gray-test")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        small, whole = backbone(images), load_backbone("run")(images)
        plain = timm.create_model("local-dir:" + weights_path("gray-test"), pretrained=True).eval()(images)
    assert torch.nn.functional.cosine_similarity(small, whole).min() > 0.9999
    assert torch.equal(plain, small)
    sizes = [(p / "model.safetensors").stat().st_size for p in (entry, Path("run"))]
    assert sizes[0] < 0.52 * sizes[1]


def test_every_verb_takes_the_name(entry: Path) -> None:
    named, untrained = load_weights(["gray-test", "random:"], "gray", None, 0)
    assert (named.architecture, untrained.architecture) == ("resnet10t", "resnet10t")
    assert named.published == json.loads((entry / "config.json").read_text())["ssl_mednet"]["sha256"]


def test_the_list_and_the_card_say_what_it_is(entry: Path) -> None:
    line = next(line for line in listing("weights") if line.startswith("gray-test"))
    for said in ("resnet10t", "gray", "64 px", "MB", "CC-BY-NC-4.0", ".912 (.900 to .920) on brain, linear"):
        assert said in line
    card = (entry / "README.md").read_text()
    for said in (
        "license: cc-by-nc-4.0",
        'weights_path("gray-test")',
        "| brain | linear | auroc | 0.912",
        "64 px only",
    ):
        assert said in card
    assert "somebody" not in card + (entry / "config.json").read_text()


def test_a_damaged_file_is_refused(entry: Path) -> None:
    content = bytearray((entry / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (entry / "model.safetensors").write_bytes(content)
    for use in (load_backbone, weights_path):
        with pytest.raises(ArtifactError, match="sha256 is not the one in"):
            use("gray-test")


def test_a_slip_in_the_name_is_told_and_a_folder_of_that_name_comes_first(entry: Path) -> None:
    with pytest.raises(ArtifactError, match="did you mean 'gray-test'"):
        load_backbone("grey-test")
    with pytest.raises(ArtifactError, match="elsewhere/grey-test: no such folder"):
        load_backbone("elsewhere/grey-test")
    Path("gray-test").mkdir()
    with pytest.raises(ArtifactError, match=r"holds no model\.safetensors"):
        load_backbone("gray-test")


def test_figures_of_other_weights_are_not_taken(entry: Path, tmp_path: Path) -> None:
    rows = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps([rows[0] | {"weights_sha256": "0" * 64}]))
    with pytest.raises(UserError, match="no row measured with these weights"):
        export("run", "zoo", tmp_path / "zoo" / "other", results=[tmp_path])


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_whole_small_and_described(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_MEDNET_ZOO", raising=False)
    assert tuple(sorted(p.parent.name for p in shipped_zoo().glob("*/config.json"))) == SHIPPED
    folder = zoo_entries()[name]
    assert (folder / "model.safetensors").stat().st_size <= MAX_BYTES
    tensors = load_file(folder / "model.safetensors")
    assert {t.dtype for t in tensors.values() if t.ndim > 1} == {torch.float16}
    assert sum(t.numel() for t in tensors.values()) < 8_000_000
    backbone = load_backbone(name)
    pre = backbone.preprocessing
    assert isinstance(pre, Preprocessing)
    images = torch.rand(2, len(pre.mean), 100, 80)
    with torch.no_grad():
        features = backbone(pre(images))
    assert torch.isfinite(features).all()
    assert features.std(dim=0).max() > 0
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    with torch.no_grad():
        assert torch.equal(classifier.global_pool(classifier.forward_features(pre(images))), features)
    config = json.loads((folder / "config.json").read_text())
    ours = config["ssl_mednet"]
    assert ours["licence"]
    assert ours["figures"]
    unknown = ours["data"]["licences"]["not stated"]
    assert inherited_licences(ours)[""] == unknown > 0  # which the licence of the weights does not settle
    card = (folder / "README.md").read_text()
    assert card == model_card(config, name)
    assert f'load_backbone("{name}")' in card
    assert "Not a medical device" in card
