"""Suites: which labelled sets, which protocols; and the run that turns weights into result rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled
from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.evaluation.features import Weights, extract, load_weights
from ssl_mednet.probe import METRICS, bootstrap, fit_linear, knn_scores, select_k
from ssl_mednet.recipe import Section, parse, read_yaml

REPORTED = {name: METRICS[name] for name in ("auroc", "accuracy", "balanced_accuracy")}
RESULTS = "results.json"


class SetSection(Section):
    source: str = Field(description="labelled set: zip, folder, npz or phantoms; relative to the suite's root")
    channels: Literal["gray", "color", "auto"] = Field("auto", description="auto: those of the first weights")
    convert: bool = Field(False, description="turn images of the other kind (gray, color) into this one")


class Suite(Section):
    """What to measure."""

    name: str = "evaluation"
    root: str = Field("", description="folder that relative sources are looked up in; environment variables work")
    sets: list[SetSection] = Field(min_length=1)
    protocols: list[Literal["knn", "linear"]] = Field(["knn", "linear"], min_length=1)
    image_size: int | None = Field(None, ge=16, description="for untrained nets alone; weights know their own")
    store_size: int = Field(256, ge=16, description="longest side kept in the cache, pixels")
    knn_k: list[int] = Field([1, 5, 10, 20, 50, 100, 200], min_length=1, description="swept on the validation split")
    temperature: float = Field(0.07, gt=0, description="of the kNN votes")
    resamples: int = Field(1000, ge=0, description="bootstrap resamples behind each interval")
    seed: int = Field(0, ge=0)
    device: str = "auto"


@dataclass(frozen=True)
class Results:
    """Rows as they are written to ``results.json``, and where that is."""

    rows: list[dict[str, Any]]
    path: Path


def evaluate(
    weights: list[str | Path] | list[str],
    suite: str | Path | dict[str, Any] | None = None,
    data: list[str] | str | Path | None = None,
    out: str | Path | None = None,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Results:
    """Evaluate backbones on labelled sets.

    Args:
        weights: run or artifact folders, ``random:NAME``; several are compared.
        suite: path or name of a suite, or a dictionary.
        data: labelled sets instead of a suite.
        out: folder for ``results.json``; by default ``results/NAME``.
        overrides: ``key=value`` of the suite's keys.

    Raises:
        UserError: anything a user can mend.
    """
    names = [str(w) for w in weights]
    if not names:
        raise RecipeError("nothing to evaluate", "--weights RUN, or --weights random:resnet18")
    plan = _load_suite(suite, data, overrides)
    device = torch.device(plan.device if plan.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    channels = _channels_of(names)
    rows: list[dict[str, Any]] = []
    for section in plan.sets:
        kind = channels if section.channels == "auto" else section.channels
        spec = CorpusSpec(kind, plan.store_size, convert=section.convert)
        task = open_labelled(_locate(section.source, plan.root), spec, quiet)
        for one in load_weights(names, kind, plan.image_size, plan.seed):
            rows += _probe(one, task, plan, device, quiet)
    folder = Path(out) if out else Path("results") / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    path.write_text(json.dumps(rows, indent=1, allow_nan=True) + "\n")
    return Results(rows, path)


def _load_suite(suite: Any, data: list[str] | str | Path | None, overrides: list[str] | None) -> Suite:
    if (suite is None) == (data is None):
        raise RecipeError("say what to evaluate on: --data SET... or --suite NAME, one of them")
    if data is None:
        where, content = read_yaml(suite, "eval", overrides)
        return parse(Suite, content, where)
    sources = [str(data)] if isinstance(data, str | Path) else [str(d) for d in data]
    name = "_".join(Path(s.partition("?")[0]).name.split(".")[0].replace(":", "_") for s in sources)[:80]
    where, content = read_yaml({"name": name, "sets": [{"source": s} for s in sources]}, "eval", overrides)
    return parse(Suite, content, "evaluation")


def _locate(source: str, root: str) -> str:
    if source.startswith("phantoms:") or Path(source).expanduser().is_absolute() or not root:
        return source
    return str(Path(root).expanduser() / source)


def _channels_of(names: list[str]) -> str:
    from ssl_mednet.backbones.artifact import find_artifact, read_config

    trained = [n for n in names if not n.startswith("random:")]
    if not trained:
        return "gray"
    return str(read_config(find_artifact(trained[0]))["ssl_mednet"]["preprocessing"]["channels"])


def _probe(weights: Weights, task: LabelledSet, plan: Suite, device: torch.device, quiet: bool) -> list[dict[str, Any]]:
    features = {s: extract(weights, task.corpus, r, device, quiet) for s, r in task.splits.items()}
    labels = {s: task.labels[r] for s, r in task.splits.items()}
    return [_row(weights, task, plan, p, *_PROTOCOLS[p](features, labels, task, plan)) for p in plan.protocols]


Split = dict[str, np.ndarray]


def _knn(features: Split, labels: Split, task: LabelledSet, plan: Suite) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores of the test rows by their neighbours among the training rows; k by validation AUROC."""
    bank = features["train"]
    options: dict[str, Any] = {"num_classes": len(task.classes), "temperature": plan.temperature}
    choice = select_k(bank, labels["train"], features["val"], labels["val"], plan.knn_k, **options)
    scores = knn_scores(bank, labels["train"], features["test"], choice.k, **options)
    return scores, {"k": choice.k, "note": choice.note}


def _linear(features: Split, labels: Split, task: LabelledSet, plan: Suite) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores of the test rows by L2 logistic regression on the training rows; strength by validation AUROC."""
    probe = fit_linear(
        features["train"],
        labels["train"],
        features["val"],
        labels["val"],
        num_classes=len(task.classes),
        multilabel=task.multilabel,
    )
    chosen = {"strength": probe.strength, "converged": probe.converged, "note": probe.note}
    return probe.predict_proba(features["test"]), chosen


_PROTOCOLS: dict[str, Callable[[Split, Split, LabelledSet, Suite], tuple[np.ndarray, dict[str, Any]]]] = {
    "knn": _knn,
    "linear": _linear,
}


def _row(
    weights: Weights, task: LabelledSet, plan: Suite, protocol: str, scores: np.ndarray, chosen: dict[str, Any]
) -> dict[str, Any]:
    targets = task.labels[task.splits["test"]]
    groups = task.groups[task.splits["test"]] if task.grouped else None
    intervals = bootstrap(REPORTED, targets, scores, groups, n=plan.resamples, seed=plan.seed)
    counts = Counter(task.labels[task.splits["train"]].tolist()) if not task.multilabel else {}
    majority = max(counts, key=counts.__getitem__) if counts else None
    return {
        "weights": weights.name,
        "task": task.name,
        "protocol": protocol,
        "labels": 1.0,
        "seed": plan.seed,
        "n": len(targets),
        "n_train": len(task.splits["train"]),
        "classes": task.classes,
        "metrics": {name: asdict(interval) for name, interval in intervals.items()},
        "chosen_on_val": chosen,
        "majority_accuracy": None if majority is None else float((targets == majority).mean()),
        "grouped": task.grouped,
        "splits_made": list(task.made),
        "image_size": weights.preprocessing.image_size,
        "weights_sha256": weights.digest,
        "data_fingerprint": task.corpus.meta["fingerprint"],
        "skipped": task.corpus.meta["skipped"],
    }


def load_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``results.json``.

    Raises:
        UserError: it is not there or not JSON.
    """
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return list(rows)
