"""Rows -> Markdown, CSV and LaTeX. All three say the same: every row with its intervals, and how they were made."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ssl_mednet.evaluation.names import short_name
from ssl_mednet.reporting import words
from ssl_mednet.reporting.references import Beside
from ssl_mednet.reporting.rows import Estimate, source_name
from ssl_mednet.reporting.tasks import ALL_METRICS, NOT_SEEDS, ROBUST_METRICS, Cell, Task

ROBUST = "robustness to corrupted images"
SPREAD = "after ± the deviation between draws of labels"
P_NOTE = "p values are of a paired bootstrap and not corrected for the number of comparisons."


@dataclass(frozen=True)
class Table:
    """Text cells of one task: a head, lines of the same length, and what must be said beside them.

    Args:
        settings: how many columns after the first say what was done.
    """

    title: str
    caption: str
    head: list[str]
    lines: list[list[str]]
    settings: int


def all_cells(task: Task) -> Iterator[Cell]:
    """Every row of a task: protocols in the report's order, labels from few to all, then weights."""
    for protocol in task.every_protocol:
        for labels, shots in task.settings(protocol):
            for cell in task.cells(protocol, labels, shots):
                yield from (task.cell(row) for row in (cell.row, *cell.other_seeds))


def table_of(task: Task, robust: bool = False) -> Table | None:
    """The rows of a task that have an AUROC, or those of its robustness; None where there are none."""
    cells = [c for c in all_cells(task) if c.row.robust is robust]
    return _table(task, cells, ROBUST_METRICS, ROBUST) if robust else _table(task, cells, ALL_METRICS, spread=True)


def _table(
    task: Task, cells: Sequence[Cell], wanted: Sequence[str], part: str = "", spread: bool = False
) -> Table | None:
    if not cells:
        return None
    metrics = [m for m in wanted if any(m in c.row.metrics for c in cells)]
    drawn, several_seeds = any(c.row.labels_drawn for c in cells), len({c.row.seed for c in cells}) > 1
    settings = ["protocol", "labels", *(["draws"] if drawn else [])]
    head = ["weights", *settings, *(["seed"] if several_seeds else [])]
    head += [words.metric_name(m) for m in metrics] + [f"compared with {task.series[task.first].name}"]
    lines = []
    for cell in cells:
        row = cell.row
        line = [cell.series.name, words.protocol_name(row.protocol), words.labels_used(row.labels, row.shots)]
        line += [str(row.labels_drawn or "")] if drawn else []
        line += [str(row.seed)] if several_seeds else []
        for m in metrics:
            deviation = row.spread.get(m, math.nan) if spread else math.nan
            after = "" if math.isnan(deviation) else f" ± {words.number(deviation)}"
            line.append(interval(row.metric(m)) + after if m in row.metrics else "")
        lines.append([*line, verdict(task, cell)])
    caption = task.robust_caption if part == ROBUST else task.caption
    caption += f"; {SPREAD}" if spread and any(c.row.spread for c in cells) else ""
    return Table(f"{task.name}: {part}" if part else task.name, caption, head, lines, len(settings))


def interval(estimate: Estimate) -> str:
    """``"0.912 [0.897, 0.926]"``; without brackets where there is no interval."""
    value = words.number(estimate.value)
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return value
    return f"{value} [{words.number(estimate.low)}, {words.number(estimate.high)}]"


def verdict(task: Task, cell: Cell) -> str:
    """``"better, p = 0.012"``, and than what if not than the first weights; empty where nothing was compared."""
    if not cell.compared or not cell.reference:
        return ""
    than = "" if cell.reference.label == task.first else f" (with {cell.reference.name})"
    return f"{cell.compared.verdict}, {words.p_value(cell.compared.p)}{than}"


def tables(tasks: Sequence[Task]) -> list[Table]:
    """All tables, task by task."""
    found = [table_of(task, robust) for task in tasks for robust in (False, True)]
    return [table for table in found if table is not None]


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(title: str, tasks: Sequence[Task], references: dict[str, list[Beside]], notes: Sequence[str]) -> str:
    """The report's tables as one Markdown file."""
    parts = [f"# {title}", f"{NOT_SEEDS} {P_NOTE}"]
    parts += ["\n".join(["What is missing:", "", *(f"- {_md(note)}" for note in notes)])] if notes else []
    for table in tables(tasks):
        parts += [f"## {_md(table.title)}", _grid(table.head, table.lines, _md), f"{_md(table.caption)}."]
    for name, pairs in references.items():
        if pairs:
            parts += [f"## {_md(name)}: published results", _grid(*published(pairs), _md), *sources(pairs)]
    return "\n\n".join(parts) + "\n"


def published(pairs: Sequence[Beside]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of published results."""
    head = ["published", "size", "AUROC", "accuracy", "ours beside it", "AUROC", "accuracy"]
    lines = []
    for pair in pairs:
        result, row = pair.published, pair.row
        ours = f"{short_name(row.label)}, {words.protocol_name(row.protocol)}, {row.image_size} px"
        figures = [interval(row.metric(m)) for m in ("auroc", "accuracy")]
        said = [f"{result.method} on {result.set}", f"{result.size} px", f"{result.auc:.3f}", f"{result.acc:.3f}"]
        lines.append([*said, ours, *figures, pair.same_images, pair.same_protocol])
    return [*head, "same images and splits?", "same protocol?"], lines


def sources(pairs: Sequence[Beside]) -> list[str]:
    """Where the published figures are from, and what else is to be said of them."""
    return list(dict.fromkeys(f"{p.source}: {p.protocol}.{p.published.note and ' ' + p.published.note}" for p in pairs))


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]], escape: Callable[[str], str]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (map(escape, head), rule, *(map(escape, x) for x in lines))
    )


def _md(text: str) -> str:
    for mark in "\\`*_<>|":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


# --- CSV --------------------------------------------------------------------------------------------------------------

_FACTS = ("task", "source", "kind", "classes", "protocol", "labels", "shots", "seed", "weights", "image_size", "draws")
_COUNTS = ("n_train", "n_val", "n", "intervals_by", "splits_made", "skipped")
_VERDICT = ("compared_with", "compared_by", "difference", "difference_low", "difference_high", "p", "verdict")
_PROOF = ("architecture", "weights_sha256", "data_fingerprint")


def as_csv(tasks: Sequence[Task]) -> str:
    """One line a row with full precision; what is not defined is ``n/a``, what does not apply is empty."""
    names = [m for m in (*ALL_METRICS, *ROBUST_METRICS) if any(m in r.metrics for t in tasks for r in t.rows)]
    spread = [m for m in names if any(m in r.spread for t in tasks for r in t.rows)]
    figures = [column for m in names for column in (m, f"{m}_low", f"{m}_high")] + [f"{m}_spread" for m in spread]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*_FACTS, *_COUNTS, *figures, *_VERDICT, *_PROOF], restval="", lineterminator="\n")
    writer.writeheader()
    for task in tasks:
        for cell in all_cells(task):
            writer.writerow(_csv_row(task, cell))
    return buffer.getvalue()


def _csv_row(task: Task, cell: Cell) -> dict[str, object]:
    row, compared, reference = cell.row, cell.compared, cell.reference
    found: dict[str, object] = {name: getattr(row, name) for name in (*_FACTS, *_COUNTS, *_PROOF) if hasattr(row, name)}
    found |= {"task": task.name, "source": source_name(row.source), "weights": cell.series.name}
    found |= {"classes": len(row.classes), "splits_made": " ".join(row.splits_made), "draws": row.labels_drawn}
    found["intervals_by"] = "group" if row.grouped else "image: no groups"
    for name, estimate in row.metrics.items():
        if name in (*ALL_METRICS, *ROBUST_METRICS):
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    found |= {f"{name}_spread": value for name, value in row.spread.items() if name in ALL_METRICS}
    if compared and reference:
        values = (reference.name, compared.metric, compared.value, compared.low, compared.high)
        found |= dict(zip(_VERDICT, (*values, compared.p, compared.verdict), strict=True))
    return {
        k: words.NOTHING if isinstance(v, float) and math.isnan(v) else v for k, v in found.items() if v is not None
    }


# --- LaTeX ------------------------------------------------------------------------------------------------------------

_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u00a0": "~",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
}


def latex(tasks: Sequence[Task]) -> str:
    """Tables that fit a page: two figures a row, all labels and fewer apart; needs booktabs and adjustbox."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{adjustbox}"]
    for i, table in enumerate((table for task in tasks for table in _short_tables(task)), 1):
        caption = f"{table.title}: {table.caption}. {NOT_SEEDS} {P_NOTE}"
        kept = [0, *range(1 + table.settings, len(table.head))]
        parts += [
            r"\begin{table}",
            rf"\caption{{{_tex(caption)}}}",
            rf"\label{{tab:ssl-mednet-{i}}}",
            r"\footnotesize",
            r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.8\textheight}",
            rf"\begin{{tabular}}{{{'l' * len(kept)}}}",
            r"\toprule",
            " & ".join(_tex(table.head[k]) for k in kept) + r" \\",
        ]
        for setting, lines in groupby(table.lines, key=lambda line: line[1 : 1 + table.settings]):
            parts += [r"\midrule", rf"\multicolumn{{{len(kept)}}}{{l}}{{{_tex(_setting(table.head, setting))}}} \\"]
            parts += [" & ".join(_tex(line[k]) for k in kept) + r" \\" for line in lines]
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}", r"\end{table}", ""]
    return "\n".join(parts) + "\n"


def _short_tables(task: Task) -> Iterator[Table]:
    """Of a task the rows on all labels, those on fewer, and robustness, with the two figures that matter most."""
    figures = ["auroc", *(["average_precision"] if task.one.kind == "multi-label" else []), "balanced_accuracy"]
    parts: dict[str, list[Cell]] = {"": [], "fewer labels": [], ROBUST: []}
    for cell in all_cells(task):
        parts[ROBUST if cell.row.robust else "" if cell.row.all_labels else "fewer labels"].append(cell)
    for part, cells in parts.items():
        there = [m for m in (ROBUST_METRICS if part == ROBUST else figures) if any(m in c.row.metrics for c in cells)]
        if (table := _table(task, cells, there[:2], part)) is not None:
            yield table


def _setting(head: Sequence[str], setting: Sequence[str]) -> str:
    """``"linear probe; labels: 10 %; draws: 20"``."""
    protocol, *others = setting
    return "; ".join([protocol, *(f"{name}: {said}" for name, said in zip(head[2:], others, strict=False) if said)])


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)
