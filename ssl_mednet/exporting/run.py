"""The verb: weights by any name in, a folder for another program out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ssl_mednet.backbones.artifact import find_artifact, load_backbone, read_config, read_state, write_artifact
from ssl_mednet.backbones.card import HERE, HUB
from ssl_mednet.backbones.start import inherited_licences
from ssl_mednet.backbones.zoo import MAX_BYTES
from ssl_mednet.catalog.licences import roll_up
from ssl_mednet.classifying.model import BACKBONE, Model, is_model, load_model
from ssl_mednet.errors import RecipeError, UserError, did_you_mean
from ssl_mednet.exporting.room import check_room, filled
from ssl_mednet.exporting.to_onnx import classifier_config, write_onnx
from ssl_mednet.ingesting.names import told_recipe
from ssl_mednet.progress import warn

Format = Literal["timm", "onnx", "hf", "zoo"]
_HALF = torch.finfo(torch.float16)
_FIGURES = ("linear", "knn", "few_shot_linear", "finetune", "linear_then_finetune")


def export(
    weights: str | Path,
    format: str,
    out: str | Path,
    licence: str = "",
    results: Sequence[str | Path] = (),
    limits: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write weights for another program.

    - ``timm``: ``timm.create_model("local-dir:OUT", pretrained=True)``;
    - ``hf``: the same with a card that shows how it is loaded from a model hub, ready to upload;
    - ``onnx``: a graph that takes images in [0, 1] in batches of any size; of a classifier it gives probabilities too,
      of which the other formats take the backbone alone;
    - ``zoo``: matrices and kernels in float16, for weights that are known by the name of the folder (put it into
      ``ssl_mednet/zoo`` or a folder in ``$SSL_MEDNET_ZOO``).

    Args:
        weights: a run, an artifact folder, a name of ours, the folder of a classifier.
        licence: of the weights, an SPDX identifier; by default what the licences of the data lead to.
        results: ``results.json`` files (or their folders) whose figures on these weights the card shows.
        limits: sentences for the card.
        overwrite: replace an export that is there; nothing else is ever replaced.

    Returns:
        The folder.

    Raises:
        UserError: anything a user can mend.
    """
    if format not in get_args(Format):
        hint = did_you_mean(format, get_args(Format)) or ", ".join(get_args(Format))
        raise RecipeError(f"--format {format}: no such format", hint)
    model = load_model(weights) if is_model(weights) else None
    artifact = find_artifact(weights if model is None else model.folder / BACKBONE)
    folder = check_room(out, (weights, artifact), overwrite)
    config = read_config(artifact)
    state = read_state(artifact, config)
    if model is not None:
        config = classifier_config(config, model) if format == "onnx" else _without_head(config, model)
    config = _described(config, folder.name if format == "zoo" else "", licence, results, limits)
    if format == "zoo":
        state = {name: halved(tensor) for name, tensor in state.items()}
        size = sum(t.numel() * t.element_size() for t in state.values())
        if size > MAX_BYTES:
            raise UserError(f"{weights}: {size / 1024**2:.0f} MB in float16, an entry of the zoo has at most 16 MB")
    with filled(folder) as new:
        if format == "onnx":
            write_onnx(load_backbone(artifact) if model is None else model, config, new)
        else:
            write_artifact(state, config, new, {"zoo": folder.name, "hf": HUB}.get(format, HERE))
    if model is not None and format != "onnx":
        warn(f"{out}: holds the backbone of {weights} alone, not its head; --format onnx takes both")
    return Path(out).expanduser()


def halved(tensor: Tensor) -> Tensor:
    """A matrix or kernel in float16, where its values fit; vectors (norms, biases, statistics) and counts as they are.

    They are a hundredth of the bytes, and the variances among them do not fit into float16.
    """
    if tensor.ndim < 2 or not tensor.is_floating_point() or float(tensor.abs().max()) > _HALF.max:
        return tensor
    return tensor.half()


def _without_head(config: dict[str, Any], model: Model) -> dict[str, Any]:
    return config | {"ssl_mednet": config["ssl_mednet"] | {"without_head_for": model.classes}}


def _described(
    config: dict[str, Any], name: str, licence: str, results: Sequence[str | Path], limits: Sequence[str]
) -> dict[str, Any]:
    """The config with what a card says more: licence, figures, limits; without paths of this machine."""
    ours = dict(config["ssl_mednet"])
    found = licence or ours.get("licence") or roll_up(inherited_licences(ours)).publish
    ours |= {"licence": found} if found else {}
    ours |= {"name": name} if name else {}
    ours |= {"limits": list(limits)} if limits else {}
    figures = [figure for path in results for figure in _figures(Path(path).expanduser(), ours.get("sha256", ""))]
    ours |= {"figures": figures} if figures else {}
    if "recipe" in ours:
        ours["recipe"] = told_recipe(ours["recipe"])
    return config | {"ssl_mednet": ours}


def _figures(path: Path, digest: str) -> list[dict[str, Any]]:
    """AUROC with interval, null where not defined, of each row on all labels that these weights were measured with."""
    path = path / "results.json" if path.is_dir() else path
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    own = [r for r in rows if r["weights_sha256"] == digest and r["labels"] == 1.0 and "auroc" in r["metrics"]]
    if not own:
        raise UserError(f"{path}: has no row measured with these weights", "evaluate them, then export")
    ordered = sorted(own, key=lambda r: _FIGURES.index(r["protocol"]) if r["protocol"] in _FIGURES else len(_FIGURES))
    return [
        {"task": r["task"], "protocol": r["protocol"], "metric": "auroc", "n": r["n"], **r["metrics"]["auroc"]}
        for r in ordered
    ]
