"""What is shown as pictures: the map of the features, nearest neighbours, the worst mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ssl_mednet.reporting import words
from ssl_mednet.reporting.curves import Mistake, worst_mistakes
from ssl_mednet.reporting.load import Embedding, Missing, Predictions, load_embedding, load_thumbnails
from ssl_mednet.reporting.pictures import Sheet, make_sheet, on_map, shapes
from ssl_mednet.reporting.plots import Proof
from ssl_mednet.reporting.tasks import Cell, Series, Task

MAP = (462, 400)  # largest size of a map, pixels
MISTAKES = 12
Place = tuple[int, int] | None


@dataclass(frozen=True)
class Picture:
    """A thumbnail (``place`` on the sheet, None where it was not kept) and what is said of it."""

    sheet: Sheet | None
    place: Place
    text: str
    detail: str
    right: bool | None = None


@dataclass(frozen=True)
class Group:
    """Points of one class on a map: a name, a color and shape, the SVG path of all of them."""

    number: int
    name: str
    path: str


@dataclass(frozen=True)
class Map:
    """The map of one set of weights; ``data`` is what the script of the page reads."""

    series: Series
    width: int
    height: int
    explained: tuple[str, str]
    groups: list[Group]
    points: int
    sheet: Sheet | None
    data: Markup


@dataclass
class Gallery:
    """All pictures of a task."""

    sheets: list[Sheet] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    neighbours: list[tuple[Series, list[tuple[Picture, list[Picture]]]]] = field(default_factory=list)
    mistakes: list[tuple[Series, list[Picture], int]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """What is to be shown of one set of weights, before its pictures are put on a sheet."""

    cell: Cell
    predictions: Predictions | None
    embedding: Embedding | None
    mistakes: list[Mistake]

    @property
    def ids(self) -> list[int]:
        """Of all images that are shown."""
        ids: list[int] = []
        if self.embedding is not None:
            for part in (self.embedding.sample, self.embedding.queries, self.embedding.neighbours):
                ids += part.ravel().tolist()
        if self.predictions is not None:
            ids += [int(self.predictions.rows[m.index]) for m in self.mistakes]
        return ids


def build_gallery(task: Task, proof: Proof | None) -> Gallery:
    """Maps, neighbours and mistakes of every set of weights; the mistakes are those of ``proof``."""
    gallery = Gallery()
    if proof is None:
        return gallery
    found = [_find(cell, proof, gallery) for cell in task.cells(proof.protocol)]
    sheets = _sheets(task, found, gallery)
    for one in found:
        series, predictions, sheet = one.cell.series, one.predictions, sheets.get(one.cell.row.folder)
        if predictions is not None:
            pictures = [_mistake(task, predictions, sheet, mistake) for mistake in one.mistakes]
            gallery.mistakes.append((series, pictures, _count_wrong(predictions)))
        if one.embedding is not None:
            gallery.maps.append(_map(task, series, one.embedding, predictions, sheet))
            if one.embedding.neighbours.size:
                gallery.neighbours.append((series, _neighbours(task, one.embedding, predictions, sheet)))
    return gallery


def _find(cell: Cell, proof: Proof, gallery: Gallery) -> _Found:
    predictions, embedding = proof.predictions.get(cell.series.label), None
    try:
        embedding = load_embedding(cell.row.folder, cell.row.task, cell.row.weights)
    except Missing as missing:
        gallery.missing.append(f"{cell.series.name}: {missing}")
    mistakes = [] if predictions is None else worst_mistakes(predictions.targets, predictions.scores, MISTAKES)
    return _Found(cell, predictions, embedding, mistakes)


def _count_wrong(found: Predictions) -> int:
    """Images decided wrongly; 0 where an image has several labels, and wrong is no matter of yes or no."""
    return int((found.scores.argmax(axis=1) != found.targets).sum()) if found.targets.ndim == 1 else 0


def _sheets(task: Task, found: Sequence[_Found], gallery: Gallery) -> dict[Path, Sheet]:
    """One sheet a results folder, as ids of images count within the folder's own data; nothing on it is not shown."""
    sheets: dict[Path, Sheet] = {}
    for folder, name in dict.fromkeys((one.cell.row.folder, one.cell.row.task) for one in found):
        wanted = [i for one in found if one.cell.row.folder == folder for i in one.ids]
        try:
            kept = load_thumbnails(folder, name).of(wanted)
        except Missing as missing:
            gallery.missing.append(str(missing))
            continue
        if len(kept.rows):
            sheets[folder] = make_sheet(f"{task.anchor}-sheet-{len(sheets)}", kept)
    gallery.sheets = list(sheets.values())
    return sheets


def _mistake(task: Task, found: Predictions, sheet: Sheet | None, m: Mistake) -> Picture:
    classes, sure = task.one.classes, words.share(round(m.confidence, 3))
    if found.targets.ndim == 1:
        text, detail = f"is {classes[m.true]}", f"decided {classes[m.said]}, {sure} sure"
    else:
        text = f"has {classes[m.said]}" if m.true else f"has no {classes[m.said]}"
        detail = f"{'missed' if m.true else 'false alarm'}, {sure} sure"
    row = int(found.rows[m.index])
    return Picture(sheet, sheet.place(row) if sheet else None, text, detail)


def _neighbours(
    task: Task, embedding: Embedding, found: Predictions | None, sheet: Sheet | None
) -> list[tuple[Picture, list[Picture]]]:
    said = _names(task, found, embedding.queries)
    shown = []
    for i, query in enumerate(embedding.queries):
        own = int(embedding.query_labels[i])
        name = task.one.classes[own] if own >= 0 else said.get(int(query), ("", "", 0))[0]
        picture = Picture(sheet, sheet.place(query) if sheet else None, name, "asked")
        near = []
        for row, label, cosine in zip(
            embedding.neighbours[i], embedding.neighbour_labels[i], embedding.similarity[i], strict=True
        ):
            text = task.one.classes[int(label)] if label >= 0 else ""
            right = bool(label == own) if label >= 0 and own >= 0 else None
            near.append(Picture(sheet, sheet.place(row) if sheet else None, text, f"{cosine:.4f}", right))
        shown.append((picture, near))
    return shown


def _map(task: Task, series: Series, embedding: Embedding, found: Predictions | None, sheet: Sheet | None) -> Map:
    said = _names(task, found, embedding.sample)
    unknown = ("not known", "", -1)
    texts = [said.get(int(row), unknown) for row in embedding.sample]
    xy, height = on_map(embedding.xy, *MAP)
    legend = _legend(task)
    of_group = np.array([group for _, _, group in texts])
    groups = [Group(g, name, shapes(xy[of_group == g], g)) for g, name in enumerate(legend) if (of_group == g).any()]
    if (of_group < 0).any():
        groups.append(Group(len(legend), "not known", shapes(xy[of_group < 0], len(legend))))
    known: dict[str, int] = {}
    points = []
    for row, (x, y), (true, decided, _) in zip(embedding.sample, xy, texts, strict=True):
        place = sheet.place(row) if sheet else None
        column, line = place or (-1, -1)
        numbers = [known.setdefault(text, len(known)) for text in (true, decided)]
        points.append([float(x), float(y), column, line, *numbers])
    data = json.dumps({"texts": list(known), "points": points}, separators=(",", ":"), ensure_ascii=True)
    explained = tuple(words.share(round(float(e), 3)) for e in embedding.explained[:2])
    safe = Markup(data.replace("<", "\\u003c").replace("&", "\\u0026"))
    return Map(series, MAP[0], height, explained, groups, len(points), sheet, safe)  # type: ignore[arg-type]


def _legend(task: Task) -> list[str]:
    if task.one.kind == "multi-label":
        return ["no finding", "one finding", "several findings"]
    return task.one.classes


def _names(task: Task, found: Predictions | None, ids: np.ndarray) -> dict[int, tuple[str, str, int]]:
    """Of these test images: what each is, what was decided, the number of its group in the legend."""
    if found is None:
        return {}
    classes: Sequence[str] = task.one.classes
    named = {}
    for i in np.flatnonzero(np.isin(found.rows, ids)):
        row, target, score = found.rows[i], found.targets[i], found.scores[i]
        if found.targets.ndim == 1:
            decided = f"decided {classes[int(score.argmax())]}, {words.share(round(float(score.max()), 2))} sure"
            named[int(row)] = (classes[int(target)], decided, int(target))
        else:
            true = words.join(c for c, t in zip(classes, target, strict=True) if t == 1) or "no finding"
            above = words.join(c for c, s in zip(classes, score, strict=True) if s > 0.5) or "no finding"
            named[int(row)] = (true, f"decided {above}", min(int(target.sum()), 2))
    return named
