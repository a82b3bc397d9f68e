"""What a protocol came to, and what the model folder says of it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_mednet import __version__
from ssl_mednet.backbones.start import with_inherited
from ssl_mednet.catalog.licences import DISCLAIMER, roll_up
from ssl_mednet.classifying.base import Base, all_licences
from ssl_mednet.classifying.model import decided
from ssl_mednet.classifying.operating import decided_by_others, operating_point, thresholds
from ssl_mednet.classifying.unlike import Unlike
from ssl_mednet.evaluation.bench import Bench, Outcome
from ssl_mednet.evaluation.classifier import Classifier
from ssl_mednet.evaluation.results import Row
from ssl_mednet.probe import fit_temperature, with_temperature


@dataclass(frozen=True)
class Fit:
    """What a protocol came to.

    ``held_out`` are scores of the val rows of ``bench``, or of all rows from the folds, whose numbers ``fold`` has.
    """

    bench: Bench
    classifier: Classifier
    outcome: Outcome
    held_out: np.ndarray
    unlike: Unlike
    note: str = ""
    fold: np.ndarray | None = None

    @property
    def cross_validated(self) -> bool:
        """Whether there are no test images, so that the scores are those of the folds."""
        return self.outcome.val_scores is None


def command_of(options: dict[str, Any], convert: bool, overrides: Sequence[str]) -> str:
    """What a reader types to get this model, also on a machine for which ``auto`` is another protocol."""
    words = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(["ssl-mednet", "finetune", *words, *(["--convert"] if convert else []), *overrides])


def about(fit: Fit, base: Base, protocol: str, row: Row) -> dict[str, Any]:
    """What ``model.json`` says, all but the arrays."""
    task, suite = fit.bench.task, fit.bench.suite
    used = np.unique(np.concatenate([task.splits["train"], task.splits["val"]]))
    labels, multilabel = fit.bench.labels("val"), task.multilabel
    temperature = fit_temperature(labels, fit.held_out)
    limits = thresholds(task.classes, labels, with_temperature(fit.held_out, temperature, multilabel))
    own = Counter(task.corpus.column("licence").take(used).to_pylist())
    verdict = roll_up(all_licences(base, dict(own)))
    measured_on = "cross-validation" if fit.cross_validated else "test images"
    return {
        "classes": task.classes,
        "multilabel": multilabel,
        "temperature": temperature,
        "thresholds": limits,
        "channels": task.corpus.channels,
        "modalities": sorted(task.corpus.modalities(used)),
        "convert": suite.sets[0].convert or suite.convert,
        "store_size": suite.store_size,
        "preprocessing": vars(base.weights.preprocessing),
        "protocol": protocol,
        "weights": base.record,
        "data": {
            "source": Path(task.source).name,
            "images": len(used),
            "skipped": task.corpus.meta["skipped"],
            "fingerprint": task.corpus.meta["fingerprint"],
            "held_out": with_inherited({}, base.held_out),
            "licences": {licence or "not stated": count for licence, count in own.most_common()},
            "publishing": [verdict.sentence, *verdict.conditions, DISCLAIMER],
        },
        "metrics": row["metrics"],
        "operating_point": _point(fit, temperature, limits) if limits else {},
        "measured_on": measured_on,
        "n": row["n"],
        "intervals_by": "group" if row["grouped"] else "image",
        "splits_made": row["splits_made"],
        "copies": row["copies"],
        "note": row["note"],
        "version": __version__,
    }


def _point(fit: Fit, temperature: float, limits: dict[str, float]) -> dict[str, Any]:
    """How good what ``predict`` says is; without test images at thresholds that the other folds chose."""
    task, suite, labels = fit.bench.task, fit.bench.suite, fit.bench.labels("test")
    if fit.cross_validated:
        assert fit.fold is not None
        said, chosen_on = decided_by_others(task.classes, labels, fit.held_out, fit.fold), "the other folds"
    else:
        scores = with_temperature(fit.outcome.scores, temperature, task.multilabel)
        said = decided(scores, task.classes, limits, task.multilabel)
        chosen_on = "val" if fit.fold is None else "cross-validation"
    groups = task.groups[task.splits["test"]] if task.grouped else None
    found = operating_point(task.classes, labels, said, groups, suite.resamples, suite.seed)
    return {"thresholds_from": chosen_on, **found}
