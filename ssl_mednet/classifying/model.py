"""The folder of a classifier: a backbone artifact, a linear head, what was tuned on held-out images, and a card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_mednet.backbones.artifact import CARD, Preprocessing, load_backbone, sha256
from ssl_mednet.classifying.unlike import Unlike
from ssl_mednet.errors import ArtifactError, UserError
from ssl_mednet.files import try_writing, with_nan, write_errors, write_json

FORMAT = 1
MODEL, HEAD, BACKBONE, REFERENCE, RESULTS = "model.json", "head.safetensors", "backbone", "reference", "results"
_ENTRIES = frozenset({MODEL, HEAD, BACKBONE, REFERENCE, RESULTS, CARD, "report.html"})
_NEEDED = ("classes", "multilabel", "temperature", "thresholds", "channels", "modalities", "convert", "store_size")


@dataclass(frozen=True)
class Model:
    """A classifier as it is loaded.

    Args:
        backbone: normalised images to features ``[B, D]``; in evaluation mode.
        weight, bias: of the head, ``[K, D]`` and ``[K]``.
        reference: where the backbone was fine-tuned, the net it was before. What is unlike the training is told by its
            features: those of a fine-tuned net have forgotten what does not tell the classes apart.
        unlike: tells images that are unlike those of the training.
        about: the content of ``model.json``.
    """

    folder: Path
    backbone: nn.Module
    weight: Tensor
    bias: Tensor
    unlike: Unlike
    about: dict[str, Any]
    reference: nn.Module | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        found = self.backbone.preprocessing
        assert isinstance(found, Preprocessing)
        return found

    @property
    def classes(self) -> list[str]:
        return list(self.about["classes"])

    def features(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [0, 1] to ``[B, D]``."""
        return self.backbone(self.preprocessing(images))

    def distances(self, images: Tensor, features: Tensor) -> np.ndarray:
        """``[B]``: how far images in [0, 1], whose features these are, lie from the classes of the training."""
        known = features if self.reference is None else self.reference(self.preprocessing(images))
        return self.unlike.distances(known.float().numpy())

    def probabilities(self, features: Tensor) -> np.ndarray:
        """``[B, D]`` to calibrated probabilities ``[B, K]``: rows sum to 1, or each stands alone (multi-label)."""
        logits = (features @ self.weight.T + self.bias).double() / self.about["temperature"]
        logits = torch.nan_to_num(logits, nan=torch.nan)  # softmax of +inf is not a number; of the largest it is 1
        return (torch.sigmoid(logits) if self.about["multilabel"] else torch.softmax(logits, dim=1)).numpy()

    def digest(self) -> str:
        """Of what its answers depend on: head, distances and description, which are of one net alone."""
        digest = hashlib.sha256(json.dumps(self.about, sort_keys=True, default=str).encode())
        for array in (self.weight.numpy(), self.bias.numpy(), *self.unlike.arrays().values()):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def decide(self, probabilities: np.ndarray) -> list[str]:
        """The class of each row of ``[B, K]``; of several findings those above their thresholds, joined by ``|``."""
        said = decided(probabilities, self.classes, self.about["thresholds"], self.about["multilabel"])
        return ["|".join(c for c, hit in zip(self.classes, row, strict=True) if hit) for row in said]


def decided(
    probabilities: np.ndarray, classes: list[str], thresholds: dict[str, float], multilabel: bool
) -> np.ndarray:
    """``[B, K]``: which classes are said of each row, one, or of several findings any number."""
    if multilabel:
        return np.asarray(probabilities >= np.array([thresholds[c] for c in classes]))
    said = probabilities.argmax(axis=1)
    if thresholds:  # of two classes, on the probability of the second
        said = (probabilities[:, 1] >= thresholds[classes[1]]).astype(int)
    return np.eye(len(classes), dtype=bool)[said]


def check_room(out: str | Path, overwrite: bool) -> Path:
    """The folder that may be written.

    Raises:
        UserError: something is there already and may not be replaced, or is not all of it a model; or nothing can be
            written there.
    """
    folder = Path(out).expanduser().resolve()
    with write_errors(folder):
        try_writing(folder.parent)  # where the new one is made
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if folder.exists() and not overwrite:
        raise UserError(f"{folder}: is there already", "choose another --out, or say --overwrite")
    if not folder.exists():
        return folder
    if not (folder / MODEL).is_file():
        raise UserError(f"{folder}: is no model, it will not be overwritten", "choose another --out")
    if more := sorted({path.name for path in folder.iterdir()} - _ENTRIES):
        raise UserError(f"{folder}: holds {more[0]} beside a model, it will not be overwritten", "choose another --out")
    return folder


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends well; what was there stays until then."""
    temporary, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_head(folder: Path, weight: Tensor, bias: Tensor, unlike: Unlike, about: dict[str, Any]) -> None:
    """Write all but the backbone."""
    tensors = {"weight": weight, "bias": bias} | {k: torch.from_numpy(v) for k, v in unlike.arrays().items()}
    (folder / HEAD).write_bytes(save({k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}))
    said = {"format": FORMAT, **about, "unlike": unlike.said(), "head_sha256": sha256(folder / HEAD)}
    write_json(folder / MODEL, said, nan=False)


def is_model(path: str | Path) -> bool:
    """Whether there is the folder of a classifier."""
    return (Path(path).expanduser() / MODEL).is_file()


def load_model(path: str | Path) -> Model:
    """A classifier from its folder, checksums verified; nothing in it is unpickled.

    Raises:
        ArtifactError: no such folder, or a damaged one.
    """
    folder = Path(path).expanduser()
    if not is_model(folder):
        hint = "`ssl-mednet finetune --weights W --data D --out M` makes one"
        raise ArtifactError(f"{path}: {'holds no ' + MODEL if folder.exists() else 'no such folder'}", hint)
    try:
        about = json.loads((folder / MODEL).read_text())
        about |= {key: with_nan(about[key]) for key in ("metrics", "operating_point") if key in about}
        if about["format"] != FORMAT:
            raise ArtifactError(f"{folder}: has the layout {about['format']}, this version reads {FORMAT}")
        if sha256(folder / HEAD) != about["head_sha256"]:
            raise ArtifactError(f"{folder / HEAD}: its sha256 is not the one in {MODEL}", "it was changed or damaged")
        tensors = load_file(folder / HEAD)
        unlike = Unlike.of({k: v.numpy() for k, v in tensors.items()}, about["unlike"])
        weight, bias, tuned = tensors["weight"], tensors["bias"], about["protocol"] != "linear"
        if missing := [key for key in _NEEDED if key not in about]:
            raise KeyError(", ".join(missing))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: cannot be read: {type(error).__name__}: {error}") from error
    reference = _load_net(folder / REFERENCE) if tuned else None
    return Model(folder, _load_net(folder / BACKBONE), weight, bias, unlike, about, reference)


def _load_net(folder: Path) -> nn.Module:
    """Laid out as while its card was measured."""
    return load_backbone(folder).to(memory_format=torch.channels_last)
