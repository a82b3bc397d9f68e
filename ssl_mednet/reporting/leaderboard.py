"""The tables of numbers that the page shows: leaderboard, overview, fewer labels, robustness, per class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ssl_mednet.reporting import words
from ssl_mednet.reporting.rows import Comparison, Estimate, Row
from ssl_mednet.reporting.tasks import MAIN_METRICS, Cell, Series, Task, averaged

BAR = 150  # width of an interval bar, pixels
_EDGE = 6  # free at both ends of a bar, pixels
SYMBOLS = {"better": "▲", "worse": "▼", "cannot tell": "="}


@dataclass(frozen=True)
class Axis:
    """The scale of all interval bars of a table."""

    low: float
    high: float

    def x(self, value: float) -> float:
        """Pixels from the left end of a bar."""
        inside = min(max(value, self.low), self.high)
        return round(_EDGE + (inside - self.low) / (self.high - self.low) * (BAR - 2 * _EDGE), 1)

    @property
    def ticks(self) -> list[float]:
        """Both ends, and 0.5 (chance for an AUROC) where it lies well between them."""
        inner = [0.5] if self.low + 0.1 < 0.5 < self.high - 0.1 else []
        return [self.low, *inner, self.high]

    @classmethod
    def over(cls, estimates: Iterable[Estimate]) -> Axis:
        """From one multiple of 0.05 to another, so that every interval lies between."""
        ends = [v for e in estimates for v in (e.low, e.value, e.high) if not math.isnan(v)]
        if not ends:
            return cls(0.0, 1.0)
        low = math.floor(min(ends) * 20 + 1e-9) / 20
        return cls(low, max(math.ceil(max(ends) * 20 - 1e-9) / 20, low + 0.05))


@dataclass(frozen=True)
class Said:
    """A verdict as the page shows it: symbol, words, p, the difference and its interval, and what it is to.

    Args:
        than: the reference, where it is not the one that the table names.
    """

    kind: str
    symbol: str
    words: str
    p: str
    difference: tuple[str, str]
    than: str

    @classmethod
    def of(cls, task: Task, cell: Cell, all_seeds: bool = False) -> Said | None:
        """Of the first seed; or of all, each compared by itself: their mean difference, from lowest to highest."""
        compared = cell.compared
        than = cell.reference.name if cell.reference and cell.reference.label != task.first else ""
        if all_seeds and len(cell.comparisons) > 1:
            return cls._of_seeds(cell.comparisons, than)
        if compared is None:
            return None
        difference = words.signed(compared.value), f"{words.signed(compared.low)} to {words.signed(compared.high)}"
        kind = compared.verdict.replace(" ", "-")
        return cls(kind, SYMBOLS[compared.verdict], compared.verdict, words.p_value(compared.p), difference, than)

    @classmethod
    def _of_seeds(cls, comparisons: Sequence[Comparison], than: str) -> Said:
        counts: Counter[str] = Counter(c.verdict for c in comparisons)
        verdict = comparisons[0].verdict if len(counts) == 1 else "cannot tell"
        said = ", ".join(f"{v} at {n}" for v in SYMBOLS if (n := counts[v])) + f" of {len(comparisons)} seeds"
        values = [c.value for c in comparisons]
        mean, low, high = (words.signed(v) for v in (sum(values) / len(values), min(values), max(values)))
        return cls(verdict.replace(" ", "-"), SYMBOLS[verdict], said, "", (mean, f"{low} to {high}"), than)


@dataclass(frozen=True)
class Line:
    """One row of a leaderboard."""

    series: Series
    row: Row
    main: Estimate
    others: list[Estimate]
    best: bool
    first: bool
    verdict: Said | None
    seeds: str


@dataclass(frozen=True)
class Board:
    """Weights by protocol, on all labels.

    Args:
        metrics: names of the columns after the main one.
        groups: (protocol, its lines).
        majority: what always naming the largest class comes to.
        comparisons: how many p values the table shows.
    """

    metrics: list[str]
    axis: Axis
    groups: list[tuple[str, list[Line]]]
    majority: Line | None
    comparisons: int


def leaderboard(task: Task) -> Board | None:
    """The main table of a task; None where no row used all labels."""
    cells = {protocol: task.cells(protocol) for protocol in task.protocols}
    majority = task.cells("majority")
    everything = [c for group in cells.values() for c in group]
    if not everything:
        return None
    metrics = [m for m in MAIN_METRICS[1:] if any(m in c.row.metrics for c in everything)]
    values = [v for c in everything if not math.isnan(v := c.row.metric("auroc").value)]
    top = max(values, default=math.nan)

    def line(cell: Cell) -> Line:
        main, others = cell.row.metric("auroc"), [cell.row.metric(m) for m in metrics]
        first = is_reference(task, cell, cells.get(cell.row.protocol, []))
        verdict = Said.of(task, cell)
        return Line(cell.series, cell.row, main, others, main.value == top, first, verdict, cell.seeds)

    groups = [(protocol, [line(c) for c in group]) for protocol, group in cells.items()]
    axis = Axis.over(c.row.metric("auroc") for c in everything)
    compared = sum(c.compared is not None for c in everything)
    return Board(metrics, axis, groups, line(majority[0]) if majority else None, compared)


def is_reference(task: Task, cell: Cell, beside: Iterable[Cell]) -> bool:
    """Whether it is what others in its setting are compared with, not compared itself."""
    return not cell.compared and (cell.series.label == task.first or any(c.reference == cell.series for c in beside))


@dataclass(frozen=True)
class Overview:
    """The main protocol of every task at a glance: weights by task."""

    tasks: list[tuple[Task, str]]
    lines: list[tuple[Series, list[tuple[Estimate | None, bool]]]]
    sentences: list[tuple[Task, str]]


def overview(tasks: Sequence[Task]) -> Overview:
    """AUROC of all weights on all tasks, the best of each task marked, and what it comes to in words."""
    shown = [(task, task.protocols[0]) for task in tasks if task.protocols]
    columns = [{c.series.label: c for c in task.cells(protocol)} for task, protocol in shown]
    series = {c.series.number: c.series for column in columns for c in column.values()}
    best = [_best(column.values()) for column in columns]
    lines = []
    for _, one in sorted(series.items()):
        found = [column.get(one.label) for column in columns]
        cells = [
            (c.row.metric("auroc") if c else None, c is not None and c is b) for c, b in zip(found, best, strict=True)
        ]
        lines.append((one, cells))
    sentences = [(t, _sentence(t, p, [*c.values()])) for (t, p), c in zip(shown, columns, strict=True)]
    return Overview(shown, lines, sentences)


def _best(cells: Iterable[Cell]) -> Cell | None:
    defined = [c for c in cells if not math.isnan(c.row.metric("auroc").value)]
    return max(defined, key=lambda c: c.row.metric("auroc").value, default=None)


def _sentence(task: Task, protocol: str, cells: list[Cell]) -> str:
    """The result of a task in words, with no more certainty than the comparisons have."""
    best = _best(cells)
    if best is None:
        return f"{words.protocol_name(protocol)}: no AUROC is defined."
    main = best.row.metric("auroc")
    said = f"highest AUROC {span(main)}, of {best.series.name} ({words.protocol_name(protocol)})."
    groups: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.compared and cell.reference:
            groups.setdefault(cell.reference.name, {}).setdefault(cell.compared.verdict, []).append(cell.series.name)
    for reference, by_verdict in groups.items():
        parts = []
        for verdict, phrase in (("better", "better"), ("worse", "worse"), ("cannot tell", "not clearly different")):
            if names := by_verdict.get(verdict):
                parts.append(f"{words.join(names)} {'is' if len(names) == 1 else 'are'} {phrase}")
        said += f" Compared with {reference}, {words.join(parts)}."
    return said


def span(estimate: Estimate) -> str:
    """``"0.912 (0.897 to 0.926)"``; the value alone where it has no interval."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return words.number(estimate.value)
    return f"{words.number(estimate.value)} ({words.number(estimate.low)} to {words.number(estimate.high)})"


@dataclass(frozen=True)
class Grid:
    """A plain table: first column names, the others one set of weights each."""

    series: list[Series]
    lines: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Point:
    """One set of weights with so many labels: its figure, what is to be said of it, and the verdict."""

    estimate: Estimate
    quiet: str
    reference: bool
    verdict: Said | None


@dataclass(frozen=True)
class FewerLabels:
    """AUROC by setting and weights.

    Args:
        lines: (protocol, labels and draws, one point for each of ``series``; None where it was not measured).
        comparisons: how many p values the table shows.
        spread: whether the deviation between draws is known of any.
    """

    series: list[Series]
    lines: list[tuple[str, str, list[Point | None]]]
    comparisons: int
    spread: bool
    several_seeds: bool


def fewer_labels(task: Task) -> FewerLabels | None:
    """AUROC by protocol and labels, wherever there is more than all labels to show."""
    protocols = dict.fromkeys(p for p in task.every_protocol for r in task.rows if r.protocol == p and r.ordinary)
    asked = [(p, s) for p in protocols for s in task.settings(p)]
    if not any(s != (1.0, None) for _, s in asked):
        return None
    groups = [(p, s, task.cells(p, *s)) for p, s in asked]
    everything = [c for _, _, cells in groups for c in cells]
    series = in_order(c.series for c in everything)
    lines = []
    for protocol, setting, cells in groups:
        found = {c.series: _point(task, c, cells) for c in cells}
        used = ", ".join(filter(None, (words.labels_used(*setting), averaged(cells))))
        lines.append((words.protocol_name(protocol), used, [found.get(s) for s in series]))
    compared, spread = sum(len(c.comparisons) for c in everything), any(p and p.quiet for *_, ps in lines for p in ps)
    return FewerLabels(series, lines, compared, spread, any(c.several_seeds for c in everything))


def _point(task: Task, cell: Cell, beside: Sequence[Cell]) -> Point:
    spread = math.nan if cell.several_seeds else cell.row.spread.get("auroc", math.nan)
    quiet = "" if math.isnan(spread) else f"± {words.number(spread)}"
    return Point(cell.over_seeds, quiet, is_reference(task, cell, beside), Said.of(task, cell, all_seeds=True))


def in_order(series: Iterable[Series]) -> list[Series]:
    """Each once, in the order of the report."""
    return sorted(set(series), key=lambda s: s.number)


def per_class(task: Task, protocol: str, figure: str) -> Grid | None:
    """``recall`` or ``auroc`` of every class by weights; None where no row has it."""
    cells = [c for c in task.cells(protocol) if c.row.per_class.get(figure)]
    classes = [name for name in task.one.classes if any(name in c.row.per_class[figure] for c in cells)]
    if not cells:
        return None
    lines = [(name, [words.number(c.row.per_class[figure].get(name)) for c in cells]) for name in classes]
    return Grid([c.series for c in cells], lines)
