"""The verb that asks a classifier about images: every slice and frame of any file gets a row, no file ends the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_mednet.augment.views import resize
from ssl_mednet.classifying.model import Model, load_model
from ssl_mednet.classifying.tables import SUFFIXES, Prediction, Predictions, earlier, shown, table
from ssl_mednet.data.schema import CorpusSpec
from ssl_mednet.data.sources import Item, Source, open_sources
from ssl_mednet.errors import DataError, UnreadableImage, UserError
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.modality import MODALITIES
from ssl_mednet.imaging.modality import modality as known_modality
from ssl_mednet.ingesting.rows import fit
from ssl_mednet.progress import Progress

__all__ = ["Prediction", "Predictions", "predict"]

_BATCH = 64


def predict(
    model: str | Path | Model,
    files: Sequence[str | Path],
    out: str | Path | None = None,
    quiet: bool = False,
    modality: str = "",
    resume: bool = False,
) -> Predictions:
    """Ask a classifier about images.

    Args:
        model: folder of a model, or one that is loaded.
        files: files of any format that is read here, folders, archives, globs.
        out: where to write them, ``.csv`` or ``.json``. Nothing of a file but its name gets there. It is whole or not
            there; a run that ends early leaves what it has in ``NAME.partial.csv``, as the rows come.
        modality: of images that do not say their own; by default that of the training, where it had one alone.
        resume: go on from ``NAME.partial.csv`` of this model and modality: files that have all their rows there are not
            read again, and their rows stay.

    Raises:
        ArtifactError: no model there, or a damaged one.
        DataError: no such modality.
        UserError: no file is named, ``out`` cannot be written, or an earlier run left rows there that are not resumed.
    """
    path = None if out is None else Path(out).expanduser()
    if path is not None and path.suffix not in SUFFIXES:
        raise UserError(f"{path}: predictions are written as {' or '.join(SUFFIXES)}")
    if not files:
        raise UserError("name the files to look at", "ssl-mednet predict --model M FILES...")
    if modality:
        known_modality(modality)
    loaded = model if isinstance(model, Model) else load_model(model)
    said = f"{loaded.digest()} {modality}"
    found = Predictions(earlier(path, loaded, resume, said))
    known, unlike = frozenset(row.file for row in found.rows), found.unlike
    sources = _prepared(files, found, quiet)
    with (
        table(path, loaded, found, said) if path else nullcontext() as add,
        Progress("predicting", None, "img", quiet) as progress,
    ):
        for batch in _batches(loaded, sources, modality, found, known):
            rows = _ask(loaded, batch)
            found.rows += rows
            if add:
                add(rows)
            unlike += sum(row.unlike for row in rows)
            progress.advance(len(batch), f"{unlike} unlike the training, {len(found.refused)} refused")
    return found


def _prepared(files: Sequence[str | Path], found: Predictions, quiet: bool) -> list[Source]:
    sources: list[Source] = []
    for name in files:
        try:
            opened = list(open_sources(name))
        except (DataError, OSError) as error:
            said = error.message if isinstance(error, DataError) else str(error)  # its hint is about training data
            found.refused.append((str(name), said.removeprefix(f"{name}: ")))
            continue
        for source in opened:
            source.labels, source.every = "none", True
            with suppress(DataError, OSError):  # what is wrong is said when its images are wanted
                source.prepare(quiet)
        sources += opened
    return sources


Named = tuple[str, MedicalImage]


def _batches(
    model: Model, sources: list[Source], modality: str, found: Predictions, known: frozenset[str]
) -> Iterator[list[Named]]:
    held: list[Named] = []
    for source in sources:
        for one in _images(model, source, modality, found, known):
            held.append(one)
            if len(held) == _BATCH:
                yield held
                held = []
    if held:
        yield held


def _images(model: Model, source: Source, modality: str, found: Predictions, known: frozenset[str]) -> Iterator[Named]:
    """The images of a source that the model may be asked about; the others are refused, each file once a reason."""
    about, told = model.about, set[tuple[str, str]]()
    spec = CorpusSpec(about["channels"], about["store_size"], convert=about["convert"])
    modality = modality or _only(about)
    seen, refused = False, len(found.refused)
    try:
        for item in map(_plain, source.items()):
            if shown(item.name) in known:
                seen = True
                continue
            try:
                for number, image in enumerate(item.images(modality)):
                    if number == 0 and not modality:
                        _check_known(item, image, about["modalities"])
                    reason = _mismatch(image, about)
                    if not reason:
                        seen = True
                        try:
                            fitted = fit(item.name, image, spec)
                        except UnreadableImage as error:  # of this frame: the next may be another
                            reason = _of_model(error.reason, about)
                        else:
                            yield item.name, fitted
                    if reason and (item.name, reason) not in told:
                        told.add((item.name, reason))
                        found.refused.append((item.name, reason))
            except UnreadableImage as error:
                found.refused.append((item.name, _of_model(error.reason, about)))
    except (DataError, OSError) as error:
        found.refused.append((source.spec, str(error).removeprefix(f"{source.spec}: ")))
    if not seen and len(found.refused) == refused:
        found.refused.append((source.spec, "holds nothing that can be read as an image"))


def _plain(item: Item) -> Item:
    """Without a modality that says nothing, so that it stands in no other's way."""
    return replace(item, modality="") if item.modality and _silent(item.modality) else item


def _silent(modality: str) -> bool:
    """Whether a name says nothing of what an image is."""
    return modality not in MODALITIES or modality.startswith("generic")


def _only(about: dict[str, Any]) -> str:
    """What all images of the training were; empty where they were of several kinds or did not say it."""
    kinds = about["modalities"]
    return str(kinds[0]) if len(kinds) == 1 and not _silent(kinds[0]) else ""


def _check_known(item: Item, image: MedicalImage, kinds: list[str]) -> None:
    """Refuse a file that would be read in another way if it were known as CT (Hounsfield units have a window of their
    own), where the model has seen CT and others.

    Raises:
        UnreadableImage: so it is; ``image`` is the first in it.
    """
    may_be = "ct" in kinds and _silent(image.modality) and image.pixels.dtype == np.uint16
    if may_be and next(item.images("ct")).quantity == "hu":
        made = f"the model was made on {', '.join(kinds)}"
        raise UnreadableImage(item.name, f"does not say whether it is CT, and {made}: say --modality ct or another")


def _mismatch(image: MedicalImage, about: dict[str, Any]) -> str:
    """Why the model knows nothing of such images; empty where they or the training do not say what they are."""
    kinds = about["modalities"]
    if _silent(image.modality) or image.modality in kinds or any(map(_silent, kinds)):
        return ""
    return f"is {image.modality}, the model was made on {', '.join(kinds)}"


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
