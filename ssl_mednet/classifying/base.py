"""The weights that a classifier is built on: as plain timm nets, so that they can be kept as artifacts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_mednet.backbones.artifact import (
    Preprocessing,
    find_artifact,
    load_backbone,
    read_config,
    read_state,
    save_backbone,
    write_artifact,
)
from ssl_mednet.backbones.card import FINETUNED
from ssl_mednet.backbones.factory import create_backbone
from ssl_mednet.backbones.start import NOT_STATED, inherited_held_out, inherited_licences, load_start, start_net
from ssl_mednet.errors import ArtifactError
from ssl_mednet.evaluation.weights import DEFAULT_SIZE, Weights, state_hash

_IMAGENET = re.compile(r"(?P<name>imagenet:[^@]+)(?:@(?P<size>\d+))?")


@dataclass(frozen=True)
class Base:
    """Weights to build on.

    Args:
        artifact: their folder; None for those of ImageNet.
        licences: images under each licence that they were trained on, ``""`` where none is known.
        held_out: what is known of test images of suites among those.
    """

    weights: Weights
    licences: dict[str, int]
    artifact: Path | None
    held_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def record(self) -> dict[str, Any]:
        """What a model says of the weights it was built on; no path of this machine."""
        name = self.weights.name
        return {
            "weights": Path(name).name if self.artifact else name,
            "architecture": self.weights.architecture,
            "sha256": self.weights.published or self.weights.digest,
            "licences": {licence or NOT_STATED: count for licence, count in self.licences.items()},
        }


def open_base(spec: str, channels: str, image_size: int | None) -> Base:
    """The weights that a user names: a run, an artifact, a name of ours, or ``imagenet:NAME[@SIZE]``.

    Args:
        channels: ``"gray"``, ``"color"`` or ``"auto"``: those of the weights, gray for ImageNet.
        image_size: of ImageNet's, pixels, where their name does not say it.

    Raises:
        ArtifactError: no such weights, or such as were not trained or see other channels.
    """
    if match := _IMAGENET.fullmatch(spec):
        kind = "gray" if channels == "auto" else channels
        size = int(match["size"] or image_size or DEFAULT_SIZE)
        architecture, args = start_net(match["name"], kind, size)
        start = load_start(match["name"], kind, architecture, args)
        model = create_backbone(architecture, args)
        model.load_state_dict(start.state)
        pre = Preprocessing(kind, size, start.mean, start.std)
        weights = Weights(spec, model.eval(), pre, state_hash(model), architecture, args, start.sha256)
        return Base(weights, start.licences, None)
    if spec.partition(":")[0] in ("random", "baseline", "imagenet") and ":" in spec:
        raise ArtifactError(f"{spec}: a classifier is built on trained weights", "a run, a name, imagenet:NAME")
    folder = find_artifact(spec, "imagenet:NAME")
    config, model = read_config(folder), load_backbone(spec)
    ours, preprocessing = config["ssl_mednet"], model.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    if channels not in ("auto", preprocessing.channels):
        raise ArtifactError(f"{spec}: made for {preprocessing.channels} images, not {channels}")
    built = config["architecture"], config["model_args"]
    weights = Weights(spec, model, preprocessing, state_hash(model), *built, ours.get("sha256", ""))
    return Base(weights, inherited_licences(ours), folder, inherited_held_out(ours))


def keep_backbone(base: Base, out: Path, trained: Any, data: dict[str, Any], name: str) -> None:
    """Write the backbone of a classifier: the artifact as it was where it stayed frozen, else a new one.

    Args:
        trained: the net after fine-tuning; None where it stayed frozen.
        data: what the card says of the images it was trained on.
    """
    if trained is None and base.artifact is not None:
        config = read_config(base.artifact)
        write_artifact(read_state(base.artifact, config), config, out)
        return
    provenance = {"name": name, "parent": base.record}
    if trained is not None:
        provenance |= {"recipe": {"name": name, "method": {"name": FINETUNED}}, "data": data}
    weights = base.weights
    save_backbone(
        weights.model if trained is None else trained,
        out,
        weights.architecture,
        weights.model_args,
        weights.preprocessing,
        provenance,
    )


def all_licences(base: Base, own: dict[str, int]) -> Counter[str]:
    """Licences of the labelled images and of those behind the weights."""
    return Counter(own) + Counter(base.licences)
