"""The backbone artifact: safetensors, a config that plain timm loads, the preprocessing, and a model card."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_mednet.backbones.card import HERE, model_card
from ssl_mednet.backbones.factory import create_backbone
from ssl_mednet.backbones.zoo import find_entry, suggestion
from ssl_mednet.errors import ArtifactError, RecipeError
from ssl_mednet.files import sync_folder
from ssl_mednet.imaging.modality import CHANNEL_COUNT

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


@dataclass(frozen=True)
class Preprocessing:
    """How images must come to the backbone. Call it on images ``[B, C, H, W]`` in [0, 1].

    Args:
        channels: ``"gray"`` or ``"color"``.
        image_size: side in pixels; the whole image is resized to a square, antialiased.
        mean, std: one number a channel, in [0, 1] units.
    """

    channels: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Resized and normalised, ``[B, C, image_size, image_size]``.

        Raises:
            ArtifactError: images of another number of channels, or beyond [0, 1].
        """
        expected = CHANNEL_COUNT[self.channels]
        if images.ndim != 4 or images.shape[1] != expected:
            raise ArtifactError(
                f"these weights take {self.channels} images [B, {expected}, H, W], not {[*images.shape]}"
            )
        if images.numel() and (images.min() < -1e-3 or images.max() > 1.001):
            raise ArtifactError("images must lie in [0, 1] before they are normalised", "divide 8-bit pixels by 255")
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return self.normalise(images)

    def normalise(self, images: Tensor) -> Tensor:
        """Mean and deviation taken out, of images that have their size already."""
        shape = (1, -1, 1, 1)
        return (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(self.std).view(shape)


def save_backbone(
    model: nn.Module,
    out: Path,
    architecture: str,
    model_args: dict[str, Any],
    preprocessing: Preprocessing,
    provenance: dict[str, Any],
) -> str:
    """Write the artifact folder ``out``; it appears whole or not at all.

    Args:
        provenance: what else belongs to the weights (recipe, data, licences, metrics); plain values.

    Returns:
        sha256 of the weights file.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    return write_artifact(state, _config(model, architecture, model_args, preprocessing, provenance), out)


def write_artifact(state: dict[str, Tensor], config: dict[str, Any], out: Path, place: str = HERE) -> str:
    """Write tensors and their config as the artifact folder ``out``; it appears whole or not at all.

    Args:
        config: as :func:`read_config` gives it; the checksum in it is set here.
        place: what the examples of the card call it; by default a path.

    Returns:
        sha256 of the weights file.
    """
    temporary, old = (out.with_name(f".{out.name}.{what}") for what in ("partial", "old"))
    for left in (temporary, old):  # of a run that was killed while it saved
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))  # save_file lets the owner alone read it
    digest = sha256(temporary / WEIGHTS)
    config = config | {"ssl_mednet": config["ssl_mednet"] | {"sha256": digest}}
    (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (temporary / CARD).write_text(model_card(config, place))
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
    return digest


def load_backbone(path: str | Path) -> nn.Module:
    """The backbone of a run folder, an artifact folder or a name that the package knows, with its ``preprocessing``.

    It is in evaluation mode and in float32, whatever its file holds.

    >>> backbone = load_backbone("gray-mednet-tiny")          # doctest: +SKIP
    >>> features = backbone(backbone.preprocessing(images))   # doctest: +SKIP

    Raises:
        ArtifactError: no artifact there, a broken one, or weights that do not fit their own config.
    """
    folder = find_artifact(path)
    config = read_config(folder)
    state = read_state(folder, config)
    try:
        model = create_backbone(config["architecture"], config["model_args"])
        model.load_state_dict(state, strict=True)
    except RecipeError as error:
        hint = f"{error.hint}; or the package that registers it is not installed".removeprefix("; or ")
        raise ArtifactError(f"{folder}: {error.message}", hint) from error
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(f"{folder}: the weights do not fit {CONFIG}: {error}") from error
    section = config["ssl_mednet"]["preprocessing"]
    preprocessing = Preprocessing(
        section["channels"], section["image_size"], tuple(section["mean"]), tuple(section["std"])
    )
    object.__setattr__(model, "preprocessing", preprocessing)
    return model.eval()


def read_state(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of an artifact, after its checksum was verified.

    Raises:
        ArtifactError: the file cannot be read, or is not the one that the config was written for.
    """
    path, wanted = folder / WEIGHTS, config["ssl_mednet"].get("sha256", "")
    try:
        state = load_file(path)
        if wanted and sha256(path) != wanted:
            hint = "it was changed or damaged: copy or install it again"
            raise ArtifactError(f"{path}: its sha256 is not the one in {CONFIG}", hint)
        return state
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}", "save the backbone again") from error


def weights_path(name: str | Path) -> str:
    """Where weights lie on this machine, their checksum verified: what plain timm takes behind ``local-dir:``.

    >>> import timm
    >>> timm.create_model("local-dir:" + weights_path("gray-mednet-tiny"), pretrained=True)  # doctest: +SKIP

    Raises:
        ArtifactError: no such weights, or damaged ones.
    """
    folder = find_artifact(name)
    read_state(folder, read_config(folder))
    return str(folder)


def find_artifact(path: str | Path, other: str = "random:NAME, imagenet:NAME") -> Path:
    """The artifact folder at ``path``: the folder itself, ``backbone/`` of a run folder, or weights known by name.

    Args:
        other: what may be given instead, for the message.

    Raises:
        ArtifactError: there is none.
    """
    given = Path(path).expanduser()
    for folder in (given, given / "backbone"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if not given.exists():
        entry = find_entry(str(path))
        if entry is not None and (entry / WEIGHTS).is_file():
            return entry
        plain = suggestion(str(path)) if str(path) == given.name else ""
        hint = " ".join(filter(None, [plain, f"give a run folder, a backbone folder or {other}"]))
        if "@" in str(path):
            hint = "only random: and imagenet: take @SIZE, other weights see images at their own size"
        raise ArtifactError(f"{path}: no such folder", hint)
    if given.is_file():
        hint = "give the folder that it lies in with its config.json, as pretrain and export write it"
        raise ArtifactError(f"{path}: is a file; weights are a folder", hint)
    if any(given.glob("*.onnx")):
        hint = "give the run or the backbone folder that it was exported from"
        raise ArtifactError(f"{path}: is an export to ONNX, which cannot be read back", hint)
    hint = "has its pretraining finished? continue it with `ssl-mednet pretrain --resume`"
    raise ArtifactError(f"{path}: holds no {WEIGHTS} with its {CONFIG}", hint)


def read_config(folder: Path) -> dict[str, Any]:
    """The artifact's config.

    Raises:
        ArtifactError: not JSON, or not written by this toolkit.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / CONFIG}: cannot be read: {error}") from error
    if "ssl_mednet" not in config:
        raise ArtifactError(f"{folder / CONFIG}: says nothing of the preprocessing", "only our own artifacts carry it")
    return config


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config(
    model: nn.Module,
    architecture: str,
    model_args: dict[str, Any],
    preprocessing: Preprocessing,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    size, channels = preprocessing.image_size, CHANNEL_COUNT[preprocessing.channels]
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": int(model.num_features),  # type: ignore[arg-type]
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [channels, size, size],
            "fixed_input_size": "img_size" in model_args,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": 0,
            **_ends(model),
        },
        "ssl_mednet": {"preprocessing": asdict(preprocessing), **provenance},
    }


def _ends(model: nn.Module) -> dict[str, Any]:
    """Where timm puts a new classifier, and what it changes for other channels: the names of these layers, if known."""
    known = getattr(model, "pretrained_cfg", None) or {}
    ends = {key: known[key] for key in ("classifier", "first_conv") if known.get(key)}
    if ends.get("first_conv") not in dict(model.named_modules()):  # the small stem has one of its own
        ends.pop("first_conv", None)
    return ends
