"""A pretraining run folder -> recipe, curves, pictures and model card, as the report shows them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_mednet.errors import UserError
from ssl_mednet.recipe import read_yaml
from ssl_mednet.reporting.rows import without_home

RECIPE, ENVIRONMENT, CURVES, SPEED = "recipe.yaml", "environment.json", "metrics.csv", "speed.csv"
ALARMS, QUARANTINE = "alarms.json", "quarantine.csv"
Curve = tuple[list[float], list[float]]


@dataclass
class PretrainingRun:
    """What a run wrote about itself.

    Args:
        folder: of the run, absolute.
        recipe: as text, without anybody's home folder.
        curves: column of ``metrics.csv`` -> (steps, values).
        speed: the same of ``speed.csv``.
        alarms: of collapse: step, what was seen, what to try.
        faults: what went wrong and was survived, in words.
        pictures: name -> PNG.
        card: the rows of the model card's table.
        sha256: of the weights' file; empty where there are none yet.
        notes: what is missing.
    """

    folder: Path
    name: str
    recipe: str
    environment: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    speed: dict[str, Curve] = field(default_factory=dict)
    alarms: list[tuple[str, str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    card: list[tuple[str, str]] = field(default_factory=list)
    sha256: str = ""
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path) -> PretrainingRun:
    """The run in ``folder``; only its recipe must be there.

    Raises:
        UserError: the recipe is not YAML, or another file is broken.
    """
    content = read_yaml(folder / RECIPE, "recipes")[1]
    run = PretrainingRun(folder.resolve(), str(content.get("name") or folder.name), _text(folder / RECIPE))
    if (folder / ENVIRONMENT).is_file():
        run.environment = _json(folder / ENVIRONMENT)
    else:
        run.notes.append(f"{ENVIRONMENT} is missing")
    if (folder / CURVES).is_file():
        run.curves = _curves(folder / CURVES)
    else:
        run.notes.append(f"{CURVES} is missing: no training curves")
    if (folder / SPEED).is_file():
        run.speed = _curves(folder / SPEED)
    run.alarms, run.faults = _alarms(folder / ALARMS), _faults(folder, run)
    run.pictures = {p.stem: p.read_bytes() for p in sorted((folder / "pictures").glob("*.png"))}
    artifact = folder / "backbone"
    if (artifact / "config.json").is_file():
        run.sha256 = str(_json(artifact / "config.json").get("ssl_mednet", {}).get("sha256", ""))
        run.card = _card(artifact / "README.md") if (artifact / "README.md").is_file() else []
    else:
        run.notes.append("it has no backbone yet: the pretraining is not finished")
    return run


def _text(path: Path) -> str:
    try:
        return without_home(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    content = _parsed(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, not {type(content).__name__}")
    return content


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read: {error}", "leave the folder out") from error


def _alarms(path: Path) -> list[tuple[str, str, str]]:
    """Step, what was seen, what to try, of each; none where there is no file."""
    content = _parsed(path) if path.is_file() else []
    try:
        return [(str(one["step"]), str(one["said"]), str(one["advice"])) for one in content]
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: is no list of alarms", "leave the folder out") from error


def _faults(folder: Path, run: PretrainingRun) -> list[str]:
    """What the run skipped and went on."""
    faults = []
    skipped = run.curves.get("skipped_steps", ([], []))[1]
    if skipped and skipped[-1]:
        faults.append(f"{skipped[-1]:g} updates were skipped: their loss or gradient was not finite")
    if (folder / QUARANTINE).is_file():
        lines = list(csv.reader(_text(folder / QUARANTINE).splitlines()))
        if len(lines) > 1:
            faults.append(f"{len(lines) - 1} images could not be used; {QUARANTINE} of the run says which and why")
    return faults


def _curves(path: Path) -> dict[str, Curve]:
    """Every column against ``step``; empty cells are left out."""
    curves: dict[str, Curve] = {}
    try:
        for row in csv.DictReader(_text(path).splitlines()):
            step = float(row.pop("step"))
            for name, cell in row.items():
                if cell:
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(float(cell))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is no table of curves: {error}", "leave the folder out") from error
    return curves


def _card(path: Path) -> list[tuple[str, str]]:
    """The first Markdown table of two columns."""
    cells = [line.strip().strip("|").split("|") for line in _text(path).splitlines() if line.startswith("|")]
    pairs = [(a.strip(), b.strip().strip("`")) for a, b in (c for c in cells if len(c) == 2)]
    return [(a, b) for a, b in pairs if a and set(a) - set("- :")]
