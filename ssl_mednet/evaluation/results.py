"""Rows of results: made from scores, kept one by one so that a run goes on where it stopped, and compared in pairs."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ssl_mednet.augment.corruptions import SEVERITIES
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.evaluation.bench import PROTOCOLS, Bench, Job, Outcome
from ssl_mednet.evaluation.weights import identity
from ssl_mednet.files import replacing, with_nan, write_json
from ssl_mednet.probe import (
    METRICS,
    Metric,
    Resampled,
    best_threshold,
    difference,
    fit_temperature,
    per_class_auroc,
    per_class_recall,
    resample,
    with_temperature,
)

# Part of a row's key: rows computed another way are never taken up. To be raised with every change of rules that
# changes figures; tests/evaluation/test_golden.py notices.
FORMAT = 5
RESULTS, COMPARISONS, PREDICTIONS = "results.json", "comparisons.json", "predictions"
REPORTED = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1", "ece")
OF_DRAWS = ("auroc", "accuracy", "balanced_accuracy")  # of many fits, whose calibration nobody asks for
COMPARED = ("auroc", "balanced_accuracy", "balanced_error")
Row = dict[str, Any]


def row_key(bench: Bench, job: Job) -> str:
    """What a row depends on, in one word: equal keys, equal rows."""
    suite = bench.suite.model_dump(mode="json")
    options = {name: suite[name] for name in (*PROTOCOLS.get(job.protocol).options, "seed", "resamples", "strengths")}
    said = [FORMAT, identity(bench.weights), bench.task.fingerprint, bench.task.ordinal, asdict(job), options]
    if code := _foreign_code(PROTOCOLS.get(job.protocol).run):
        said.append(code)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]


def _foreign_code(run: Callable[..., Any]) -> str:
    """Digest of the file that a protocol of another package stands in, so that rows of other code are made anew.

    Of what was typed somewhere it is that of the code itself; of what is no function nothing is known.
    """
    own = inspect.unwrap(getattr(run, "func", run))
    if getattr(own, "__module__", "").startswith("ssl_mednet."):
        return ""
    try:
        said = Path(inspect.getsourcefile(own) or "").read_bytes()
    except (TypeError, OSError):
        code = getattr(own, "__code__", None)
        said = code.co_code + repr(code.co_consts).encode() if code else b""
    return hashlib.sha256(said).hexdigest()


def make_row(bench: Bench, job: Job, outcome: Outcome, key: str) -> tuple[Row, dict[str, np.ndarray]]:
    """The row, and the arrays that belong to it: scores, targets, and each compared metric on every resample."""
    task, suite = bench.task, bench.suite
    test = task.splits["test"] if outcome.test is None else task.splits["test"][outcome.test]
    targets, groups = task.labels[test], task.groups[test] if task.grouped else None
    drawn: dict[str, Any] = {"groups": groups, "n": suite.resamples, "seed": suite.seed}
    row: Row = describe(task) | {
        "weights": bench.weights.name,
        "protocol": job.protocol,
        "labels": job.labels,
        "shots": job.shots,
        "seed": job.seed,
        "n": len(targets),
        "n_train": outcome.n_train,
        "copies": bench.copies,
        "chosen_on_val": outcome.chosen,
        "image_size": bench.weights.preprocessing.image_size,
        "architecture": bench.weights.architecture,
        "weights_sha256": bench.weights.published or bench.weights.digest,
        "key": key,
        "predictions": f"{PREDICTIONS}/{key}.npz",
    }
    if "conditions" in outcome.more:
        resampled = _robustness(row, outcome, targets, drawn)
    elif outcome.scores.ndim == 3:
        resampled = resample({m: METRICS[m] for m in OF_DRAWS}, targets, outcome.scores, **drawn)
        row |= outcome.more | {"spread": _spread(outcome.scores, targets)}
    else:
        resampled = resample(_metrics(task, suite), targets, outcome.scores, **drawn)
        resampled |= _tuned_on_val(row, bench, outcome, targets, drawn)
        row |= outcome.more | {"per_class": _per_class(task, targets, outcome.scores)}
    row["metrics"] = {name: asdict(r.interval()) for name, r in resampled.items()}
    arrays = {
        "scores": outcome.scores,  # float64: in half of it the surest ones tie, and AUROC is another
        "targets": targets,
        "rows": test,
        "groups": task.groups[test],
    }
    arrays |= {f"resampled_{name}": r.draws for name, r in resampled.items() if name in COMPARED}
    return row, arrays


def describe(task: LabelledSet) -> Row:
    """What a row says of its set."""
    return {
        "task": task.name,
        "kind": "multi-label" if task.multilabel else "ordinal" if task.ordinal else "multi-class",
        "classes": task.classes,
        "channels": task.corpus.channels,
        "modalities": task.corpus.modalities(task.splits["test"]),
        "n_val": len(task.splits["val"]),
        "grouped": task.grouped,
        "ungrouped": task.ungrouped,
        "splits_made": list(task.made),
        "source": task.source,
        "data_fingerprint": task.fingerprint,
        "skipped": task.corpus.meta["skipped"],
        "licence": task.corpus.meta["licence"],
        "note": task.corpus.meta["note"],
    }


def _metrics(task: LabelledSet, suite: Any) -> dict[str, Metric]:
    names = REPORTED + (("quadratic_kappa",) if task.ordinal else ())
    return {name: METRICS[name] for name in names}


def _spread(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Standard deviation of each metric over the draws of labels."""
    values = {name: [METRICS[name](targets, fit) for fit in scores] for name in OF_DRAWS}
    return {name: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan for name, v in values.items()}


def _tuned_on_val(
    row: Row, bench: Bench, outcome: Outcome, targets: np.ndarray, drawn: dict[str, Any]
) -> dict[str, Resampled]:
    """Calibration error after a temperature from val; of two classes also the operating point that val chose."""
    if outcome.val_scores is None or not len(outcome.val_scores):
        return {}
    val = bench.labels("val")
    if val.ndim == 1 and len(np.unique(val)) < 2:
        return {}  # of one class: the best temperature would be none
    temperature = fit_temperature(val, outcome.val_scores)
    calibrated = with_temperature(outcome.scores, temperature, bench.task.multilabel)
    row["chosen_on_val"] = row["chosen_on_val"] | {"temperature_of_calibration": temperature}
    if not bench.task.multilabel and len(bench.task.classes) == 2 and len(np.unique(val)) == 2:
        threshold = best_threshold(val, outcome.val_scores)
        said = outcome.scores[:, 1] >= threshold
        rates = {"sensitivity": said[targets == 1], "specificity": ~said[targets == 0]}
        row["operating_point"] = {"threshold": threshold, "positive": bench.task.classes[1]} | {
            name: float(hits.mean()) if len(hits) else math.nan for name, hits in rates.items()
        }
    return {"ece_calibrated": resample({"": METRICS["ece"]}, targets, calibrated, **drawn)[""]}


def _per_class(task: LabelledSet, targets: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, float]]:
    recall, auroc = per_class_recall(targets, scores), per_class_auroc(targets, scores)
    names = task.classes if len(auroc) == len(task.classes) else task.classes[1:]
    return {
        "recall": dict(zip(task.classes, map(float, recall), strict=True)),
        "auroc": dict(zip(names, map(float, auroc), strict=True)),
    }


def _robustness(row: Row, outcome: Outcome, targets: np.ndarray, drawn: dict[str, Any]) -> dict[str, Resampled]:
    """Balanced error by corruption and severity, and the mean (Di Salvo et al. 2024, arXiv 2406.17536, section 3)."""
    errors = [
        _error(resample({"": METRICS["balanced_accuracy"]}, targets, scores, **drawn)[""]) for scores in outcome.scores
    ]
    conditions = outcome.more["conditions"]
    table: dict[str, list[float]] = {}
    for condition, error in zip(conditions[:-1], errors, strict=False):
        table.setdefault(condition.rpartition(" ")[0], []).append(error.value)
    row["corruptions"], row["severities"] = table, list(SEVERITIES)
    corrupted = errors[:-1]
    mean = Resampled(
        float(np.mean([e.value for e in corrupted])), np.mean([e.draws for e in corrupted], axis=0), errors[-1].single
    )
    return {"balanced_error": mean, "clean_balanced_error": errors[-1]}


def _error(accuracy: Resampled) -> Resampled:
    return Resampled(1.0 - accuracy.value, 1.0 - accuracy.draws, accuracy.single)


# --- kept -----------------------------------------------------------------------------------------------------------


class Store:
    """The rows of a results folder: ``rows/KEY.json`` with ``predictions/KEY.npz``, each whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("rows", PREDICTIONS):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Row | None:
        """A row made earlier, or None."""
        path = self.folder / "rows" / f"{key}.json"
        try:
            with zipfile.ZipFile(self.folder / PREDICTIONS / f"{key}.npz") as predictions:
                whole = predictions.testzip() is None
            return _read(json.loads(path.read_text())) if whole else None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None  # not there, not ours, or damaged: it is made again

    def put(self, row: Row, arrays: dict[str, np.ndarray]) -> None:
        with replacing(self.folder / PREDICTIONS / f"{row['key']}.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        write_json(self.folder / "rows" / f"{row['key']}.json", row, nan=False)

    def resampled(self, row: Row, metric: str) -> Resampled:
        figure = with_nan(row["metrics"][metric])
        with np.load(self.folder / row["predictions"], allow_pickle=False) as arrays:
            draws = arrays[f"resampled_{metric}"]
        return Resampled(figure["value"], draws, math.isnan(figure["low"]))


def _read(row: Row) -> Row:
    return row | {"metrics": with_nan(row["metrics"])}


def compare(rows: list[Row], store: Store) -> list[dict[str, Any]]:
    """Of all weights that did the same, the first against each of the others: a paired bootstrap.

    The resamples of a set are the same for all weights, so the difference on each is a matter of subtraction. The p
    values are not corrected for the number of comparisons.
    """
    found = []
    ordered = sorted(enumerate(rows), key=lambda pair: (_what(pair[1]), pair[0]))
    for what, same in groupby(ordered, key=lambda pair: _what(pair[1])):
        first, *others = [row for _, row in same]
        for other in others:
            for metric in COMPARED:
                if metric in first["metrics"] and metric in other["metrics"]:
                    a, b = store.resampled(first, metric), store.resampled(other, metric)
                    result = difference(a, b, higher_is_better=metric != "balanced_error")
                    names = {"metric": metric, "a": first["weights"], "b": other["weights"]}
                    _, protocol, labels, shots, seed = what
                    said = {
                        "task": first["task"],
                        "protocol": protocol,
                        "labels": labels or None,
                        "shots": shots or None,
                    }
                    found.append(said | {"seed": seed} | names | asdict(result))
    return found


def _what(row: Row) -> tuple[tuple[str, str], str, float, int, int]:
    """What was done, apart from the weights."""
    return (row["task"], row["data_fingerprint"]), row["protocol"], row["labels"] or 0.0, row["shots"] or 0, row["seed"]
