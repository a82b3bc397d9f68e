"""Any timm backbone for one or three channels and any image size, described by arguments that plain timm takes too."""

from __future__ import annotations

import functools
import json
import logging
from contextlib import nullcontext
from importlib import metadata
from typing import Any, Literal

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ssl_mednet.errors import RecipeError, did_you_mean

SMALL_IMAGE = 96  # below this many pixels a CNN gets the small-image stem
Kind = Literal["cnn", "vit"]
Stem = Literal["auto", "standard", "small"]


def create_backbone(architecture: str, model_args: dict[str, Any], meta: bool = False) -> nn.Module:
    """A timm model without classifier: images ``[B, C, H, W]`` in, features ``[B, num_features]`` out.

    Args:
        architecture: timm name.
        model_args: keyword arguments of ``timm.create_model``, as :func:`backbone_args` makes them.
        meta: build it without memory, to see that it can be built.

    Raises:
        RecipeError: timm does not know the name, or refuses the arguments.
    """
    _check_name(architecture)
    try:
        with torch.device("meta") if meta else nullcontext():
            return timm.create_model(architecture, pretrained=False, num_classes=0, **model_args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise RecipeError(f"backbone.name {architecture!r} cannot be built with {model_args}: {error}") from error


def backbone_args(
    architecture: str,
    channels: int,
    image_size: int,
    patch_size: int | None = None,
    stem: Stem = "auto",
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments that make a timm model fit the images; plain values, so they travel in the artifact's config.

    A ViT is built for the image size and pools the mean of its normalised patch tokens. A CNN for images below
    ``SMALL_IMAGE`` pixels gets the small-image stem: where timm's ResNets start with a 7 x 7 convolution and a max
    pool, three 3 x 3 convolutions and a learned stride (He et al. 2019, arXiv 1812.01187, the "C" stem; the pool
    replaced as in ResNet-S); where ConvNeXt starts with 4 x 4 patches, 2 x 2 ones. Other families start with a 3 x 3
    convolution anyway and are left alone. Only what timm itself takes as an argument is changed, so the same weights
    give the same features in plain timm.

    Args:
        channels: 1 or 3.
        image_size: side of the images, pixels.
        patch_size: of a ViT; timm's own where it is None.
        stem: ``"small"`` or ``"standard"`` overrides the choice by size.
        extra: more arguments for timm, which win.

    Raises:
        RecipeError: unknown architecture; a patch size for a net without patches, or one that does not divide the size.
    """
    args: dict[str, Any] = {"in_chans": channels}
    plain = _meta(architecture)
    if isinstance(plain, VisionTransformer):
        patch = patch_size or plain.patch_embed.patch_size[0]
        if image_size % patch:
            raise RecipeError(f"backbone.patch_size {patch} does not divide data.image_size {image_size}")
        args |= {"img_size": image_size, "patch_size": patch}
        if plain.global_pool == "token":
            args |= {"global_pool": "avg", "fc_norm": False}
    elif patch_size is not None:
        raise RecipeError(f"backbone.patch_size is for ViTs; {architecture!r} has no patches", "leave it out")
    elif stem == "small" or (stem == "auto" and image_size < SMALL_IMAGE):
        args |= _small_stem(plain)
    return args | (extra or {})


def backbone_kind(architecture: str) -> Kind:
    """``"vit"`` for a plain timm VisionTransformer, which can be masked; ``"cnn"`` for every other net, hybrids too.

    Raises:
        RecipeError: timm does not know the name.
    """
    net = _meta(architecture)
    return "vit" if isinstance(net, VisionTransformer) and isinstance(net.patch_embed, PatchEmbed) else "cnn"


def can_checkpoint(net: nn.Module) -> bool:
    """Whether timm can train this net without keeping the activations inside its blocks."""
    try:
        net.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # timm asserts where a family has no such thing
        return False
    return True


@torch.no_grad()
def takes(net: nn.Module, channels: int, image_size: int) -> str:
    """Why a net cannot take square images of this size; empty where it can.

    On the meta device nothing is computed, only shapes are.
    """
    device = next(net.parameters()).device
    was = net.training
    try:
        with device:
            net.eval()(torch.zeros(2, channels, image_size, image_size))
    except NotImplementedError:  # an operation that knows no meta device: the training will tell
        return ""
    except (AssertionError, RuntimeError, ValueError, IndexError, TypeError) as error:
        return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
    finally:
        net.train(was)
    return ""


def sized(architecture: str, image_size: int) -> dict[str, Any]:
    """The argument that builds a net for images of this size, where its family has one and then takes them."""
    try:
        args = {"img_size": image_size}
        return args if not takes(create_backbone(architecture, args, meta=True), 3, image_size) else {}
    except RecipeError:
        return {}


def check_size(architecture: str, model_args: dict[str, Any], image_size: int, fixed: bool = False) -> None:
    """Raise :class:`RecipeError` where the net of these arguments cannot take images of this size.

    Args:
        fixed: it cannot be built for another size, as its weights are given.
    """
    reason, native = _refusal(architecture, json.dumps(model_args, sort_keys=True, default=str), image_size)
    if not reason:
        return
    ways = [f"data.image_size={native}"]
    if not fixed and "img_size" not in model_args and sized(architecture, image_size):
        ways.insert(0, f"backbone.args.img_size={image_size}")
    raise RecipeError(
        f"backbone.name {architecture!r} cannot take images of {image_size} pixels: {reason}", " or ".join(ways)
    )


@functools.cache
def _refusal(architecture: str, said: str, image_size: int) -> tuple[str, int]:
    """Why not, and the size that its weights were made for. ``said`` are the arguments, as JSON."""
    args = json.loads(said)
    net = create_backbone(architecture, args, meta=True)
    config: Any = getattr(net, "pretrained_cfg", None) or {}  # that of a plug-in may have none
    native = config.get("input_size") or (3, image_size, image_size)
    return takes(net, args.get("in_chans", 3), image_size), int(native[-1])


def _small_stem(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, ResNet):
        deep = isinstance(model.conv1, nn.Sequential)
        return {"replace_stem_pool": True} | ({} if deep else {"stem_type": "deep", "stem_width": 32})
    if isinstance(model, ConvNeXt):
        return {"patch_size": 2}
    return {}


def _meta(architecture: str) -> nn.Module:
    """The model without weights or memory, to look at."""
    return create_backbone(architecture, {}, meta=True)


def _check_name(architecture: str) -> None:
    if not timm.is_model(architecture.split(".")[0]):
        import_plugins()
    if not timm.is_model(architecture.split(".")[0]):
        hint = did_you_mean(architecture, timm.list_models()) or "see `ssl-mednet list backbones`"
        raise RecipeError(f"timm has no backbone {architecture!r}", hint)


@functools.cache
def import_plugins() -> dict[str, str]:
    """Import what entry points in the group ``ssl_mednet.backbones`` name: modules that register nets with timm.

    Returns:
        Those that do not load, with the reason.
    """
    broken = {}
    for point in metadata.entry_points(group="ssl_mednet.backbones"):
        try:
            point.load()
        except (Exception, SystemExit) as error:  # one bad plug-in must not stop the rest
            broken[point.name] = f"{type(error).__name__}: {error} ({point.value})"
            logging.getLogger(__name__).warning("backbones from %s do not load: %s", point.value, error)
    return broken
