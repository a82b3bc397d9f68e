"""What is compared (weights with their preprocessing), and its features of a labelled set, frozen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssl_mednet.augment.views import resize
from ssl_mednet.backbones.artifact import Preprocessing, find_artifact, load_backbone, read_config
from ssl_mednet.backbones.factory import backbone_args, create_backbone
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.draws import stable_hash
from ssl_mednet.errors import ArtifactError
from ssl_mednet.imaging.modality import CHANNEL_COUNT
from ssl_mednet.progress import Progress

_BATCH = 256
_NEUTRAL = (0.5, 0.25)  # mean and deviation for untrained nets, which have no data of their own


@dataclass(frozen=True)
class Weights:
    """A backbone to evaluate.

    Args:
        name: what the user called it.
        digest: sha256 of its weights.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    digest: str


def load_weights(specs: list[str], channels: str, image_size: int | None, seed: int) -> list[Weights]:
    """The backbones that a user names, in order.

    ``random:NAME`` is an untrained timm net; ``random:`` alone, or the NAME of an artifact in the list, is the net
    of that very architecture before training. Untrained nets see images as the first artifact of these channels does.

    Args:
        channels: of the images to be seen; weights for others are refused.
        image_size: for untrained nets where no artifact says it; 64 when None.

    Raises:
        ArtifactError: weights that are not there, or made for images of other channels.
    """
    configs = [read_config(find_artifact(s)) for s in specs if not s.startswith("random:")]
    trained = iter([load_backbone(s) for s in specs if not s.startswith("random:")])
    loaded = []
    for spec in specs:
        if spec.startswith("random:"):
            model, preprocessing = _untrained(spec, configs, channels, image_size or 64, seed)
        else:
            model = next(trained)
            preprocessing = model.preprocessing  # type: ignore[assignment]
            if preprocessing.channels != channels:
                hint = "data.convert=true turns the images into the kind that the weights know"
                raise ArtifactError(f"{spec}: made for {preprocessing.channels} images, the data is {channels}", hint)
        loaded.append(Weights(spec, model, preprocessing, _state_hash(model)))
    return loaded


def _untrained(
    spec: str, configs: list[dict], channels: str, image_size: int, seed: int
) -> tuple[nn.Module, Preprocessing]:
    name = spec.removeprefix("random:")
    like = next((c for c in configs if name in ("", c["architecture"])), None)
    if like is None and not name:
        raise ArtifactError(
            "random: alone means the architecture of the other weights, but there are none", "random:NAME"
        )
    section = (like or (configs[0] if configs else {})).get("ssl_mednet", {}).get("preprocessing", {})
    size = section.get("image_size", image_size)
    count = CHANNEL_COUNT[channels]
    args = like["model_args"] if like else backbone_args(name, count, size)
    torch.manual_seed(stable_hash(seed, "random weights"))
    model = create_backbone(like["architecture"] if like else name, {**args, "in_chans": count}).eval()
    if section.get("channels") == channels:
        return model, Preprocessing(channels, size, tuple(section["mean"]), tuple(section["std"]))
    return model, Preprocessing(channels, size, (_NEUTRAL[0],) * count, (_NEUTRAL[1],) * count)


@torch.inference_mode()
def extract(weights: Weights, corpus: Corpus, rows: np.ndarray, device: torch.device, quiet: bool) -> np.ndarray:
    """Features of these rows, ``[N, D]`` float32: the whole image, resized, normalised, no augmentation.

    Raises:
        ArtifactError: the backbone changed while it was only to be looked at, or gave features that are not finite.
    """
    model = weights.model.to(device).eval()
    before = _state_hash(model)
    features = []
    with Progress(f"features {Path(weights.name).name or weights.name}", len(rows), "img", quiet) as progress:
        for start in range(0, len(rows), _BATCH):
            batch = corpus.batch(rows[start : start + _BATCH]).to(device)
            images = weights.preprocessing.normalise(resize(batch, weights.preprocessing.image_size))
            features.append(model(images).float().cpu().numpy())
            progress.advance(len(batch))
    if _state_hash(model) != before:
        raise ArtifactError(f"{weights.name}: the frozen backbone changed during evaluation")
    result = np.concatenate(features)
    if not np.isfinite(result).all():
        raise ArtifactError(f"{weights.name}: gives features that are not finite", "did its pretraining diverge?")
    return result


def _state_hash(model: nn.Module) -> str:
    """sha256 over all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
        digest.update(str(value.item()).encode() if not value.ndim else b"")
    return digest.hexdigest()
