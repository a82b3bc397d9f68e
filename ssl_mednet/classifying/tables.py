"""What a classifier said of images, and the tables that it is written to while more is asked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ssl_mednet.classifying.model import Model
from ssl_mednet.errors import UserError
from ssl_mednet.files import check_file, replacing, write_errors
from ssl_mednet.progress import warn

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


def shown(name: str) -> str:
    """A name of a file as text that can be written: bytes of it that are not UTF-8 become ``\\udcff`` and the like.

    A carriage return becomes ``\\r``, for csv does not quote one, and readers take it for the end of a line.
    """
    return name.encode("utf-8", "backslashreplace").decode().replace("\r", "\\r")


def as_csv(model: Model, found: Predictions) -> str:
    """One line an image, then one a file that got none, with the reason in the last column."""
    buffer = io.StringIO()
    lines = _lines(buffer)
    lines.writerow(_head(model))
    lines.writerows(map(_cells, found.rows))
    lines.writerows(_refused(model, *one) for one in found.refused)
    return buffer.getvalue()


def as_json(model: Model, found: Predictions) -> str:
    """The rows, what was refused, and what the figures stand on."""
    content = {
        "model": model.folder.name,
        "classes": model.classes,
        "thresholds": model.about["thresholds"],
        "unlike_beyond": model.unlike.threshold,
        "predictions": [vars(row) | {"file": shown(row.file)} for row in found.rows],
        "refused": [{"file": shown(file), "reason": shown(reason)} for file, reason in found.refused],
    }
    return json.dumps(content, indent=1) + "\n"


def partial_of(path: Path) -> Path:
    """Where the rows of a table are until it is whole."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def _side(partial: Path) -> Path:
    """The file that says what the rows of a partial table depend on."""
    return partial.with_name(f"{partial.name}.model")


def earlier(path: Path | None, model: Model, resume: bool, said: str) -> list[Prediction]:
    """The rows that a run which ended early left of files that it was done with; none where there was no such run.

    Files that it refused, or a part of, are not among them, nor is the last one, which may have more rows.

    Args:
        said: what the rows depend on: the model and the modality; rows of others are not gone on with.

    Raises:
        UserError: there are rows and they are not to be resumed, or they cannot be.
    """
    if resume and (path is None or path.suffix != ".csv"):
        raise UserError("--resume goes on with a table that --out names, .csv")
    if path is None or not (partial := partial_of(path)).is_file():
        return []
    text = partial.read_text(encoding="utf-8", errors="replace")  # a kill may have cut a letter in two
    lines = [*csv.reader(io.StringIO(text, newline=""))] if path.suffix == ".csv" else []
    if not (lines[1:] or (path.suffix != ".csv" and partial.stat().st_size)):
        return []
    if not resume:
        go_on = "--resume goes on with them; or " if path.suffix == ".csv" else ""
        raise UserError(f"{partial}: holds predictions of a run that ended early", f"{go_on}remove it")
    kept = _side(partial)
    if lines[0] != _head(model) or not kept.is_file() or kept.read_text() != said:
        raise UserError(f"{partial}: is of another model or --modality", "remove it, or name another --out")
    whole = [cells for cells in lines[1:] if len(cells) == len(lines[0])]  # a kill may have cut the last one off
    refused = {cells[0] for cells in whole if cells[-1]}
    try:
        rows = [_row(model, cells) for cells in whole if not cells[-1]]
    except ValueError as error:
        raise UserError(f"{partial}: was changed, a number in it is none ({error})", "remove it") from error
    return [row for row in rows if row.file not in refused and row.file != rows[-1].file]


def _row(model: Model, cells: list[str]) -> Prediction:
    file, index, predicted, *shares, distance, unlike, _ = cells
    said = dict(zip(model.classes, map(float, shares), strict=True))
    return Prediction(file, int(index), predicted, said, float(distance), unlike == "1")


@contextmanager
def table(path: Path, model: Model, found: Predictions, said: str) -> Iterator[Callable[[Sequence[Prediction]], None]]:
    """A file of ``found`` that is whole or not there; call what is yielded with the rows as they come.

    Until the end there is ``NAME.partial.csv`` beside it, with the rows of ``found`` so far and what was refused by
    then (JSON gets both at the end). Where the block ends badly it stays, if it has a row; a warning names it.

    Args:
        said: what the rows depend on, as :func:`earlier` wants to know it.

    Raises:
        WriteError: nothing can be written there.
    """
    partial, streamed, told = partial_of(path), path.suffix == ".csv", 0
    check_file(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if streamed:
            _side(partial).write_text(said)
    with write_errors(path), replacing(partial) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if streamed:
            _lines(file).writerows([_head(model), *map(_cells, found.rows)])
    with write_errors(path):
        file = partial.open("a", encoding="utf-8", newline="")
    lines = _lines(file)

    def add(rows: Sequence[Prediction]) -> None:
        nonlocal told
        if streamed:
            refused = found.refused[told:]
            told += len(refused)
            # First what was refused: a row of a later file proves then that nothing of an earlier one is missing.
            lines.writerows([*(_refused(model, *one) for one in refused), *map(_cells, rows)])
            file.flush()  # a process that is killed loses none of them

    try:
        with file:
            try:
                yield add
            except BaseException:
                if streamed:
                    add([])
                else:
                    file.write(as_json(model, found))
                raise
        with (
            write_errors(path),
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as whole,
        ):
            whole.write((as_csv if streamed else as_json)(model, found))
        partial.unlink()
        _side(partial).unlink(missing_ok=True)
    except BaseException:
        if found.rows:
            go_on = "; --resume goes on with them" if streamed else ""
            warn(f"ended early: {partial} holds the predictions of {len(found.rows)} images{go_on}")
        else:
            partial.unlink(missing_ok=True)
            _side(partial).unlink(missing_ok=True)
        raise


def _lines(file: TextIO) -> Any:
    return csv.writer(file, lineterminator="\n")


def _head(model: Model) -> list[str]:
    return ["file", "index", "predicted", *(f"p_{c}" for c in model.classes), "distance", "unlike_training", "refused"]


def _cells(row: Prediction) -> list[Any]:
    shares = [f"{p:.6f}" for p in row.probabilities.values()]
    return [shown(row.file), row.index, row.predicted, *shares, f"{row.distance:.2f}", int(row.unlike), ""]


def _refused(model: Model, file: str, reason: str) -> list[str]:
    return [shown(file), *[""] * (len(_head(model)) - 2), shown(reason)]
