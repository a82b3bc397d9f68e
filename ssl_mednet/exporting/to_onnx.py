"""Backbones and classifiers as ONNX graphs that hold their own normalisation."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_mednet.backbones.artifact import CARD, Preprocessing, sha256
from ssl_mednet.backbones.card import card
from ssl_mednet.classifying.model import Model
from ssl_mednet.errors import ArtifactError
from ssl_mednet.evaluation.suite import Suite
from ssl_mednet.exporting.room import ABOUT, GRAPH
from ssl_mednet.imaging.image import DEFAULT_CT_WINDOW
from ssl_mednet.imaging.modality import CHANNEL_COUNT


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


def write_onnx(source: Model | nn.Module, config: dict[str, Any], out: Path) -> None:
    """Write ``model.onnx``, what an image must go through before it, ``preprocessing.json``, and a card.

    Args:
        source: a classifier, or a backbone with its ``preprocessing``.
        config: what the card says of it; see :func:`classifier_config`.
        out: a folder that is not there yet.

    Raises:
        ArtifactError: the packages that write ONNX are not there.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            "writing ONNX takes packages that are not installed", 'pip install "ssl-mednet[onnx]"'
        ) from error
    model = source if isinstance(source, Model) else None
    backbone = source if isinstance(source, nn.Module) else source.backbone
    head = None if model is None else (model.weight, model.bias)
    said: dict[str, Any] = {} if model is None else model.about
    pre = backbone.preprocessing
    assert isinstance(pre, Preprocessing)
    channels, outputs = CHANNEL_COUNT[pre.channels], ["features"] + (["probabilities"] if head else [])
    graph = _Graph(backbone, head, float(said.get("temperature", 1.0)), bool(said.get("multilabel"))).eval()
    store_size = said.get("store_size") or max(Suite.model_fields["store_size"].default, pre.image_size)  # as evaluate
    about: dict[str, Any] = {
        "input": {"name": "images", "shape": ["batch", channels, pre.image_size, pre.image_size], "range": [0.0, 1.0]},
        "outputs": outputs,
        **images_in_words(store_size, pre.channels, bool(said.get("convert"))),
        "normalisation": {"where": "inside the graph", "mean": list(pre.mean), "std": list(pre.std)},
        **{key: said[key] for key in ("classes", "multilabel", "thresholds") if key in said},
    }
    out.mkdir()
    _write_graph(graph, torch.rand(2, channels, pre.image_size, pre.image_size), outputs, out / GRAPH)
    (out / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    ours = config["ssl_mednet"]
    rows = [("made from", f"weights with the sha256 `{ours.get('sha256', '')}`")]
    config = config | {"ssl_mednet": ours | {"sha256": sha256(out / GRAPH)}}
    lead = "" if model is None else _lead(model)
    (out / CARD).write_text(card(config, _usage(pre, outputs, store_size), "onnxruntime", lead, rows))


_CHANNELS = {
    "gray": "one; opacity is dropped, palettes and CMYK become RGB; RGB whose channels differ by at most 2 of 255 in "
    "every pixel is gray: its green channel",
    "color": "three, in the order red, green, blue; opacity is dropped, palettes and CMYK become RGB",
}
_CONVERTED = {
    "gray": "; other RGB becomes its luma, 0.299 R + 0.587 G + 0.114 B, on the values as stored, rounded to whole "
    "numbers",
    "color": "; a gray image becomes three equal channels",
}
_REFUSED = {"gray": "; other RGB is refused", "color": "; an image with one channel is refused"}


def images_in_words(store_size: int, channels: str, convert: bool) -> dict[str, Any]:
    """How a file becomes the input of a graph, in the order in which it happens to it here.

    Args:
        store_size: longest side to which images are shrunk first, pixels.
        channels: of the backbone, ``"gray"`` or ``"color"``.
        convert: whether images of the other kind are turned into this one; else they are refused.
    """
    low, high = DEFAULT_CT_WINDOW
    return {
        "channels": _CHANNELS[channels] + (_CONVERTED if convert else _REFUSED)[channels],
        "shrink": {
            "longest_side": store_size,
            "how": "the longest side to at most this many pixels, the other in proportion; never enlarged; Pillow's "
            "BILINEAR (antialiased), on the values as stored, rounded to whole numbers",
        },
        "intensity": {
            "8 bit": "value / 255",
            "16 bit, unsigned (PNG, TIFF, npy)": "value / 4095 where no value of the picture (of all in an npy) is "
            "above 4095, / 255 where none is above 255, else / 65535; pages of a TIFF that has several: value / 65535",
            "other numbers (TIFF, npy)": "smallest and largest value of the picture become 0 and 1",
            "CT in Hounsfield units (DICOM)": "(HU - low) / (high - low), clipped to 0 and 1; low and high are the "
            f"ends of the first window in the file, where it states none {low:g} and {high:g} HU",
            "other gray DICOM": "through the modality LUT, then the first VOI LUT or window of the file, whose ends "
            "become 0 and 1; without either the smallest and largest value over all frames, and of at most 8 bits "
            "stored without a rescale value / (2^bits - 1); MONOCHROME1 is inverted; all before it is shrunk",
            "volumes (NIfTI, NRRD, MetaImage)": "percentiles 0.5 and 99.5 of the volume become 0 and 1, clipped; "
            f"where they are said to be CT, or a classifier knows CT alone, and hold air: {low:g} and {high:g} HU",
        },
        "resize": "then the whole image to a square, not in proportion, bilinear, antialiased, on values in [0, 1]",
    }


def classifier_config(config: dict[str, Any], model: Model) -> dict[str, Any]:
    """The config of a classifier's backbone, made to say what the card says of the classifier.

    Its licence follows from the labelled images and from those behind the weights.
    """
    about = model.about
    of_backbone = ("licence", "figures", "recipe", "steps", "chosen", "without_head_for")
    ours = {k: v for k, v in config["ssl_mednet"].items() if k not in of_backbone}
    how, crossed = about["protocol"], about["measured_on"] != "test images"
    how += f", {about['measured_on']}" if crossed else ""
    rule = " at 0.5" if about["multilabel"] else " at the most probable class"
    figures = [
        {"task": about["data"]["source"], "protocol": how, "metric": said, "n": about["n"], **about["metrics"][name]}
        for name, said in (("auroc", "auroc"), ("balanced_accuracy", f"balanced_accuracy{rule}"))
        if name in about["metrics"]
    ]
    ours |= {"name": model.folder.resolve().name, "data": about["data"], "parent": about["weights"], "figures": figures}
    ours["classifier"] = {"output": _output(config["num_features"], about), "counted": "images" if crossed else ""}
    return config | {"ssl_mednet": ours}


def _output(features: int, about: dict[str, Any]) -> str:
    many = "each on its own" if about["multilabel"] else "that sum to 1"
    scaled = "not calibrated" if about["temperature"] == 1 else f"calibrated at temperature {about['temperature']:.3g}"
    limits = f"; the thresholds of `predict` are in `{ABOUT}`" if about["thresholds"] else ""
    return (
        f"`features` ({features}) and `probabilities` of {len(about['classes'])} classes, {many}, {scaled}; unlike "
        f"`ssl-mednet predict` the graph does not flag images unlike those of the training{limits}"
    )


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


def _lead(model: Model) -> str:
    kinds = ", ".join(model.about["modalities"])
    return f"Tells {', '.join(model.classes)} apart in {model.about['channels']} images ({kinds}), backbone and head."


def _usage(pre: Preprocessing, outputs: list[str], store_size: int) -> str:
    side = f"{pre.image_size} x {pre.image_size}"
    shape = f"float32 [B, {CHANNEL_COUNT[pre.channels]}, {pre.image_size}, {pre.image_size}] in [0, 1]"
    return f"""```python
import onnxruntime

session = onnxruntime.InferenceSession("{GRAPH}")
{", ".join(outputs)} = session.run(None, {{"images": images}}){"[0]" if len(outputs) == 1 else ""}  # {shape}
```

An image is shrunk to a longest side of {store_size} pixels, its values go to [0, 1] by their depth, window or
Hounsfield units, and the whole is resized to {side}: `{ABOUT}` says how. The normalisation is inside the graph."""
