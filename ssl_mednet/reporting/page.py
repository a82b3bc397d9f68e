"""The study as the page shows it: one view a task, one a pretraining run, and where everything comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from ssl_mednet.reporting import plots, words
from ssl_mednet.reporting.gallery import Gallery, build_gallery
from ssl_mednet.reporting.leaderboard import Board, FewerLabels, Overview, fewer_labels, in_order, leaderboard, overview
from ssl_mednet.reporting.load import Study
from ssl_mednet.reporting.pictures import data_uri
from ssl_mednet.reporting.plots import Panel, Proof, Robustness
from ssl_mednet.reporting.pretraining import PretrainingRun
from ssl_mednet.reporting.references import Beside
from ssl_mednet.reporting.rows import Row, Session, source_name, without_home
from ssl_mednet.reporting.tables import all_cells
from ssl_mednet.reporting.tasks import Series, Task


@dataclass(frozen=True)
class TaskView:
    """All that the page shows of a task."""

    task: Task
    introduction: str
    board: Board | None
    chosen: list[list[str]]
    label_panels: list[Panel]
    label_series: list[Series]
    fewer: FewerLabels | None
    proofs: list[Proof]
    histories: list[Panel]
    history_series: list[Series]
    robustness: Robustness | None
    gallery: Gallery
    published: list[Beside]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchors within the task, for the table of contents."""
        parts = [
            ("board", "Leaderboard", self.board),
            ("labels", "With fewer labels", self.fewer),
            ("proof", "In detail", self.proofs),
            ("robust", "Robustness", self.robustness),
            ("images", "Images", self.gallery.maps or self.gallery.neighbours or self.gallery.mistakes),
            ("published", "Published results", self.published),
        ]
        return [(anchor, title) for anchor, title, there in parts if there]


@dataclass(frozen=True)
class RunView:
    """A pretraining run with its curves drawn and its pictures embedded."""

    run: PretrainingRun
    anchor: str
    panels: list[Panel]
    pictures: list[tuple[str, str]]
    environment: list[tuple[str, str]]


@dataclass(frozen=True)
class WeightsLine:
    """One set of weights as it is listed under provenance."""

    name: str
    given: str
    architecture: str
    input: str
    sha256: str
    run: RunView | None


@dataclass(frozen=True)
class DataLine:
    """One task as it is listed under provenance; more than one fingerprint means more than one version of the data."""

    task: str
    source: str
    classes: str
    caption: str
    licence: str
    fingerprints: list[str]


@dataclass(frozen=True)
class SessionView:
    """One evaluation: what was run, when, with what."""

    title: str
    facts: list[tuple[str, str]]
    suite: str


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    title: str
    lead: str
    overview: Overview | None
    tasks: list[TaskView]
    runs: list[RunView]
    notes: list[str]
    weights: list[WeightsLine]
    data: list[DataLine]
    sessions: list[SessionView]

    @property
    def pictures(self) -> int:
        """How many pictures of the data the file holds."""
        shown = sum(len(sheet.cell) for view in self.tasks for sheet in view.gallery.sheets)
        return shown + sum(len(run.pictures) for run in self.runs)


def build_page(study: Study, tasks: Sequence[Task], published: dict[str, list[Beside]]) -> Page:
    """Draw everything; ``published`` has the published results of each task's anchor."""
    runs = [_run_view(run, f"run-{i}") for i, run in enumerate(study.runs, 1)]
    views = [_task_view(task, published.get(task.anchor, [])) for task in tasks]
    notes = list(study.notes)
    for view in views:
        missing = [note for proof in view.proofs for note in proof.missing] + view.gallery.missing
        notes += [f"{view.task.name}: {note}" for note in missing]
    return Page(
        title(tasks, study.runs),
        _lead(tasks, study.runs),
        overview(tasks) if any(task.protocols for task in tasks) else None,
        views,
        runs,
        list(dict.fromkeys(notes)),
        _weights(tasks, runs),
        [_data(task) for task in tasks],
        [_session(session) for session in study.sessions],
    )


def title(tasks: Sequence[Task], runs: Sequence[PretrainingRun]) -> str:
    """What the report is about."""
    return (
        f"Evaluation: {words.join(t.name for t in tasks)}"
        if tasks
        else f"Pretraining: {words.join(r.name for r in runs)}"
    )


def _lead(tasks: Sequence[Task], runs: Sequence[PretrainingRun]) -> str:
    if not tasks:
        one = len(runs) == 1
        return f"What {words.count(len(runs), 'pretraining run')} wrote about {'itself' if one else 'themselves'}."
    names = dict.fromkeys(s.name for t in tasks for s in t.series.values() if any(r.label == s.label for r in t.rows))
    names.pop("baseline:majority", None)
    tested, crossed = ([t for t in tasks if t.one.cross_validated is crossed] for crossed in (False, True))
    where = ([_on_test(tested)] if tested else []) + ([_by_folds(crossed)] if crossed else [])
    return (
        f"How well {words.join(names)} {'serves' if len(names) == 1 else 'serve'} to tell medical images apart, "
        f"measured {' and '.join(where)}."
    )


def _on_test(tasks: Sequence[Task]) -> str:
    images, copies = sum(t.one.n for t in tasks), sum(sum(t.one.copies.values()) for t in tasks)
    apart = "any choice" if copies else "training or in any choice"
    are = "is" if copies == 1 else "are"
    among = f"; {copies:,} of them {are} among the training images too, exactly or nearly" if copies else ""
    where = words.count(len(tasks), "labelled set")
    return f"on {where} with {images:,} test images that took no part in {apart}{among}"


def _by_folds(tasks: Sequence[Task]) -> str:
    where, images = words.count(len(tasks), "labelled set"), sum(t.one.n for t in tasks)
    apart = "each scored by what was trained and chosen on others"
    return f"by cross-validation on {where} with {images:,} images, {apart}"


def _task_view(task: Task, published: list[Beside]) -> TaskView:
    proofs = [plots.prove(task, protocol) for protocol in task.protocols]
    label_panels, histories = plots.label_curves(task), plots.histories(task)
    return TaskView(
        task,
        _introduction(task),
        leaderboard(task),
        list(_chosen(task)),
        label_panels,
        in_order(s for panel in label_panels for s in panel.shown),
        fewer_labels(task),
        proofs,
        histories,
        in_order(s for panel in histories for s in panel.shown),
        plots.robustness(task),
        build_gallery(task, proofs[0] if proofs else None),
        published,
    )


def _introduction(task: Task) -> str:
    row, classes = task.one, task.one.classes
    kinds = {"multi-label": "findings, several of which an image may have", "ordinal": "ordered grades"}
    shown = ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
    said = f"{len(classes)} {kinds.get(row.kind, 'classes')}: {shown}."
    # Rows of one name that were measured on data prepared in different ways are told apart here.
    versions = {r.data_fingerprint for r in task.rows}
    odd = f" Its rows come from {len(versions)} versions of the data (see Provenance)." if len(versions) > 1 else ""
    several = any(cell.other_seeds for p in task.protocols for cell in task.cells(p))
    seeds = " Where several seeds were run, figures and intervals on all labels are of the first." if several else ""
    return said + odd + seeds


def _chosen(task: Task) -> Iterable[list[str]]:
    for cell in all_cells(task):
        row = cell.row
        chosen = {k: v for k, v in row.chosen_on_val.items() if v is not None and v is not True and v != ""}
        if chosen:
            said = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items())
            used = words.labels_used(row.labels, row.shots)
            yield [cell.series.name, words.protocol_name(row.protocol), used, said.replace("_", " ")]


def _run_view(run: PretrainingRun, anchor: str) -> RunView:
    pictures = [(name, data_uri(content, "png")) for name, content in run.pictures.items()]
    return RunView(run, anchor, plots.training_curves(run, anchor), pictures, _flat(run.environment))


def _flat(tree: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in tree.items():
        name = name.replace("_", " ")
        found += _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(prefix + name, str(value))]
    return found


# --- provenance -------------------------------------------------------------------------------------------------------


def _weights(tasks: Sequence[Task], runs: Sequence[RunView]) -> list[WeightsLine]:
    """Every set of weights, once for each hash: an untrained net is another one for every seed."""
    lines: dict[tuple[str, str], WeightsLine] = {}
    for task in tasks:
        for row in task.rows:
            if row.protocol == "majority":
                continue
            seen = f"{row.channels} {row.image_size} px".strip()
            name, given = task.series[row.label].name, without_home(row.weights)
            if len({r.weights_sha256 for r in task.rows if r.label == row.label}) > 1:
                name = f"{name}, seed {row.seed}"
            line = WeightsLine(name, given, row.architecture, seen, row.weights_sha256, _run_of(row, runs))
            lines.setdefault((row.label, row.weights_sha256), line)
    return list(lines.values())


def _run_of(row: Row, runs: Sequence[RunView]) -> RunView | None:
    """The run that made a row's weights: by their hash, or because its folder is what was evaluated."""
    evaluated = Path(row.weights).expanduser().resolve()
    for view in runs:
        same_hash = bool(view.run.sha256) and view.run.sha256 == row.weights_sha256
        if same_hash or evaluated in (view.run.folder, view.run.folder / "backbone"):
            return view
    return None


def _data(task: Task) -> DataLine:
    sources = dict.fromkeys(source_name(r.source) for r in task.rows if r.source)
    prints = list(dict.fromkeys(r.data_fingerprint for r in task.rows if r.data_fingerprint))
    classes, licence = ", ".join(task.one.classes), task.one.licence or ""
    return DataLine(task.name, ", ".join(sources), classes, task.caption, licence, prints)


def _session(session: Session) -> SessionView:
    seconds = "" if math.isnan(session.seconds) else f"{session.seconds:,.0f} seconds"
    facts = {
        "command": session.command,
        "started": session.started,
        "took": seconds,
        "version": session.version and f"ssl_mednet {session.version}",
        "platform": session.platform,
        "packages": ", ".join(f"{name} {version}" for name, version in session.packages.items()),
    }
    name = session.suite.get("name") or session.folder.name
    suite = without_home(OmegaConf.to_yaml(OmegaConf.create(session.suite))) if session.suite else ""
    return SessionView(f"Evaluation {name}", [(k, v) for k, v in facts.items() if v], suite)
