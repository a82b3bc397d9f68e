"""Weights that a training starts from instead of random ones: our own, or those of ImageNet."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ssl_mednet.backbones.artifact import find_artifact, read_config, read_state
from ssl_mednet.backbones.factory import backbone_args, create_backbone
from ssl_mednet.backbones.gray import one_channel, three_channels
from ssl_mednet.backbones.imagenet import imagenet_architecture, imagenet_net
from ssl_mednet.errors import ArtifactError, RecipeError
from ssl_mednet.imaging.modality import CHANNEL_COUNT

IMAGENET = "imagenet"
_IMAGENET_LICENCES = {"custom:ImageNet, non-commercial research": 1_281_167}
INHERITED, _ALLOWED = "inherited", "contamination_allowed"  # keys of what is said of held-out images
NOT_STATED = "not stated"  # how artifacts name the licence of images that came without one


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Args:
        state: tensors for a net of these arguments, by name; strict loading takes them.
        mean, std: of the images it knows, one number a channel; images must go on to come in that way.
        weights, architecture, sha256: as the user named them, timm's name, and of their file.
        licences: images under each, of all that the weights were trained on; ``""`` where none is known.
        held_out: what is known of test images among those; see :func:`inherited_held_out`.
    """

    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
    architecture: str
    sha256: str
    licences: dict[str, int]
    held_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file(self) -> str:
        """sha256 of the artifact; empty for ImageNet's, whose name says it all."""
        return "" if _from_imagenet(self.weights) else self.sha256

    @property
    def record(self) -> dict[str, Any]:
        """What a child says of its parent."""
        said = {licence or NOT_STATED: count for licence, count in self.licences.items()}
        return {
            "weights": self.weights if _from_imagenet(self.weights) else Path(self.weights).name,
            "architecture": self.architecture,
            "sha256": self.sha256,
            "licences": said,
        }


def averaged(net: nn.Module, start: Start, share: float) -> nn.Module:
    """A copy of a trained net whose tensors are averages of what it started from and what it became.

    Args:
        share: of the start, 0 to 1; statistics of batch normalisation are averaged alike, counts are those of the net.

    Source: Wortsman et al. 2022, *Robust fine-tuning of zero-shot models*, arXiv 2109.01903, equation 1.
    """
    net = copy.deepcopy(net).cpu()
    first = start.state
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_((1 - share) * tensor + share * first[name].to(tensor.dtype))
    return net


def start_net(
    weights: str, channels: str, image_size: int, name: str = "", extra: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Architecture, and arguments that make it, of a net that can start from these weights.

    Args:
        weights: a run, an artifact folder or a name of ours; ``imagenet:NAME``, or ``imagenet`` for that of ``name``.
        channels: ``"gray"`` or ``"color"``.
        image_size: side of the images to come, pixels.
        name: the architecture that is wanted; empty for that of the weights.
        extra: more arguments for timm, which win.

    Raises:
        ArtifactError: no such weights.
        RecipeError: they are of another architecture, or of other channels.
    """
    if _from_imagenet(weights):
        given, at, size = (weights.partition(":")[2] or name).partition("@")
        if at:
            hint = f"backbone.weights={IMAGENET}:{given} data.image_size={size}"
            raise RecipeError(f"backbone.weights {weights!r}: the size of the images is data.image_size", hint)
        own = imagenet_architecture(given)
        if not own:
            raise RecipeError(f"backbone.weights {weights!r}: of which net?", "imagenet:NAME")
        args = backbone_args(own, CHANNEL_COUNT[channels], image_size, stem="standard", extra=extra)
    else:
        config = read_config(_artifact(weights))
        own, made_for = config["architecture"], config["ssl_mednet"]["preprocessing"]["channels"]
        if made_for != channels:
            raise RecipeError(
                f"backbone.weights {weights!r} take {made_for} images, data.channels is {channels!r}",
                f"data.channels={made_for} data.convert=true",
            )
        args = dict(config["model_args"])
        if "img_size" in args:
            args["img_size"] = image_size
        args |= extra or {}
    if name and imagenet_architecture(name) != own:
        raise RecipeError(
            f"backbone.weights {weights!r} are a {own}, backbone.name is {name!r}", f"backbone.name={own}"
        )
    return own, args


def used_size(weights: str) -> int:
    """Side in pixels at which these weights see images; 0 for ImageNet's, which say none.

    Raises:
        ArtifactError: no such weights.
    """
    return 0 if _from_imagenet(weights) else int(_said(weights)["preprocessing"]["image_size"])


def load_start(weights: str, channels: str, architecture: str, model_args: dict[str, Any]) -> Start:
    """The tensors of these weights for the net that :func:`start_net` described.

    Position embeddings are resampled where the images have another size. ImageNet's kernels take gray images by sums
    over the channels; see :func:`~ssl_mednet.backbones.gray.one_channel`.

    Raises:
        ArtifactError: no such weights, damaged ones, such as do not fit the net, or cannot take gray images.
    """
    held_out: list[dict[str, Any]] = []
    if _from_imagenet(weights):
        net, _ = imagenet_net(weights, weights.partition(":")[2] or architecture)
        state, mean, std = three_channels(net) if channels == "color" else one_channel(net, weights)
        digest, licences = hashlib.sha256(save(state)).hexdigest(), dict(_IMAGENET_LICENCES)
    else:
        folder = _artifact(weights)
        config = read_config(folder)
        ours = config["ssl_mednet"]
        state = {k: v.float() if v.is_floating_point() else v for k, v in read_state(folder, config).items()}
        mean, std = tuple(ours["preprocessing"]["mean"]), tuple(ours["preprocessing"]["std"])
        digest, licences = ours.get("sha256", ""), inherited_licences(ours)
        held_out = inherited_held_out(ours)
    model = create_backbone(architecture, model_args)
    try:
        if isinstance(model, VisionTransformer):
            state = checkpoint_filter_fn(state, model)
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{weights}: do not fit {architecture} with {model_args}: {why}") from error
    return Start(state, mean, std, weights, architecture, digest, licences, held_out)


def inherited_licences(ours: dict[str, Any]) -> dict[str, int]:
    """Licences of all images behind the weights of this ``ssl_mednet`` section, with counts; ``""`` for none stated.

    A licence that the weights themselves were published under stands for all of them where it is none of theirs: it
    binds whoever goes on from the weights. Images that are said to have none keep none, as it settles nothing for them.
    """
    data, counts = ours.get("data", {}), Counter[str]()
    of_parent, own = ours.get("parent", {}).get("licences", {}), ours.get("licence", "")
    for said in (data.get("licences") or {own or NOT_STATED: int(data.get("images", 1))}, of_parent):
        for licence, count in said.items():
            counts["" if licence == NOT_STATED else licence] += count
    if own and own not in counts:
        counts[own] = counts.total()
    return dict(counts)


def inherited_held_out(ours: dict[str, Any]) -> list[dict[str, Any]]:
    """What is known of the test images of suites among all images behind the weights of this ``ssl_mednet`` section.

    One entry a training whose images were looked through, as :func:`ssl_mednet.auditing.audit.refuse` describes it.
    """
    said = dict(ours.get("data", {}).get("held_out") or {})
    before = list(said.pop(INHERITED, []))
    return [said, *before] if "suite" in said else before


def with_inherited(own: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """What a child says of test images: of its own images, and under ``inherited`` of those its parents have seen.

    Contamination that was allowed to a parent is in the child.
    """
    if not before:
        return own
    allowed = any(said.get(_ALLOWED) for said in (own, *before))
    return own | {INHERITED: before, _ALLOWED: allowed}


def _said(weights: str) -> dict[str, Any]:
    said: dict[str, Any] = read_config(_artifact(weights))["ssl_mednet"]
    return said


def _artifact(weights: str) -> Path:
    name = weights.rpartition(":")[2]
    known = timm.is_model(name.partition(".")[0])
    return find_artifact(weights, f"{IMAGENET}:{name if known else 'NAME'}")


def _from_imagenet(weights: str) -> bool:
    return weights.partition(":")[0] == IMAGENET
