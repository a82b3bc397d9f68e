"""Weights that a training starts from instead of random ones: our own, or those of ImageNet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ssl_mednet.backbones.artifact import find_artifact, read_config, read_state
from ssl_mednet.backbones.factory import backbone_args, create_backbone
from ssl_mednet.backbones.imagenet import imagenet_architecture, imagenet_net
from ssl_mednet.errors import ArtifactError, RecipeError
from ssl_mednet.imaging.modality import CHANNEL_COUNT

IMAGENET = "imagenet"
_IMAGENET_LICENCES = {"custom:ImageNet, non-commercial research": 1_281_167}
NOT_STATED = "not stated"  # how artifacts name the licence of images that came without one


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Args:
        state: tensors for a net of these arguments, by name; strict loading takes them.
        mean, std: of the images it knows, one number a channel; images must go on to come in that way.
        weights, architecture, sha256: as the user named them, timm's name, and of their file.
        licences: images under each, of all that the weights were trained on; ``""`` where none is known.
    """

    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
    architecture: str
    sha256: str
    licences: dict[str, int]

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
        own = imagenet_architecture(weights.partition(":")[2] or name)
        if not own:
            raise RecipeError(f"backbone.weights {weights!r}: of which net?", "imagenet:NAME")
        args = backbone_args(own, CHANNEL_COUNT[channels], image_size, stem="standard", extra=extra)
    else:
        config = read_config(find_artifact(weights))
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
    if _from_imagenet(weights):
        return 0
    return int(read_config(find_artifact(weights))["ssl_mednet"]["preprocessing"]["image_size"])


def load_start(weights: str, channels: str, architecture: str, model_args: dict[str, Any]) -> Start:
    """The tensors of these weights for the net that :func:`start_net` described.

    Position embeddings are resampled where the images have another size. ImageNet's kernels take gray images by sums
    over the channels, weighted so that a gray image gives what it gave as three equal channels, each normalised with
    its own statistics. What these differ by goes into the bias of the stem, or into the batch norm behind it; beside
    the border of the image, which is padded with zeros, that is exact.

    Raises:
        ArtifactError: no such weights, damaged ones, or such as do not fit the net.
    """
    if _from_imagenet(weights):
        net, _ = imagenet_net(weights, weights.partition(":")[2] or architecture)
        state, mean, std = _three_channels(net) if channels == "color" else _one_channel(net)
        digest, licences = hashlib.sha256(save(state)).hexdigest(), dict(_IMAGENET_LICENCES)
    else:
        folder = find_artifact(weights)
        config = read_config(folder)
        ours = config["ssl_mednet"]
        state = {k: v.float() if v.is_floating_point() else v for k, v in read_state(folder, config).items()}
        mean, std = tuple(ours["preprocessing"]["mean"]), tuple(ours["preprocessing"]["std"])
        digest, licences = ours.get("sha256", ""), inherited_licences(ours)
    model = create_backbone(architecture, model_args)
    try:
        if isinstance(model, VisionTransformer):
            state = checkpoint_filter_fn(state, model)
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{weights}: do not fit {architecture} with {model_args}: {why}") from error
    return Start(state, mean, std, weights, architecture, digest, licences)


def inherited_licences(ours: dict[str, Any]) -> dict[str, int]:
    """Licences of all images behind the weights of this ``ssl_mednet`` section, with counts; ``""`` for none stated.

    A licence that the weights themselves were published under stands for images that came without one.
    """
    data, counts = ours.get("data", {}), Counter[str]()
    of_parent = ours.get("parent", {}).get("licences", {})
    for said in (data.get("licences") or {NOT_STATED: int(data.get("images", 1))}, of_parent):
        for licence, count in said.items():
            counts[ours.get("licence", "") if licence == NOT_STATED else licence] += count
    return dict(counts)


def _from_imagenet(weights: str) -> bool:
    return weights.partition(":")[0] == IMAGENET


def _three_channels(net: nn.Module) -> tuple[dict[str, Tensor], tuple[float, ...], tuple[float, ...]]:
    mean, std = _statistics(net)
    return net.state_dict(), tuple(mean.tolist()), tuple(std.tolist())


def _one_channel(net: nn.Module) -> tuple[dict[str, Tensor], tuple[float, ...], tuple[float, ...]]:
    """State for gray images, normalised by the means of the three channels' statistics."""
    (mean, std), state = _statistics(net), dict(net.state_dict())
    level, spread = mean.mean(), std.mean()
    modules = [(name, m) for name, m in net.named_modules() if not any(m.children())]
    for stem in _stems(net):
        kernels = state[f"{stem}.weight"] / std.view(1, 3, 1, 1)  # [O, 3, H, W]
        shift = (kernels.sum(dim=(2, 3)) * (level - mean)).sum(dim=1)  # [O]
        state[f"{stem}.weight"] = (kernels * spread).sum(dim=1, keepdim=True)
        place = next(i for i, (name, _) in enumerate(modules) if name == stem)
        behind, norm = modules[place + 1]
        if f"{stem}.bias" in state:
            state[f"{stem}.bias"] = state[f"{stem}.bias"] + shift
        elif isinstance(norm, nn.BatchNorm2d):
            state[f"{behind}.running_mean"] = state[f"{behind}.running_mean"] - shift
    return state, (round(float(level), 6),), (round(float(spread), 6),)


def _statistics(net: nn.Module) -> tuple[Tensor, Tensor]:
    config: Any = net.pretrained_cfg
    return torch.tensor(config["mean"]), torch.tensor(config["std"])


def _stems(net: nn.Module) -> Sequence[str]:
    """Names of the layers that see the image."""
    config: Any = net.pretrained_cfg
    stem = config["first_conv"]
    return [stem] if isinstance(stem, str) else list(stem)
