"""The verb that asks a classifier about images: every slice and frame of any file gets a row, no file ends the run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_mednet.augment.views import resize
from ssl_mednet.classifying.model import Model, load_model
from ssl_mednet.data.schema import CorpusSpec
from ssl_mednet.data.sources import Source, open_sources
from ssl_mednet.errors import DataError, UnreadableImage, UserError
from ssl_mednet.files import replacing
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.modality import MODALITIES
from ssl_mednet.ingesting.rows import fit
from ssl_mednet.progress import Progress

_BATCH = 64
SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Args:
        file, index: as the user named it, a member of an archive behind ``!``; slice, frame or tile in it, from 0.
        predicted: class, or classes joined by ``|`` where an image may have several findings; may be none.
        probabilities: of each class.
        distance: of its features from the nearest class of the training.
        unlike: whether that is beyond all but one in a hundred of held-out images: the probabilities mean little then.
    """

    file: str
    index: int
    predicted: str
    probabilities: dict[str, float]
    distance: float
    unlike: bool


@dataclass
class Predictions:
    """All rows, and what got none.

    Args:
        refused: file and why; a file may have rows too, those before its damage.
    """

    rows: list[Prediction] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def unlike(self) -> int:
        return sum(row.unlike for row in self.rows)


def predict(
    model: str | Path | Model, files: Sequence[str | Path], out: str | Path | None = None, quiet: bool = False
) -> Predictions:
    """Ask a classifier about images.

    Args:
        model: folder of a model, or one that is loaded.
        files: files of any format that is read here, folders, archives, globs.
        out: where to write them, ``.csv`` or ``.json``. Nothing of a file but its name gets there.

    Raises:
        ArtifactError: no model there, or a damaged one.
        UserError: no file is named, or ``out`` cannot be written.
    """
    path = None if out is None else Path(out).expanduser()
    if path is not None and path.suffix not in SUFFIXES:
        raise UserError(f"{path}: predictions are written as {' or '.join(SUFFIXES)}")
    if not files:
        raise UserError("name the files to look at", "ssl-mednet predict --model M FILES...")
    loaded = model if isinstance(model, Model) else load_model(model)
    found = Predictions()
    with Progress("predicting", None, "img", quiet) as progress:
        for batch in _batches(loaded, _sources(files, found), found):
            found.rows += _ask(loaded, batch)
            progress.advance(len(batch), f"{found.unlike} unlike the training, {len(found.refused)} refused")
    if path is not None:
        with replacing(path) as temporary:
            text = as_csv(loaded, found) if path.suffix == ".csv" else as_json(loaded, found)
            temporary.write_text(text, encoding="utf-8")
    return found


def as_csv(model: Model, found: Predictions) -> str:
    """One line an image, then one a file that got none, with the reason in the last column."""
    buffer = io.StringIO()
    head = ["file", "index", "predicted", *(f"p_{c}" for c in model.classes), "distance", "unlike_training", "refused"]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in found.rows:
        shares = [f"{p:.6f}" for p in row.probabilities.values()]
        writer.writerow([row.file, row.index, row.predicted, *shares, f"{row.distance:.2f}", int(row.unlike), ""])
    for file, reason in found.refused:
        writer.writerow([file, *[""] * (len(head) - 2), reason])
    return buffer.getvalue()


def as_json(model: Model, found: Predictions) -> str:
    """The rows, what was refused, and what the figures stand on."""
    content = {
        "model": model.folder.name,
        "classes": model.classes,
        "thresholds": model.about["thresholds"],
        "unlike_beyond": model.unlike.threshold,
        "predictions": [vars(row) for row in found.rows],
        "refused": [{"file": file, "reason": reason} for file, reason in found.refused],
    }
    return json.dumps(content, indent=1) + "\n"


def _sources(files: Sequence[str | Path], found: Predictions) -> Iterator[Source]:
    for name in files:
        try:
            yield from open_sources(name)
        except (DataError, OSError) as error:
            found.refused.append((str(name), str(error).removeprefix(f"{name}: ")))


Named = tuple[str, MedicalImage]


def _batches(model: Model, sources: Iterator[Source], found: Predictions) -> Iterator[list[Named]]:
    held: list[Named] = []
    for source in sources:
        source.labels = "none"
        for one in _images(model, source, found):
            held.append(one)
            if len(held) == _BATCH:
                yield held
                held = []
    if held:
        yield held


def _images(model: Model, source: Source, found: Predictions) -> Iterator[Named]:
    """The images of a source that the model may be asked about; the others are refused, each file once a reason."""
    about, told = model.about, set[tuple[str, str]]()
    spec = CorpusSpec(about["channels"], about["store_size"], convert=about["convert"])
    try:
        for item in source.items():
            try:
                for image in item.images():
                    reason = _mismatch(image, about)
                    if reason and (item.name, reason) not in told:
                        told.add((item.name, reason))
                        found.refused.append((item.name, reason))
                    if not reason:
                        yield item.name, fit(item.name, image, spec)
            except UnreadableImage as error:
                found.refused.append((item.name, _of_model(error.reason, about)))
    except (DataError, OSError) as error:
        found.refused.append((source.spec, str(error).removeprefix(f"{source.spec}: ")))


def _mismatch(image: MedicalImage, about: dict[str, Any]) -> str:
    """Why the model knows nothing of such images; empty where they or the training do not say what they are."""
    known = MODALITIES.get(image.modality)
    silent = known is None or known.name.startswith("generic")
    if silent or image.modality in about["modalities"] or any(m.startswith("generic") for m in about["modalities"]):
        return ""
    return f"is {image.modality}, the model was made on {', '.join(about['modalities'])}"


def _of_model(reason: str, about: dict[str, Any]) -> str:
    """The reason of :func:`~ssl_mednet.ingesting.rows.fit` in words that fit a model."""
    other = "color" if about["channels"] == "gray" else "gray"
    return f"is in {other}, the model takes {about['channels']} images" if "convert=true" in reason else reason


@torch.inference_mode()
def _ask(model: Model, named: list[Named]) -> list[Prediction]:
    size = model.preprocessing.image_size
    seen = torch.cat([_seen(image, size) for _, image in named])
    features = model.features(seen).float()
    scores = model.probabilities(features)
    distances = model.distances(seen, features)
    rows = zip(named, model.decide(scores), scores, distances, strict=True)
    return [
        Prediction(
            file,
            image.index,
            predicted,
            dict(zip(model.classes, map(float, score), strict=True)),
            float(distance),
            bool(distance > model.unlike.threshold),
        )
        for (file, image), predicted, score, distance in rows
    ]


def _seen(image: MedicalImage, size: int) -> Tensor:
    """``[1, C, size, size]``: what evaluation shows a backbone of an image in a corpus."""
    pixels = torch.tensor(image.pixels.transpose(2, 0, 1).copy())[None]
    extent = torch.tensor([image.pixels.shape[:2]])
    batch = ImageBatch(pixels, extent, torch.tensor([image.window]), torch.zeros(1).long(), torch.zeros(1).long())
    return resize(batch, size)
