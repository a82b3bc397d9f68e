"""Folders -> what the report is made from. What is missing becomes a note in the report; what is broken is an error."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_mednet.errors import UserError
from ssl_mednet.evaluation.names import file_stem
from ssl_mednet.recipe import parse
from ssl_mednet.reporting.pretraining import RECIPE, PretrainingRun, read_run
from ssl_mednet.reporting.rows import Comparison, Row, Session

RESULTS, COMPARISONS, SESSION, GALLERY = "results.json", "comparisons.json", "run.json", "gallery"
UNFINISHED = "rows"  # where an evaluation keeps its rows until all are there
Array = np.ndarray


class Missing(Exception):
    """Something that the report can do without; the message is for the reader of the report."""


@dataclass(frozen=True)
class Predictions:
    """Of the test images of one row.

    Args:
        scores: ``[N, C]`` probabilities.
        targets: ``[N]`` class numbers, or ``[N, L]`` of 0 and 1.
        rows: ``[N]`` ids of the images.
    """

    scores: Array
    targets: Array
    rows: Array


@dataclass(frozen=True)
class Thumbnails:
    """Pictures ``[M, S, S, C]`` uint8 of the images with ids ``rows`` ``[M]``."""

    rows: Array
    pictures: Array

    def of(self, ids: Sequence[int]) -> Thumbnails:
        """Those of these images."""
        chosen = np.isin(self.rows, ids)
        return Thumbnails(self.rows[chosen], self.pictures[chosen])


@dataclass(frozen=True)
class Embedding:
    """How one set of weights sees the test images.

    Args:
        sample, xy: ids ``[n]`` and their place ``[n, 2]`` on the two main axes of the features.
        explained: ``[2]`` share of the variance along each axis.
        queries, neighbours, similarity: test ids ``[q]``, their nearest training ids and cosines ``[q, k]``.
        query_labels, neighbour_labels: class numbers ``[q]``, ``[q, k]``, -1 where there are none.
    """

    sample: Array
    xy: Array
    explained: Array
    queries: Array
    neighbours: Array
    similarity: Array
    query_labels: Array
    neighbour_labels: Array


@dataclass
class Study:
    """All that the report shows.

    Args:
        differences: comparisons by (key of row a, key of row b, metric).
        notes: what is missing or odd, for the reader.
    """

    rows: list[Row] = field(default_factory=list)
    differences: dict[tuple[str, str, str], Comparison] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    runs: list[PretrainingRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def difference(self, a: Row, b: Row, metric: str) -> Comparison | None:
        """``a`` less ``b``, whichever way round it was written."""
        found = self.differences.get((a.key, b.key, metric))
        if found is None and (other := self.differences.get((b.key, a.key, metric))):
            found = other.turned()
        return found


def load_study(folders: Iterable[str | Path]) -> Study:
    """Results folders and pretraining run folders, in the order given; a run's own ``results/`` come with it.

    Raises:
        UserError: a folder that is neither, or a file in it that is not what it should be.
    """
    study = Study()
    for folder in dict.fromkeys(Path(f).expanduser() for f in folders):
        parts = [p for p in (folder, folder / "results") if (p / RESULTS).is_file()]
        is_run = (folder / RECIPE).is_file()
        if not is_run and folder / RESULTS not in [p / RESULTS for p in parts]:
            raise _not_ours(folder)
        if is_run:
            study.runs.append(read_run(folder))
        for part in parts:
            _add_results(study, part)
    if not study.rows and not study.runs:
        raise UserError("nothing to report: no folder was named, or all results are empty", "ssl-mednet report RESULTS")
    study.notes += [f"{run.name}: {note}" for run in study.runs for note in run.notes]
    return study


def _not_ours(folder: Path) -> UserError:
    if not folder.is_dir():
        return UserError(f"{folder}: no such folder", "give results folders or pretraining run folders")
    if (folder / UNFINISHED).is_dir():
        hint = "`ssl-mednet evaluate` with the same --out goes on where it stopped"
        return UserError(f"{folder}: its evaluation is not finished, there is no {RESULTS}", hint)
    below = sorted({p.parent for name in (RESULTS, RECIPE) for p in folder.glob(f"*/{name}")})
    hint = f"did you mean {', '.join(map(str, below[:5]))}?" if below else "`ssl-mednet evaluate --out` writes one"
    return UserError(f"{folder}: has neither {RESULTS} nor {RECIPE}", hint)


def _add_results(study: Study, folder: Path) -> None:
    rows = [
        parse(Row, _record(raw, folder / RESULTS) | {"folder": folder}, f"{folder / RESULTS}: row {i}")
        for i, raw in enumerate(_list(folder / RESULTS), 1)
    ]
    if not rows:
        study.notes.append(f"{_shown(folder / RESULTS)} is empty")
    _merge(study, folder, rows)
    _add_comparisons(study, folder, rows)
    if (folder / SESSION).is_file():
        content = _record(_json(folder / SESSION), folder / SESSION) | {"folder": folder}
        study.sessions.append(parse(Session, content, str(folder / SESSION)))
    else:
        study.notes.append(f"{_shown(folder / SESSION)} is missing: how and when these results were made is not known")


def _merge(study: Study, folder: Path, rows: list[Row]) -> None:
    """Rows that are new; where others have the name of their weights, the folder goes beside it."""
    known = {row.key: row for row in study.rows}
    new = [row for row in rows if row.key not in known]
    groups: dict[tuple[str, tuple[int, str]], list[Row]] = {}
    for row in new:
        groups.setdefault((row.weights, row.made_of), []).append(row)
    labels: dict[tuple[str, tuple[int, str]], str] = {}
    for same, group in groups.items():
        labels[same] = _label(group, study.rows, {*labels.values()}, folder)
    study.rows += [row.model_copy(update={"label": labels[row.weights, row.made_of]}) for row in new]
    for row in rows:
        if row.key in known and str(row.metrics) != str(known[row.key].metrics):
            where = f"{row.weights} on {row.task} ({row.protocol})"
            kept = known[row.key].folder
            others = f"is also in {_shown(folder)} with other figures"
            study.notes.append(f"{where} {others}; those of {_shown(kept)} are shown")


def _label(group: Sequence[Row], before: Sequence[Row], taken: set[str], folder: Path) -> str:
    """Of the weights of these rows: that of the same weights before, unless these were measured in the same way too."""
    name, made_of = group[0].weights, group[0].made_of
    places = {(row.test_set, row.setting) for row in group}
    labels = dict.fromkeys([name, *(row.label for row in before if row.weights == name)])
    for label in labels:
        there = [row for row in before if row.label == label]
        same = all(row.made_of == made_of and (row.test_set, row.setting) not in places for row in there)
        if same and label not in taken:
            return label
    fresh = f"{name} [{_shown(folder)}]"
    return fresh if fresh not in {*labels, *taken} else f"{name} [{_shown(folder)}, {len(labels) + len(taken)}]"


def _shown(path: Path) -> str:
    """A path as the report names it: without where on this machine it lies."""
    return "/".join(path.resolve().parts[-2:])


def _add_comparisons(study: Study, folder: Path, rows: list[Row]) -> None:
    path = folder / COMPARISONS
    if not path.is_file():
        if len({row.weights for row in rows}) > 1:
            study.notes.append(f"{_shown(path)} is missing: no verdicts on which weights are better")
        return
    key = {(row.task, *row.setting, row.weights): row.key for row in rows}
    for i, raw in enumerate(_list(path), 1):
        one = parse(Comparison, _record(raw, path), f"{path}: entry {i}")
        setting = (one.task, one.protocol, one.labels, one.shots, one.seed)
        a, b = key.get((*setting, one.a)), key.get((*setting, one.b))
        if a and b:
            study.differences.setdefault((a, b, one.metric), one)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "evaluate again, or leave the folder out") from error


def _list(path: Path) -> list[Any]:
    content = _json(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: must hold a list, not {type(content).__name__}", "evaluate again")
    return content


def _record(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: an entry must hold keys and values, not {type(content).__name__}", "evaluate again")
    return content


# --- arrays -----------------------------------------------------------------------------------------------------------


def load_predictions(row: Row) -> Predictions:
    """The predictions behind a row.

    Raises:
        Missing: none were written, the file is not there or does not fit the row.
    """
    if not row.predictions:
        raise Missing("its predictions were not kept")
    found = _arrays(row.folder / row.predictions, ("scores", "targets", "rows"))
    scores, targets = found["scores"].astype(np.float64), found["targets"].astype(np.int64)
    wanted = {(row.n,), (row.n, len(row.classes))} if row.kind == "multi-label" else {(row.n,)}
    if scores.shape != (row.n, len(row.classes)) or targets.shape not in wanted or found["rows"].shape != (row.n,):
        raise Missing(f"{row.predictions} holds other images or classes than its row says")
    if not np.isfinite(scores).all():
        raise Missing(f"{row.predictions} holds scores that are no numbers")
    return Predictions(scores, targets, found["rows"].astype(np.int64))


def load_thumbnails(folder: Path, task: str) -> Thumbnails:
    """The pictures of a task's images.

    Raises:
        Missing: there are none, or the file is broken.
    """
    path = folder / GALLERY / f"{file_stem(task)}.npz"
    if not path.is_file():
        raise Missing("no pictures were kept")
    found = _arrays(path, ("rows", "thumbnails"))
    rows, pictures = found["rows"].astype(np.int64), found["thumbnails"]
    fits = pictures.ndim == 4 and pictures.shape[3] in (1, 3) and len(rows) == len(pictures) > 0
    if not fits or pictures.dtype != np.uint8:
        raise Missing(f"{path.name} holds no pictures [M, S, S, C]")
    return Thumbnails(rows, pictures)


def load_embedding(folder: Path, task: str, weights: str) -> Embedding:
    """How ``weights`` see the test images of a task.

    Raises:
        Missing: it was not written, or the file is broken.
    """
    path = folder / GALLERY / f"{file_stem(task)}--{file_stem(weights)}.npz"
    if not path.is_file():
        raise Missing("no map of the features was kept")
    one = Embedding(**_arrays(path, tuple(Embedding.__dataclass_fields__)))
    fits = one.xy.shape == (len(one.sample), 2) and one.neighbours.shape == one.similarity.shape
    if not fits or not len(one.sample) or not np.isfinite(one.xy).all():
        raise Missing(f"{path.name} does not fit together")
    return one


def _arrays(path: Path, names: tuple[str, ...]) -> Mapping[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except FileNotFoundError as error:
        raise Missing(f"{path.parent.name}/{path.name} is missing") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Missing(f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__})") from error
