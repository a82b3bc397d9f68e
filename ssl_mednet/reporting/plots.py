"""The figures of a task: what its rows and predictions look like, panel by panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from ssl_mednet.reporting import curves, figures, words
from ssl_mednet.reporting.figures import AxisText, Line
from ssl_mednet.reporting.leaderboard import Grid, Said, is_reference, per_class, span
from ssl_mednet.reporting.load import Missing, Predictions, load_predictions
from ssl_mednet.reporting.pretraining import PretrainingRun
from ssl_mednet.reporting.rows import Row
from ssl_mednet.reporting.tasks import Cell, Series, Task, averaged

SMALL = 224  # width of the panels of which there are many, pixels
_CURVES = {
    "loss": "training loss",
    "lr": "learning rate",
    "gradient_norm": "norm of the gradient",
    "feature_std": "spread of the features (1: over the whole sphere, 0: collapsed)",
    "effective_rank": "effective rank (directions in which images differ)",
    "rank_me": "RankMe (the same with what all images share)",
    "alpha_req": "alpha-ReQ (fall of the spectrum: near 1 rich, far above 1 few directions)",
    "projection_std": "spread of the projections (0: the head has collapsed)",
    "teacher_agreement": "agreement with the teacher (mean cosine)",
    "held_rank_me": "RankMe on fixed images (which the choice of weights may follow)",
    "probe_auroc": "probe: AUROC (on val)",
    "probe_balanced_accuracy": "balanced accuracy (of the probe on val)",
    "images_per_second": "images a second",
    "data_share": "waiting for images (share of the time)",
    "look_share": "looking at the encoder (share of the time)",
    "memory_gb": "memory, GB",
    "gpu_memory_gb": "GPU memory, GB (the most that was held)",
}


@dataclass(frozen=True)
class Panel:
    """A figure, the weights whose curves it shows and, where each has its own, the sentence below it."""

    svg: Markup
    caption: str = ""
    shown: tuple[Series, ...] = ()


@dataclass(frozen=True)
class Confusion:
    """Counts ``[C][C]`` and the share of each true class that they are."""

    series: Series
    counts: list[list[int]]
    shares: list[list[float]]


@dataclass(frozen=True)
class Decision:
    """The operating point of one set of weights in words: ``"0.940 (87 of 93)"``."""

    series: Series
    threshold: str
    sensitivity: str
    specificity: str


@dataclass
class Proof:
    """Everything that the predictions of one protocol show."""

    protocol: str
    series: list[Series] = field(default_factory=list)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    roc: Markup | None = None
    reliability: list[Panel] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    recall: Grid | None = None
    auroc: Grid | None = None
    missing: list[str] = field(default_factory=list)


def prove(task: Task, protocol: str) -> Proof:
    """ROC, reliability, confusion and operating point of every set of weights; what is missing is said."""
    proof = Proof(protocol, recall=per_class(task, protocol, "recall"), auroc=per_class(task, protocol, "auroc"))
    rows = {}
    for cell in task.cells(protocol):
        proof.series.append(cell.series)
        rows[cell.series.label] = cell.row
        try:
            proof.predictions[cell.series.label] = load_predictions(cell.row)
        except Missing as missing:
            proof.missing.append(f"{cell.series.name}, {words.protocol_name(protocol)}: {missing}")
    name = f"{task.anchor}-{protocol}"
    points = []
    for series in proof.series:
        row, found = rows[series.label], proof.predictions.get(series.label)
        if found is not None:
            proof.reliability.append(_reliability(f"{name}-rel-{series.number}", row, series, found))
            if found.targets.ndim == 1:
                proof.confusions.append(_confusion(series, found))
        if row.operating_point is not None:
            proof.decisions.append(_decision(series, row, found))
            points.append((1 - row.operating_point.specificity, row.operating_point.sensitivity, series.number))
    proof.roc = _roc(f"{name}-roc", task, proof, points)
    return proof


def _roc(name: str, task: Task, proof: Proof, points: Sequence[tuple[float, float, int]]) -> Markup | None:
    shown = [s for s in proof.series if s.label in proof.predictions]
    drawn = [(s, curves.roc(p.targets, p.scores)) for s in shown for p in [proof.predictions[s.label]]]
    if not drawn:
        return None
    of = f" of {task.one.classes[1]}" if task.is_two_class else ", macro average"
    title = f"ROC{of}"
    label = f"{title}, {words.protocol_name(proof.protocol)}, of {words.join(s.name for s in shown)}"
    said = AxisText(title, "false positive rate (1 − specificity)", "true positive rate (sensitivity)", label)
    return figures.roc_panel(name, said, [Line(x, y, s.number) for s, (x, y) in drawn], points)


def _reliability(name: str, row: Row, series: Series, found: Predictions) -> Panel:
    bins = curves.reliability(found.targets, found.scores)
    errors = [f"{words.metric_name(m)} {span(row.metric(m))}" for m in ("ece", "ece_calibrated") if m in row.metrics]
    said = AxisText(_cut(series.name), "confidence", "share that came true", f"reliability of {series.name}")
    caption = " ".join([curves.describe_reliability(bins), *([f"{'; '.join(errors)}."] if errors else [])])
    return Panel(figures.reliability_panel(name, said, bins, series.number), caption, (series,))


def _confusion(series: Series, found: Predictions) -> Confusion:
    counts = curves.confusion(found.targets, found.scores)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return Confusion(series, counts.tolist(), shares.tolist())


def _decision(series: Series, row: Row, found: Predictions | None) -> Decision:
    point = row.operating_point
    assert point is not None
    positives = int((found.targets == 1).sum()) if found is not None else 0
    negatives = row.n - positives if found is not None else 0
    said = [_of_all(point.sensitivity, positives), _of_all(point.specificity, negatives)]
    return Decision(series, words.number(point.threshold), *said)


def _of_all(rate: float, total: int) -> str:
    return words.number(rate) + (f" ({round(rate * total):,} of {total:,})" if total and not math.isnan(rate) else "")


def _cut(name: str, longest: int = 44) -> str:
    """A name that fits over a panel."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


# --- curves from rows -------------------------------------------------------------------------------------------------


def label_curves(task: Task) -> list[Panel]:
    """AUROC over labels a class, and over the share of labels, one panel a protocol."""
    panels = []
    for protocol in task.every_protocol:
        settings = [s for s in task.settings(protocol) if protocol != "robustness"]
        for by_shots in (True, False):
            places = [s for s in settings if (s[1] is not None) is by_shots and any(x is not None for x in s)]
            if len(places) > 1:
                panels.append(_label_panel(task, protocol, places, by_shots))
    return panels


def _label_panel(task: Task, protocol: str, places: list[tuple[float | None, int | None]], by_shots: bool) -> Panel:
    at = [float((shots if by_shots else labels) or 0) for labels, shots in places]
    ticks = {x: f"{x:g}" if by_shots else words.share(x) for x in at}
    found: dict[Series, list[tuple[float, Cell]]] = {}
    for x, (labels, shots) in zip(at, places, strict=True):
        for cell in task.cells(protocol, labels, shots):
            found.setdefault(cell.series, []).append((x, cell))
    drawn = []
    for series, points in found.items():
        estimates = [cell.over_seeds for _, cell in points]
        low, high = [e.low for e in estimates], [e.high for e in estimates]
        drawn.append(Line([x for x, _ in points], [e.value for e in estimates], series.number, low, high))
    title = _cut(words.protocol_name(protocol))
    over = "labelled images a class" if by_shots else "share of the training labels"
    said = AxisText(title, over, "AUROC", f"AUROC over {over}, {title}")
    kind = "shots" if by_shots else "share"
    svg = figures.lines(f"{task.anchor}-{protocol}-{kind}", said, drawn, ticks=ticks)
    return Panel(svg, _behind([cell for points in found.values() for _, cell in points]), tuple(found))


def _behind(cells: Sequence[Cell]) -> str:
    """What stands behind the points and bands of a panel."""
    band = "from the lowest to the highest seed" if any(c.several_seeds for c in cells) else "95\u00a0% interval"
    points = f"Points: {said}. " if (said := averaged(cells)) else ""
    return f"{points}Bands: {band}."


@dataclass(frozen=True)
class Robustness:
    """Curves of every corruption, and the mean over all: (weights, mean, clean, whether the reference, verdict)."""

    panels: list[Panel]
    lines: list[tuple[Series, str, str, bool, Said | None]]


def robustness(task: Task) -> Robustness | None:
    """Balanced error over severity, one panel a corruption."""
    cells = [cell for setting in task.settings("robustness") for cell in task.cells("robustness", *setting)]
    if not cells:
        return None
    panels = []
    for corruption in dict.fromkeys(name for c in cells for name in c.row.corruptions):
        drawn = []
        for cell in cells:
            if corruption in cell.row.corruptions:
                errors = [cell.row.metric("clean_balanced_error").value, *cell.row.corruptions[corruption]]
                drawn.append(Line(range(len(errors)), errors, cell.series.number))
        title = corruption.replace("_", " ")
        said = AxisText(title, "severity (0: clean)", "balanced error", f"balanced error under {title}")
        name = f"{task.anchor}-robust-{corruption}"
        panels.append(Panel(figures.lines(name, said, drawn, width=SMALL, height=SMALL - 30, bottom=0.0)))
    lines = []
    for cell in cells:
        mean, clean = (span(cell.row.metric(m)) for m in ("balanced_error", "clean_balanced_error"))
        lines.append((cell.series, mean, clean, is_reference(task, cell, cells), Said.of(task, cell)))
    return Robustness(panels, lines)


def histories(task: Task) -> list[Panel]:
    """Loss and validation AUROC over the epochs of fine-tuning, two panels a protocol."""
    panels = []
    for protocol in task.protocols:
        cells = [c for c in task.cells(protocol) if c.row.history]
        for column, title in (("loss", "training loss"), ("val_auroc", "AUROC on val")):
            drawn: dict[Series, Line] = {}
            for cell in cells:
                points = [(e.get("epoch", i), e[column]) for i, e in enumerate(cell.row.history, 1) if column in e]
                if points:
                    drawn[cell.series] = Line([x for x, _ in points], [y for _, y in points], cell.series.number)
            if drawn:
                name = words.protocol_name(protocol)
                said = AxisText(_cut(name), "epoch", title, f"{name}: {title}")
                svg = figures.lines(f"{task.anchor}-{protocol}-{column}", said, [*drawn.values()])
                panels.append(Panel(svg, shown=tuple(drawn)))
    return panels


def training_curves(run: PretrainingRun, anchor: str) -> list[Panel]:
    """Every column of ``metrics.csv`` and ``speed.csv`` over the steps; what training is about comes first."""
    panels, curves = [], run.curves | run.speed
    order = [*_CURVES, *curves]
    for column in sorted(curves, key=order.index):
        steps, values = curves[column]
        title = _CURVES.get(column, column.replace("_", " "))
        said = AxisText(title.partition(" (")[0], "step", "", f"{title} over the steps of {run.name}")
        drawn = [Line(steps, values, 0)]
        caption = title.partition("(")[2].rstrip(")")
        name = f"{anchor}-{column}"
        panels.append(Panel(figures.lines(name, said, drawn, width=SMALL, height=SMALL - 30), caption))
    return panels
