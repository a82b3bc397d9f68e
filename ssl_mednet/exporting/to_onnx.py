"""Backbones and classifiers as ONNX graphs that hold their own normalisation."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_mednet.backbones.artifact import Preprocessing, load_backbone
from ssl_mednet.classifying.model import is_model, load_model, whole_folder
from ssl_mednet.errors import ArtifactError
from ssl_mednet.imaging.modality import CHANNEL_COUNT

GRAPH, ABOUT, CARD = "model.onnx", "preprocessing.json", "README.md"


class _Graph(nn.Module):
    """Images ``[B, C, S, S]`` in [0, 1] to features ``[B, D]``, and of a classifier calibrated probabilities."""

    def __init__(self, backbone: nn.Module, head: tuple[Tensor, Tensor] | None, temperature: float, many: bool) -> None:
        super().__init__()
        pre: Any = backbone.preprocessing
        self.backbone, self.temperature, self.many = backbone, temperature, many
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(pre.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(pre.std).view(1, -1, 1, 1))
        self.head: nn.Linear | None = None
        if head is not None:
            weight, bias = head
            self.head = nn.Linear(weight.shape[1], len(weight))
            self.head.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.backbone((images - self.mean) / self.std)
        if self.head is None:
            return features
        logits = self.head(features) / self.temperature
        return features, torch.sigmoid(logits) if self.many else torch.softmax(logits, dim=1)


def write_onnx(weights: str | Path, out: Path) -> Path:
    """Write ``model.onnx`` and what an image must go through before it, ``preprocessing.json``.

    Raises:
        ArtifactError: no such weights, or the packages that write ONNX are not there.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            "writing ONNX takes packages that are not installed", 'pip install "ssl-mednet[onnx]"'
        ) from error
    about: dict[str, Any] = {}
    head, temperature = None, 1.0
    if is_model(weights):
        model = load_model(weights)
        backbone, head, temperature = model.backbone, (model.weight, model.bias), float(model.about["temperature"])
        about = {k: model.about[k] for k in ("classes", "multilabel", "thresholds")}
    else:
        backbone = load_backbone(weights)
    pre = backbone.preprocessing
    assert isinstance(pre, Preprocessing)
    channels, outputs = CHANNEL_COUNT[pre.channels], ["features"] + (["probabilities"] if head else [])
    graph = _Graph(backbone, head, temperature, bool(about.get("multilabel"))).eval()
    about = {
        "input": {"name": "images", "shape": ["batch", channels, pre.image_size, pre.image_size], "range": [0.0, 1.0]},
        "outputs": outputs,
        "resize": "the whole image to a square, bilinear, antialiased",
        "normalisation": {"where": "inside the graph", "mean": list(pre.mean), "std": list(pre.std)},
        **about,
    }
    with whole_folder(out) as folder:
        _write_graph(graph, torch.rand(2, channels, pre.image_size, pre.image_size), outputs, folder / GRAPH)
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        (folder / CARD).write_text(_card(out.name, pre, outputs))
    return out


def _write_graph(graph: nn.Module, example: Tensor, outputs: list[str], path: Path) -> None:
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own making
            torch.onnx.export(
                graph,
                (example,),
                path,
                input_names=["images"],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _card(name: str, pre: Preprocessing, outputs: list[str]) -> str:
    return f"""# {name}

```python
import onnxruntime
session = onnxruntime.InferenceSession("{GRAPH}")
{", ".join(outputs)} = session.run(None, {{"images": images}})  # float32 [B, {CHANNEL_COUNT[pre.channels]}, \
{pre.image_size}, {pre.image_size}] in [0, 1]
```

`{ABOUT}` says how an image becomes that; the normalisation is inside the graph.

Not a medical device; not for diagnosis.
"""
