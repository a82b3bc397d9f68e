"""Published results beside ours, and the truth about what differs: answered from what the row says of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ssl_mednet.recipe import parse, read_yaml
from ssl_mednet.reporting import words
from ssl_mednet.reporting.rows import Row
from ssl_mednet.schema import Section

FILE = "references"
_OURS = re.compile(r"medmnist:(?P<name>[a-z]+)", re.IGNORECASE)
_SIZE = re.compile(r"[?&]size=(\d+)")
_NATIVE = 28  # pixels: what a MedMNIST name without a size means


class PublishedProtocol(Section):
    words: str = Field(description="what was done, in a half sentence")
    ours: list[str] = Field(description="protocols of ours of the same kind")
    weights: str = Field("", description="how the names of weights begin that start from the same point")


class PublishedSet(Section):
    images: dict[Literal["train", "val", "test"], int] = Field(description="of the official splits")
    related: dict[str, str] = Field({}, description="task of ours -> why it is not the same")


class PublishedResult(Section):
    set: str
    size: int = Field(gt=0, description="side of the images, pixels")
    method: str
    protocol: str
    auc: float = Field(ge=0, le=1)
    acc: float = Field(ge=0, le=1)
    source: str
    note: str = ""


class References(Section):
    """Published results, see ``eval/references.yaml``."""

    kind: Literal["references"]
    protocols: dict[str, PublishedProtocol]
    sets: dict[str, PublishedSet]
    sources: dict[str, str]
    results: list[PublishedResult]

    @model_validator(mode="after")
    def _names_are_known(self) -> References:
        for result in self.results:
            for name, known in ((result.set, self.sets), (result.protocol, self.protocols)):
                if name not in known:
                    raise ValueError(f"{name!r} is not explained above; explained: {', '.join(known)}")
            if result.source not in self.sources:
                raise ValueError(f"{result.source!r} is no source; sources: {', '.join(self.sources)}")
        return self

    def of_task(self, row: Row) -> list[PublishedResult]:
        """The results on the set that a row's task is, or is related to."""
        task = row.task.lower()
        named = _set_of(row)
        return [r for r in self.results if r.set.lower() == named or task in self.sets[r.set].related]


def load_references(name: str | Path = FILE) -> References:
    """The shipped references, or those of another file.

    Raises:
        RecipeError: no such file, or one that says something it may not say.
    """
    where, content = read_yaml(name, "eval")
    return parse(References, content, where)


@dataclass(frozen=True)
class Beside:
    """A published result, one of our rows, and whether the two may be compared."""

    published: PublishedResult
    source: str
    protocol: str
    row: Row
    same_images: str
    same_protocol: str


def beside(references: References, rows: Sequence[Row]) -> list[Beside]:
    """Every published result of a task next to the row of ours whose protocol comes nearest."""
    ours = [row for row in rows if row.ordinary]
    if not ours:
        return []
    pairs = []
    for result in references.of_task(ours[0]):
        protocol = references.protocols[result.protocol]
        row = min(ours, key=lambda r: _distance(r, protocol))
        images, method = same_images(references, result, row), same_protocol(protocol, result, row)
        pairs.append(Beside(result, references.sources[result.source], protocol.words, row, images, method))
    return pairs


def alike(pairs: Sequence[Beside]) -> list[list[Beside]]:
    """Neighbours in the list that stand beside the same row of ours with the same answers."""
    groups = groupby(pairs, key=lambda p: (p.row.key, p.same_images, p.same_protocol))
    return [list(group) for _, group in groups]


def _distance(row: Row, protocol: PublishedProtocol) -> tuple[int | float, ...]:
    """Fewer labels, another kind of training, another starting point; then the better AUROC."""
    differs = (not row.all_labels, row.protocol not in protocol.ours, not row.weights.startswith(protocol.weights))
    value = row.metric("auroc").value
    return (*differs, words.protocol_rank(row.protocol), -value if value == value else 1.0)


def same_images(references: References, result: PublishedResult, row: Row) -> str:
    """Whether ``row`` was measured on the images and splits of the published result, and if not, what differs."""
    published = references.sets[result.set]
    if reason := published.related.get(row.task.lower()):
        return f"No: {reason}."
    if _set_of(row) != result.set.lower():
        return f"No: this is not {result.set}."
    differs = [
        f"{mine:,} instead of {published.images[split]:,} {word} images"
        for split, word, mine in _split_sizes(row)
        if mine is not None and split in published.images and mine != published.images[split]
    ]
    if row.splits_made:
        differs.append(f"the {words.join(row.splits_made)} split was made here")
    if differs:
        return f"No: {'; '.join(differs)}."
    size = _size_of(row)
    if size is None:
        return f"Not certain: as many images as {result.set}, but from a file of the user's, not from MedMNIST's."
    if size != result.size:
        return f"No: the same pictures and splits, but at {size} px, not {result.size} px."
    if row.image_size != size:
        return f"Nearly: the same images and splits, resized from {size} to {row.image_size} px."
    return f"Yes: {result.set} at {size} px, official splits."


def same_protocol(protocol: PublishedProtocol, result: PublishedResult, row: Row) -> str:
    """Whether ``row`` was measured in the way of the published result, and what differs."""
    ours = words.protocol_name(row.protocol)
    if row.protocol not in protocol.ours:
        return f"No: {ours} of {_start(row)}, there {protocol.words}."
    if not row.all_labels:
        return f"No: {ours} with {words.labels_used(row.labels, row.shots)} of the labels."
    if not row.weights.startswith(protocol.weights):
        return f"No: {ours} that starts from {_start(row)}, there {protocol.words}."
    ours = f"{row.architecture or 'our network'} and our schedule"
    return f"The same kind: {protocol.words}; but {ours}, there {result.method}."


def _start(row: Row) -> str:
    if row.weights.startswith("random:"):
        return "an untrained network"
    return "a simple baseline" if row.weights.startswith("baseline:") else "pretrained weights"


def _split_sizes(row: Row) -> tuple[tuple[Literal["train", "val", "test"], str, int | None], ...]:
    return ("train", "training", row.n_train), ("val", "validation", row.n_val), ("test", "test", row.n)


def _set_of(row: Row) -> str:
    """The MedMNIST set that a row says it is of, in small letters: by its source, else by its file's name."""
    said = _OURS.match(row.source)
    return said["name"].lower() if said else Path(row.source or row.task).name.split(".")[0].split("_")[0].lower()


def _size_of(row: Row) -> int | None:
    """The size of the images in MedMNIST's own file; None where the source is another file."""
    said = _OURS.match(row.source)
    if not said:
        return None
    size = _SIZE.search(row.source)
    return int(size[1]) if size else _NATIVE
