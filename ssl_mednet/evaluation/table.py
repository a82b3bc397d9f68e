"""Result rows as a table for the terminal."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def show(rows: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print one table a task: weights by protocol, each figure with its 95 % interval, the best AUROC in bold."""
    console = console or Console()
    for task, of_task in groupby(rows, key=lambda r: r["task"]):
        console.print(_table(task, list(of_task)))


def _table(task: str, rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    title = f"{task}: {len(first['classes'])} classes, {first['n_train']} training and {first['n']} test images"
    table = Table(title=title, caption=_caption(first), title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.add_column("weights", overflow="fold")
    table.add_column("probe")
    for name in ("AUROC", "accuracy", "balanced acc."):
        table.add_column(name, no_wrap=True)
    best = max(r["metrics"]["auroc"]["value"] for r in rows)
    for row in rows:
        metrics = row["metrics"]
        cells = [_cell(metrics[m]) for m in ("auroc", "accuracy", "balanced_accuracy")]
        if metrics["auroc"]["value"] == best:
            cells[0] = f"[bold]{cells[0]}[/bold]"
        table.add_row(_short(row["weights"]), row["protocol"], *cells)
    if first["majority_accuracy"] is not None:
        table.add_row(
            "largest class", "none", ".500", _three(first["majority_accuracy"]), _three(1 / len(first["classes"]))
        )
    return table


def _short(weights: str) -> str:
    return weights if weights.startswith("random:") else Path(weights).name or weights


def _cell(interval: dict[str, float]) -> str:
    """``.912 .897-.926``: the value and its interval."""
    value, low, high = (_three(interval[k]) for k in ("value", "low", "high"))
    return f"{value} {low}-{high}"


def _three(value: float) -> str:
    """Three digits in four characters."""
    return f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}".removeprefix("0")


def _caption(row: dict[str, Any]) -> str:
    by = "by group" if row["grouped"] else "by image: the set names no groups"
    notes = [f"value and 95 % interval, bootstrapped {by}"]
    if row["splits_made"]:
        notes.append(f"{' and '.join(row['splits_made'])} split made here")
    if row["skipped"]:
        notes.append(f"{row['skipped']} files skipped")
    return "; ".join(notes)
