"""A small backbone, a folder of labelled X-ray phantoms, and a classifier made from both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from xray_phantoms import xray

from ssl_mednet import finetune
from ssl_mednet.backbones import Preprocessing, backbone_args, create_backbone, save_backbone
from ssl_mednet.classifying.fit import Fitted


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    args = backbone_args("test_resnet", 1, 32)
    model = create_backbone("test_resnet", args).eval()
    data = {"images": 10, "licences": {"CC-BY-NC-4.0": 10}}
    out = tmp_path_factory.mktemp("weights") / "backbone"
    save_backbone(model, out, "test_resnet", args, Preprocessing("gray", 32, (0.4,), (0.2,)), {"data": data})
    return out


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 bright and 40 dark ones without splits, two of each patient."""
    root = tmp_path_factory.mktemp("labelled")
    lines = ["path,label,group,modality"]
    for number in range(80):
        name, label = f"{number}.png", "dark" if number % 4 > 1 else "bright"
        Image.fromarray(xray(number, label == "dark")).save(root / name)
        lines.append(f"{name},{label},patient{number // 2},xray")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def fitted(backbone: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return finetune(backbone, labelled, tmp_path_factory.mktemp("models") / "dark", "linear", quiet=True)
