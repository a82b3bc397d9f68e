"""Result rows as tables for the terminal, 80 columns wide."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ssl_mednet.evaluation.names import short_names
from ssl_mednet.evaluation.results import Row

_WIDTH = 22  # of a name, characters
_NO_GROUPS = "the set names no groups"
_FROM_PROBE = ("linear_then_finetune", "few_shot_finetune")
_MARKS = {"better": "-", "worse": "+"}  # of the first weights over these
_TURNED = {"better": "worse", "worse": "better", "cannot tell": "unclear"}  # what A is to B, and what B is to A


def show(rows: list[Row], comparisons: list[dict[str, Any]] | None = None, console: Console | None = None) -> None:
    """Print for each task: all labels, with 95 % intervals and the best AUROC in bold; then fewer labels; corruptions.

    Args:
        comparisons: of weights with others; the column "vs. 1st" says how a row compares with the first weights of
            its task, and nothing where those have no such row.
    """
    console = console or Console()
    names = short_names(r["weights"] for r in rows)
    for task, of_task in groupby(rows, key=lambda r: r["task"]):
        own = list(of_task)
        first = next((r["weights"] for r in own if r["protocol"] != "majority"), "")
        with_first = [c for c in comparisons or [] if c["a"] == first]
        console.print(_full_table(task, own, names, with_first))
        fewer = [r for r in own if r["shots"] or (r["labels"] or 1.0) < 1]
        if fewer:
            console.print(_fewer_labels(fewer, names, with_first))
        robust = [r for r in own if r["protocol"] == "robustness"]
        if robust:
            console.print(_robustness(robust, names))


def _full_table(task: str, rows: list[Row], names: dict[str, str], comparisons: list[dict[str, Any]]) -> Table:
    full = [r for r in rows if r["labels"] == 1.0 and "auroc" in r["metrics"]]
    first = full[-1]
    title = f"{task}: {len(first['classes'])} classes, {first['n_train']} training and {first['n']} test images"
    table = _table(title, _caption(first), "weights", "probe")
    for name in ("AUROC", "balanced acc.", "vs. 1st"):
        table.add_column(name, no_wrap=True)
    best = max(r["metrics"]["auroc"]["value"] for r in full)
    for row in sorted(full, key=lambda r: r["protocol"] == "majority"):
        cells = [_cell(row["metrics"][m]) for m in ("auroc", "balanced_accuracy")]
        if row["metrics"]["auroc"]["value"] == best:
            cells[0] = f"[bold]{cells[0]}[/bold]"
        named = ("largest class", "none") if row["protocol"] == "majority" else (_name(row, names), _probe(row))
        table.add_row(*named, *cells, _verdict(row, comparisons))
    return table


def _fewer_labels(rows: list[Row], names: dict[str, str], comparisons: list[dict[str, Any]]) -> Table:
    """AUROC by the number of labels, a line for each backbone and way to probe it, with a mark where it differs."""
    amounts = sorted({_amount(r) for r in rows}, key=lambda a: (a[0] == 0, a))
    title = "fewer labels: AUROC by labels a class, or by share of all labels"
    drawn = max((r["draws"] for r in rows if "draws" in r), default=0)
    caption = f"mean over {drawn} draws of the labels, the same for all weights" if drawn > 1 else ""
    if any("history" in r for r in rows):
        caption += f"{'; ' if caption else ''}fine-tuned: one draw of the labels"
    elif not caption:
        caption = "one draw of the labels"
    verdicts = {id(row): _MARKS.get(_compared(row, comparisons), "") for row in rows}
    if any(verdicts.values()):
        caption += "; + better, - worse than the first weights, by the 95 % interval of the paired difference"
    caption += "" if rows[0]["grouped"] else f"; {_NO_GROUPS}"
    table = _table(title, caption, "weights", "probe")
    for shots, share in amounts:
        table.add_column(str(shots) if shots else f"{100 * share:g} %", no_wrap=True)
    lines: dict[tuple[str, str], dict[tuple[int, float], str]] = {}
    for row in rows:
        lines.setdefault((_name(row, names), _probe(row)), {})[_amount(row)] = (
            _three(row["metrics"]["auroc"]["value"]) + verdicts[id(row)]
        )
    for named, values in lines.items():
        table.add_row(*named, *(values.get(amount, "") for amount in amounts))
    return table


def _robustness(rows: list[Row], names: dict[str, str]) -> Table:
    caption = f"corrupted: mean over corruptions and severities; {_intervals(rows[0])}"
    table = _table("robustness: balanced error of the linear probe", caption, "weights")
    for name in ("clean images", "corrupted images"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            _name(row, names), *(_cell(row["metrics"][m]) for m in ("clean_balanced_error", "balanced_error"))
        )
    return table


def _table(title: str, caption: str, *columns: str) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _name(row: Row, names: dict[str, str]) -> str:
    name = names[row["weights"]] + (f" seed {row['seed']}" if row["seed"] else "")
    return name if len(name) <= _WIDTH else name.replace(":", ":\n  ", 1)


def _probe(row: Row) -> str:
    if row["protocol"] in _FROM_PROBE:  # which an untrained net does not start from
        return "probe, then finetune" if "head_strength" in row["chosen_on_val"] else "finetune"
    return str(row["protocol"]).removeprefix("few_shot_")


def _amount(row: Row) -> tuple[int, float]:
    return row["shots"] or 0, row["labels"] or 0.0


def _verdict(row: Row, comparisons: list[dict[str, Any]]) -> str:
    """How the row compares with the first weights by AUROC."""
    return _TURNED.get(_compared(row, comparisons), "")


def _compared(row: Row, comparisons: list[dict[str, Any]]) -> str:
    """How the first weights compare with the row by AUROC; empty where they were not compared."""
    same = ("task", "protocol", "labels", "shots", "seed")
    for c in comparisons:
        if c["b"] == row["weights"] and c["metric"] == "auroc" and all(c[k] == row[k] for k in same):
            return str(c["verdict"])
    return ""


def _cell(interval: dict[str, float]) -> str:
    """``.912 .897-.926``: the value and its interval."""
    value, low, high = (_three(interval[k]) for k in ("value", "low", "high"))
    return f"{value} {low}-{high}"


def _three(value: float) -> str:
    """Three digits in four characters."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}".removeprefix("0")


def _intervals(row: Row) -> str:
    if not row["grouped"]:
        return f"95 % intervals by bootstrap over images: {_NO_GROUPS}"
    alone = f", {row['ungrouped']} images without one alone" if row["ungrouped"] else ""
    return f"95 % intervals by bootstrap over groups{alone}"


def _caption(row: Row) -> str:
    notes = [_intervals(row)]
    if sum(row["copies"].values()):
        exact, near = row["copies"]["exact"], row["copies"]["near"]
        notes.append(f"of the test images {exact} are training images too, and {near} nearly so")
    if row["splits_made"]:
        notes.append(f"{' and '.join(row['splits_made'])} split made here")
    if row["skipped"]:
        notes.append(f"{row['skipped']} files skipped")
    return "; ".join(notes)
