"""What is compared: backbones by the names that a user gives them, each with its preprocessing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ssl_mednet.backbones.artifact import Preprocessing, find_artifact, load_backbone, read_config
from ssl_mednet.backbones.factory import backbone_args, create_backbone
from ssl_mednet.backbones.imagenet import imagenet_net
from ssl_mednet.draws import stable_hash
from ssl_mednet.errors import ArtifactError, RecipeError, did_you_mean
from ssl_mednet.evaluation.baselines import BASELINES, RepeatChannels
from ssl_mednet.imaging.modality import CHANNEL_COUNT

DEFAULT_SIZE, SMALLEST = 64, 16
_NEUTRAL = (0.5, 0.25)  # mean and deviation for untrained nets, which have no data of their own
_SPEC = re.compile(r"(?P<kind>random|imagenet|baseline):(?P<name>[^@]*)(?:@(?P<size>\d+))?")


@dataclass(frozen=True)
class Weights:
    """A backbone to evaluate: images through ``preprocessing``, then ``model``, are features ``[B, D]``.

    Args:
        name: what the user called it.
        model: laid out for convolutions here (channels last), which they are faster in.
        digest: sha256 of its parameters, buffers and structure.
        architecture: timm's name, or what a baseline computes.
        model_args: what timm built it with; some of it, as how a ViT pools, shows in no parameter.
        published: sha256 of the artifact's file of weights, as its model card states it; empty for others.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    digest: str
    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    published: str = ""

    def __post_init__(self) -> None:
        self.model.to(memory_format=torch.channels_last)

    @property
    def random(self) -> bool:
        """Whether it differs between seeds."""
        return self.name.startswith("random:")

    @property
    def trainable(self) -> bool:
        return any(True for _ in self.model.parameters())


def load_weights(specs: list[str], channels: str, image_size: int | None, seed: int) -> Iterator[Weights]:
    """The backbones that a user names, in order, one at a time.

    - a run or artifact folder;
    - ``random:NAME``: an untrained timm net; ``random:`` alone, or the NAME of an artifact in the list, is the net of
      that very architecture before training, with its preprocessing;
    - ``imagenet:NAME``: timm's pretrained net; gray images are repeated to three channels, which is exact;
    - ``baseline:histogram`` and ``baseline:pixels``: what a backbone must beat.

    ``@SIZE`` behind a name sets the side of its images in pixels; else they are seen as the first artifact sees them.

    Args:
        channels: of the images to be seen; weights for others are refused.
        image_size: of those without ``@SIZE`` that are no artifacts; when None that of the first artifact, or 64.

    Raises:
        ArtifactError: weights that are not there, or made for images of other channels.
        RecipeError: a name that nothing is known by, or a net that cannot take images of this size.
    """
    artifacts = [s for s in specs if not _special(s)]
    configs = [read_config(find_artifact(s)) for s in artifacts]
    seen = configs[0]["ssl_mednet"]["preprocessing"] if configs else {}
    size = int(image_size or seen.get("image_size") or DEFAULT_SIZE)
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None:
            yield _trained(spec, channels)
            continue
        kind, name, own = match["kind"], match["name"], int(match["size"] or size)
        if match["size"] and kind != "baseline" and own < SMALLEST:
            raise RecipeError(f"--weights {spec}: no net sees images of {own} pixels", f"@{SMALLEST} or more")
        if kind == "baseline":
            yield _baseline(spec, name, channels, int(match["size"] or 0))
        elif kind == "imagenet":
            yield _imagenet(spec, name, channels, own)
        else:
            yield _untrained(spec, name, configs, channels, own, seed)


def channels_of(specs: list[str]) -> str:
    """The kind of images that the first artifact was made for; empty where there is none."""
    for spec in specs:
        if not _special(spec):
            return str(read_config(find_artifact(spec))["ssl_mednet"]["preprocessing"]["channels"])
    return ""


def state_hash(model: nn.Module) -> str:
    """sha256 over all parameters and buffers, and over what the model prints of its structure."""
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _special(spec: str) -> bool:
    return spec.partition(":")[0] in ("random", "imagenet", "baseline") and ":" in spec


def _trained(spec: str, channels: str) -> Weights:
    if _special(spec):
        raise RecipeError(f"--weights {spec}: is not spelled right", "for example imagenet:efficientnet_lite0@96")
    model = load_backbone(spec)
    preprocessing = model.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    if preprocessing.channels != channels:
        hint = f"convert=true turns images into {preprocessing.channels} ones; weights of both kinds need a run each"
        raise ArtifactError(f"{spec}: made for {preprocessing.channels} images, the data is {channels}", hint)
    config = read_config(find_artifact(spec))
    loaded = _weights(spec, model, preprocessing, config["architecture"], config["model_args"])
    return replace(loaded, published=config["ssl_mednet"].get("sha256", ""))


def _untrained(
    spec: str, name: str, configs: list[dict[str, Any]], channels: str, image_size: int, seed: int
) -> Weights:
    like = next((c for c in configs if name in ("", c["architecture"])), None)
    if like is None and not name:
        raise ArtifactError(
            "random: alone means the architecture of the other weights, but there are none", "random:NAME"
        )
    first = (like or (configs[0] if configs else {})).get("ssl_mednet", {}).get("preprocessing", {})
    count = CHANNEL_COUNT[channels]
    architecture = like["architecture"] if like else name
    args = dict(like["model_args"]) if like else backbone_args(name, count, image_size)
    if "img_size" in args:
        args["img_size"] = image_size
    args["in_chans"] = count
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_hash(seed, "random weights"))
        model = create_backbone(architecture, args).eval()
    mean, std = (_NEUTRAL[0],) * count, (_NEUTRAL[1],) * count
    if first.get("channels") == channels:
        mean, std = tuple(first["mean"]), tuple(first["std"])
    return _weights(spec, model, Preprocessing(channels, image_size, mean, std), architecture, args)


def _imagenet(spec: str, name: str, channels: str, image_size: int) -> Weights:
    net, architecture = imagenet_net(spec, name, image_size)
    # The net normalises inside, so that gray images meet the statistics of each of the channels they are repeated to.
    model = RepeatChannels(net, net.pretrained_cfg["mean"], net.pretrained_cfg["std"]).eval()  # type: ignore[arg-type, index]
    count = CHANNEL_COUNT[channels]
    return _weights(spec, model, Preprocessing(channels, image_size, (0.0,) * count, (1.0,) * count), architecture)


def _baseline(spec: str, name: str, channels: str, image_size: int) -> Weights:
    if name not in BASELINES:
        raise RecipeError(
            f"{spec}: no such baseline", did_you_mean(name, BASELINES) or f"one of {', '.join(BASELINES)}"
        )
    model, size = BASELINES[name]
    count = CHANNEL_COUNT[channels]
    preprocessing = Preprocessing(channels, image_size or size, (0.0,) * count, (1.0,) * count)
    return _weights(spec, model(), preprocessing, name)


def _weights(
    spec: str,
    model: nn.Module,
    preprocessing: Preprocessing,
    architecture: str,
    model_args: dict[str, Any] | None = None,
) -> Weights:
    return Weights(spec, model, preprocessing, state_hash(model), architecture, model_args or {})


def identity(weights: Weights) -> str:
    """What the features of an image depend on: weights, structure and preprocessing, in one short word."""
    built = weights.architecture, weights.model_args
    said = json.dumps([weights.digest, *built, vars(weights.preprocessing)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:24]
