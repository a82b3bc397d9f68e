"""The run that turns weights and a suite into rows of results; it goes on where it stopped."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_mednet import __version__
from ssl_mednet.backbones.artifact import Preprocessing
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_audited, open_labelled, task_names
from ssl_mednet.errors import ArtifactError, DataError, RecipeError, UserError
from ssl_mednet.evaluation.bench import PROTOCOLS, Bench, Job, find_device
from ssl_mednet.evaluation.finetune import DivergedError
from ssl_mednet.evaluation.gallery import forget_pictures, map_features, worst_mistakes, write_thumbnails
from ssl_mednet.evaluation.leaks import count_copies
from ssl_mednet.evaluation.names import short_names
from ssl_mednet.evaluation.results import COMPARISONS, RESULTS, Row, Store, compare, make_row, row_key
from ssl_mednet.evaluation.suite import SetSection, Suite, load_suite, locate
from ssl_mednet.evaluation.weights import Weights, channels_of, load_weights
from ssl_mednet.files import check_folder, write_json
from ssl_mednet.imaging.modality import CHANNEL_COUNT
from ssl_mednet.progress import Progress, warn

RUN = "run.json"
MAJORITY = "majority"
_REPORTS = tuple(f"report.{kind}" for kind in ("html", "md", "csv", "tex"))  # are of the results
_PACKAGES = ("torch", "timm", "kornia", "faiss-cpu", "scikit-learn", "numpy")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """Rows as they are written to ``results.json``, and where that is.

    ``comparisons`` are the paired tests of the first weights against the others; ``failed`` are sets that could not be
    opened or evaluated, or that the weights cannot see, and rows for which fine-tuning diverged, with the reason.
    """

    rows: list[Row]
    path: Path
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def evaluate(
    weights: Sequence[str | Path],
    suite: str | Path | dict[str, Any] | None = None,
    data: list[str] | str | Path | None = None,
    out: str | Path | None = None,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Results:
    """Evaluate backbones on labelled sets.

    Args:
        weights: run or artifact folders, ``random:NAME``, ``imagenet:NAME``, ``baseline:NAME``; several are compared,
            the first with each of the others.
        suite: path or name of a suite, or a dictionary.
        data: labelled sets instead of a suite.
        out: folder of the results, by default ``results/NAME``; rows that it holds already are not made again.
        overrides: ``key=value`` of the suite's keys.

    Raises:
        UserError: anything a user can mend. A set that cannot be evaluated does not end the run unless no set can.
    """
    began = time.time()
    plan = load_suite(suite, data, overrides)
    names = list(dict.fromkeys([*map(str, weights), *plan.baselines]))
    if not names:
        raise RecipeError("nothing to evaluate", "--weights RUN, or --weights random:resnet18")
    folder = Path(out) if out else Path("results") / plan.name
    check_folder(folder)
    device = find_device(plan.device)
    told = channels_of(names) if plan.channels == "auto" else plan.channels
    store = Store(folder)
    command = _command(names, suite, data, plan, overrides or [])
    before = _rows_of(folder)
    rows: list[Row] = []
    comparisons: list[dict[str, Any]] = []
    failed: dict[str, UserError] = {}
    untold: list[str] = []
    for section, name in zip(plan.sets, task_names([s.source for s in plan.sets]), strict=True):
        kind = (told or "gray") if section.channels == "auto" else section.channels
        try:
            loaded = list(load_weights(names, kind, plan.image_size, plan.seeds[0]))
            task = open_set(section, kind, plan, quiet, max(w.preprocessing.image_size for w in loaded))
            while untold:  # there is one to go on with
                log.warning("%s is left out: %s", untold[0], _reason(untold[0], failed[untold.pop(0)]))
            own = _evaluate_set(replace(task, name=name), loaded, names, plan, store, device, quiet, failed)
        except (ArtifactError, DataError) as error:
            if isinstance(error, ArtifactError) and kind == (told or kind):
                raise  # the weights are to blame, whatever set they are shown
            if not told and section.channels == "auto" and "convert=true" in error.message:
                error.hint = f"channels=color evaluates on color images as they are; {error.hint}"
            failed[section.source] = error
            untold.append(section.source)
            continue
        rows, comparisons = rows + own, comparisons + compare(own, store)
        _write(folder, rows, comparisons, session(command, plan, began))
    if not rows:
        raise next(iter(failed.values()))
    if lost := before - _rows_of(folder):
        told = ", ".join(sorted(f"{name} on {task}" for name, task in lost))
        warn(f"{folder / RESULTS} held {told} too; name all in one call to have them together, nothing is made again")
    return Results(rows, folder / RESULTS, comparisons, {k: _reason(k, e) for k, e in failed.items()})


def _rows_of(folder: Path) -> set[tuple[str, str]]:
    """Weights and sets that the results in a folder are of."""
    try:
        rows = json.loads((folder / RESULTS).read_text())
        return {(row["weights"], row["task"]) for row in rows if row["protocol"] != MAJORITY}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _write(folder: Path, rows: list[Row], comparisons: list[dict[str, Any]], how: dict[str, Any]) -> None:
    """What there is so far, and how it was made; where that ends half-way, no verdict on earlier rows is left."""
    for name in (COMPARISONS, RUN, *_REPORTS):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / RESULTS, rows, nan=False)
    write_json(folder / COMPARISONS, comparisons, nan=False)
    write_json(folder / RUN, how)


def _reason(source: str, error: UserError) -> str:
    """What was wrong with a set, without its name in front."""
    return str(error).removeprefix(f"{source}: ")


def _command(
    names: list[str], suite: Any, data: list[str] | str | Path | None, plan: Suite, overrides: list[str]
) -> str:
    """What a reader types to get these rows; a suite that was given as a dictionary goes by its name."""
    if data is None:
        what = ["--suite", plan.name if isinstance(suite, dict) else str(suite)]
    else:
        what = ["--data", *([str(data)] if isinstance(data, str | Path) else map(str, data))]
    return shlex.join(["ssl-mednet", "evaluate", "--weights", *names, *what, *overrides])


def open_set(
    section: SetSection, channels: str, plan: Suite, quiet: bool, seen: int = 0, *, audited: bool = False
) -> LabelledSet:
    """A set of a suite, as images of these channels, kept no smaller than the side that nets see, in pixels.

    Args:
        audited: its images are only looked for elsewhere, and need no labels.
    """
    convert = section.convert or plan.convert
    spec = CorpusSpec(channels, max(plan.store_size, seen), modality=section.modality, convert=convert)
    try:
        source = locate(section.source, plan.root)
        if audited:
            task = open_audited(source, spec, quiet)
        else:
            task = open_labelled(source, spec, quiet, ordinal=section.ordinal)
    except DataError as error:
        if plan.root and "no such file" in error.message:
            error.hint = "set $SSL_MEDNET_DATA to the folder in which the sets of the suite lie, or say root=FOLDER"
        raise
    remarks = [] if audited else task.remarks
    if audited and "test" in task.made:
        count = f"{len(task.splits['test'])} of its {len(task.corpus)}"
        remarks = [f"names no test images: {count} count as such, those that evaluate would hold out"]
    for remark in filter(None, [task.left_out, *remarks]):
        warn(f"{section.source}: {remark}")
    return task


def _evaluate_set(
    task: LabelledSet,
    loaded: list[Weights],
    names: list[str],
    plan: Suite,
    store: Store,
    device: torch.device,
    quiet: bool,
    failed: dict[str, UserError],
) -> list[Row]:
    """The rows of one set: the majority class, then every backbone in turn; what diverged comes into ``failed``."""
    copies = count_copies(task)
    rows = [
        _row(Bench(_majority(task), task, plan, device, quiet, copies), Job(MAJORITY, 1.0, None, plan.seeds[0]), store)
    ]
    shown: list[np.ndarray] = []
    short = short_names(names)
    if not plan.gallery:
        forget_pictures(task, store.folder)
    for shots in _too_many(plan, task):
        warn(f"{task.name}: {shots} labels a class: no class has as many, so all training images are used")
    for weights in loaded:
        if not quiet:
            print(f"{task.name}: {short[weights.name]}", file=sys.stderr)
        for name in plan.protocols:
            if why := _cannot(name, weights, task):
                warn(f"{task.name}: no {name}: {why}")
        bench = Bench(weights, task, plan, device, quiet, copies)
        own = _run_jobs(bench, list(_jobs(plan, weights, task)), store, failed)
        for seed in plan.seeds[1:] if weights.random else ():
            again = load_weights(names, task.corpus.channels, plan.image_size, seed)
            other = next(w for w in again if w.name == weights.name)
            more = Bench(other, task, plan, device, quiet, copies)
            own += _run_jobs(more, list(_jobs(plan, other, task, seed)), store, failed)
        if plan.gallery:
            path, ids = map_features(bench, store.folder)
            shown.append(ids)
            own = [row | {"gallery": path.relative_to(store.folder).as_posix()} for row in own]
        rows += own
    if len(rows) == 1 and not any(key.startswith(f"{task.source}: ") for key in failed):
        raise DataError(f"{task.source}: none of the protocols can be done with these weights on it")
    if plan.gallery:
        shown += [worst_mistakes(row, store.folder) for row in rows]
        write_thumbnails(task, store.folder, np.unique(np.concatenate(shown)))
    return rows


def _cannot(name: str, weights: Weights, task: LabelledSet) -> str:
    """Why a protocol gives no row, if it does not."""
    protocol = PROTOCOLS.get(name)
    if not protocol.frozen and not weights.trainable:
        return f"{weights.name} has nothing to fine-tune"
    if protocol.counts == "shots" and task.multilabel:
        return "labels a class cannot be counted where an image has several"
    return ""


def _too_many(plan: Suite, task: LabelledSet) -> list[int]:
    """Labels a class that are asked for and that no class has."""
    if task.multilabel or not any(PROTOCOLS.get(name).counts == "shots" for name in plan.protocols):
        return []
    most = np.bincount(task.labels[task.splits["train"]]).max()
    return [shots for shots in sorted(plan.shots) if shots > most]


def _jobs(plan: Suite, weights: Weights, task: LabelledSet, seed: int | None = None) -> Iterator[Job]:
    """The rows that a backbone gets: protocols by amount of labels; what is random also by seed."""
    for name in plan.protocols:
        protocol = PROTOCOLS.get(name)
        if name == MAJORITY or _cannot(name, weights, task):
            continue
        amounts: list[tuple[float | None, int | None]] = [(1.0, None)]
        if protocol.counts == "labels":
            amounts = [(share, None) for share in sorted(plan.labels)]
        elif protocol.counts == "shots":
            amounts = [(None, shots) for shots in sorted(plan.shots)]
        seeds = plan.seeds if not protocol.frozen and not weights.random else [plan.seeds[0]]
        for share, shots in amounts:
            for one in seeds if seed is None else [seed]:
                yield Job(name, share, shots, one)


def _run_jobs(bench: Bench, jobs: list[Job], store: Store, failed: dict[str, UserError]) -> list[Row]:
    """Rows of one backbone: features first, each with its own progress, then the rows, then what trains."""
    wanted = [job for job in jobs if store.get(row_key(bench, job)) is None]
    protocols = [PROTOCOLS.get(job.protocol) for job in wanted]
    if any(p.frozen for p in protocols):
        for split in ("train", "val", "test"):
            bench.features(split)
    if any(p.corrupted for p in protocols):
        for corruption in bench.corruptions:
            bench.features("test", corruption)
    rows = {}
    frozen = [job for job in jobs if PROTOCOLS.get(job.protocol).frozen]
    with Progress("probes", len(frozen), "row", bench.quiet) as progress:
        for job in frozen:
            rows[job] = _row(bench, job, store)
            progress.advance(1, str(job))
    for job in jobs:
        if job not in rows:
            try:
                rows[job] = _row(bench, job, store)
            except DivergedError as error:
                which = f"{bench.weights.name}, {job}"
                failed[f"{bench.task.source}: {which}"] = error
                warn(f"{bench.task.name}: {which}: {error.message}; the other rows go on")
    return [rows[job] for job in jobs if job in rows]


def _row(bench: Bench, job: Job, store: Store) -> Row:
    """A row from the store, or made and put there."""
    key = row_key(bench, job)
    kept = store.get(key)
    if kept is not None:
        return kept | {"weights": bench.weights.name, "task": bench.task.name, "source": bench.task.source}
    began = time.perf_counter()
    try:
        outcome = PROTOCOLS.get(job.protocol).run(bench, job)
    except DataError as error:
        error.message = f"{bench.task.source}: {job}: {error.message}"
        raise
    row, arrays = make_row(bench, job, outcome, key)
    row["seconds"] = round(time.perf_counter() - began, 2)
    store.put(row, arrays)
    return row


def _majority(task: LabelledSet) -> Weights:
    count = CHANNEL_COUNT[task.corpus.channels]
    preprocessing = Preprocessing(task.corpus.channels, 1, (0.0,) * count, (1.0,) * count)
    return Weights(f"baseline:{MAJORITY}", nn.Identity(), preprocessing, MAJORITY, MAJORITY)


def session(command: str, plan: Suite, began: float) -> dict[str, Any]:
    """How and when results were made, as reports show it; ``began`` in seconds of the epoch."""
    return {
        "command": command,
        "suite": plan.model_dump(mode="json"),
        "version": __version__,
        "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - began, 1),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
