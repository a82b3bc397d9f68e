"""Rows sorted into what the report shows: tasks, their protocols, and in each the weights in one order and colour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ssl_mednet.evaluation.names import short_names
from ssl_mednet.reporting import words
from ssl_mednet.reporting.load import Study
from ssl_mednet.reporting.rows import Comparison, Estimate, Row

MAIN_METRICS = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1", "quadratic_kappa")
ALL_METRICS = (*MAIN_METRICS, "ece", "ece_calibrated")
ROBUST_METRICS = ("balanced_error", "clean_balanced_error")
NOT_SEEDS = "Intervals say how much chance there is in the test images; they do not contain the spread between seeds."


@dataclass(frozen=True)
class Series:
    """One set of weights: the same number (color, dash, marker) and name everywhere in the report."""

    number: int
    label: str
    name: str


@dataclass(frozen=True)
class Cell:
    """What one set of weights came to in one setting: the row of the first seed, and those of the others.

    Args:
        reference: the weights that these are compared with.
        comparisons: with the reference, one a seed, as far as they were made.
    """

    series: Series
    row: Row
    other_seeds: tuple[Row, ...] = ()
    reference: Series | None = None
    comparisons: tuple[Comparison, ...] = ()

    @property
    def compared(self) -> Comparison | None:
        """The row less that of the reference."""
        return next((c for c in self.comparisons if c.seed == self.row.seed), None)

    @property
    def several_seeds(self) -> bool:
        return bool(self.other_seeds)

    @property
    def over_seeds(self) -> Estimate:
        """Of several seeds their mean, from the lowest to the highest; of one its figure and interval."""
        if not self.several_seeds:
            return self.row.metric(self.row.main_metric)
        values = [r.metric(r.main_metric).value for r in (self.row, *self.other_seeds)]
        return Estimate(value=sum(values) / len(values), low=min(values), high=max(values))

    @property
    def seeds(self) -> str:
        """``"3 seeds: mean 0.951, 0.948 to 0.957"``, empty for one seed."""
        if not self.several_seeds:
            return ""
        mean, low, high = (words.number(v) for v in (self.over_seeds.value, self.over_seeds.low, self.over_seeds.high))
        return f"{1 + len(self.other_seeds)} seeds: mean {mean}, {low} to {high}"


@dataclass(frozen=True)
class Task:
    """All rows measured on one set of test images."""

    name: str
    anchor: str
    rows: list[Row]
    series: dict[str, Series]
    study: Study

    @cached_property
    def one(self) -> Row:
        """A row to ask about the task itself: of weights, and one that used all labels, where there are such."""
        return min(self.rows, key=lambda r: (not r.ordinary, not r.all_labels))

    @cached_property
    def first(self) -> str:
        """The label of the weights that the others are compared with: the first that were evaluated."""
        return self.one.label

    @property
    def is_two_class(self) -> bool:
        return self.one.kind != "multi-label" and len(self.one.classes) == 2

    @cached_property
    def protocols(self) -> list[str]:
        """Those of one set of predictions on all labels, in the report's order; the first is the main one."""
        found = {r.protocol for r in self.rows if r.ordinary and r.all_labels and not r.several_draws}
        return [p for p in self.every_protocol if p in found]

    @cached_property
    def every_protocol(self) -> list[str]:
        """All that there are, in the report's order, also those that the report does not know."""
        return sorted({r.protocol for r in self.rows}, key=lambda p: (words.protocol_rank(p), p))

    def cells(self, protocol: str, labels: float | None = 1.0, shots: int | None = None) -> list[Cell]:
        """The weights that were measured in this setting, in the order of the report."""
        by_label: dict[str, list[Row]] = {}
        for row in self.rows:
            if (row.protocol, row.labels, row.shots) == (protocol, labels, shots):
                by_label.setdefault(row.label, []).append(row)
        return [self.cell(*by_label[label]) for label in sorted(by_label, key=lambda name: self.series[name].number)]

    def cell(self, row: Row, *others: Row) -> Cell:
        """One set of weights in one setting, at one seed or several, beside what it is compared with."""
        found = [pair for r in (row, *others) if (pair := self._against(r))]
        label = found[0][0] if found else ""
        comparisons = tuple(compared for name, compared in found if name == label)
        return Cell(self.series[row.label], row, others, self.series.get(label), comparisons)

    def _against(self, row: Row) -> tuple[str, Comparison] | None:
        """Label of what a row is compared with, and the row less that; None where no comparison was made.

        It is the first weights; where the row was not evaluated beside them, others of their name, or else the first
        that it was evaluated beside.
        """

        def order(r: Row) -> tuple[bool, bool, int]:
            return r.label != self.first, r.weights != self.one.weights, self.series[r.label].number

        beside = sorted((r for r in self.rows if r.setting == row.setting and order(r) < order(row)), key=order)
        found = ((r.label, self.study.difference(row, r, row.main_metric)) for r in beside)
        return next(((label, compared) for label, compared in found if compared), None)

    def settings(self, protocol: str) -> list[tuple[float | None, int | None]]:
        """How many labels a protocol was given, from few to all: (share, labels a class)."""
        found = {(r.labels, r.shots) for r in self.rows if r.protocol == protocol}
        return sorted(found, key=lambda s: (s[0] or 0, s[1] or 0))

    @cached_property
    def caption(self) -> str:
        """n, groups and splits: what must be said beside every table of the task."""
        row = self.one
        same = [r.n_train for r in self.rows if r.ordinary and r.all_labels == row.all_labels] or [row.n_train]
        trained = " to ".join(dict.fromkeys(f"{n:,}" for n in (min(same), max(same))))
        validation = [] if row.n_val is None else [f"{row.n_val:,} validation"]
        images = words.join([f"{trained} training", *validation, words.count(row.n, "test image")])
        if row.cross_validated:
            images = f"cross-validation: {words.count(row.n, 'image')}, each scored by what was trained on others"
        said = [images, self.interval_note]
        if row.splits_made:
            plural = "s" if len(row.splits_made) > 1 else ""
            said.append(f"{words.join(row.splits_made)} split{plural} made here, not by the source")
        if sum(row.copies.values()):
            exact, near = row.copies.get("exact", 0), row.copies.get("near", 0)
            said.append(f"of the test images {exact} are among the training images too and {near} nearly so")
        if row.skipped:
            were = "was" if row.skipped == 1 else "were"
            said.append(f"{words.count(row.skipped, 'file')} could not be used and {were} left out")
        return "; ".join(said)

    @property
    def chosen_on(self) -> str:
        """The images on which strengths, thresholds and temperatures were chosen."""
        folds = all(row.n_val is None for row in self.rows)
        return "training images that were left out in turn (cross-validation)" if folds else "the validation images"

    @property
    def robust_caption(self) -> str:
        """As ``caption``, of what was tried on corrupted images."""
        tried = sorted({r.n for r in self.rows if r.robust})
        if tried in ([], [self.one.n]):
            return self.caption
        which = words.join(f"{n:,}" for n in tried)
        return f"on {which} of the test images, balanced over the classes; {self.caption}"

    @property
    def interval_note(self) -> str:
        """Over what the intervals were bootstrapped."""
        if self.one.grouped:
            return "95\u00a0% intervals by group (images of one patient, lesion or slide are drawn together)"
        return "no groups: 95\u00a0% intervals by image, too narrow if a patient has several images"


def averaged(cells: Sequence[Cell]) -> str:
    """What figures are means over, ``"mean over 20 draws of the labels"``; empty for all labels at one seed."""
    draws = sorted({n for c in cells for r in (c.row, *c.other_seeds) if (n := r.labels_drawn)})
    seeds = sorted({1 + len(c.other_seeds) for c in cells})
    several = max(seeds, default=1) > 1
    said = []
    if draws:
        drawn = f"mean over {words.join(map(str, draws))} draws" if draws[-1] > 1 else "one draw"
        said.append(f"{drawn} of the labels{' a seed' if several else ''}")
    if several:
        said.append(f"mean over {words.join(map(str, seeds))} seeds")
    return ", ".join(said)


def sort_into_tasks(study: Study) -> list[Task]:
    """Tasks in the order in which they were evaluated; a name that stands for several test sets gets their sizes."""
    # Robustness is tried on a part of the test images: it belongs where all of them are.
    whole = {(r.task, r.data_fingerprint): r.test_set for r in study.rows if not r.robust}
    by_set: dict[tuple[str, int, tuple[str, ...]], list[Row]] = {}
    for row in study.rows:
        own = whole.get((row.task, row.data_fingerprint), row.test_set) if row.robust else row.test_set
        by_set.setdefault(own, []).append(row)
    series = number_series(study.rows)
    names = [name for name, _, _ in by_set]
    tasks = []
    for i, ((name, n, _), rows) in enumerate(by_set.items(), 1):
        title = name if names.count(name) == 1 else f"{name} ({words.count(n, 'test image')})"
        anchor = f"task-{i}-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        tasks.append(Task(title, anchor, rows, series, study))
    return tasks


def number_series(rows: Iterable[Row]) -> dict[str, Series]:
    """Weights in the order in which they were first evaluated, the trivial baseline last."""
    labels = list(dict.fromkeys(r.label for r in sorted(rows, key=lambda r: r.protocol == "majority")))
    names = short_names(labels)
    return {label: Series(i, label, names[label]) for i, label in enumerate(labels)}
