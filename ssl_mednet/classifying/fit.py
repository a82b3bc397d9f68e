"""The verb that makes a classifier: weights and a labelled set in, a model folder out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_mednet.classifying.about import Fit, about, command_of
from ssl_mednet.classifying.base import Base, keep_backbone, open_base
from ssl_mednet.classifying.card import model_readme
from ssl_mednet.classifying.folds import cross_validate
from ssl_mednet.classifying.model import BACKBONE, REFERENCE, RESULTS, check_room, whole_folder, write_head
from ssl_mednet.classifying.unlike import Unlike
from ssl_mednet.data.labelled import LabelledSet, kept_together
from ssl_mednet.errors import DataError, RecipeError, did_you_mean
from ssl_mednet.evaluation.bench import Bench, Job, Outcome, find_device
from ssl_mednet.evaluation.classifier import Classifier, build_classifier
from ssl_mednet.evaluation.finetune import finetune as train
from ssl_mednet.evaluation.gallery import map_features, worst_mistakes, write_thumbnails
from ssl_mednet.evaluation.leaks import count_copies, count_parted
from ssl_mednet.evaluation.protocols import full_probe
from ssl_mednet.evaluation.results import COMPARISONS, Row, Store, make_row, row_key
from ssl_mednet.evaluation.results import RESULTS as ROWS
from ssl_mednet.evaluation.run import RUN, open_set, session
from ssl_mednet.evaluation.suite import load_suite
from ssl_mednet.evaluation.weights import state_hash
from ssl_mednet.files import write_json
from ssl_mednet.probe import LinearProbe

LINEAR, BOTH = "linear", "linear_then_finetune"
PROTOCOLS = (LINEAR, "finetune", BOTH)
FEW = 1000  # labelled images, below which a probe is cross-validated where the set has no val split of its own
# What is fine-tuned by default: with FEW images it gains nothing (eval/README.md), larger nets take long without a GPU.
SMALL_NET, SMALL_IMAGE = 8_000_000, 96  # parameters; side of the images, pixels


@dataclass(frozen=True)
class Fitted:
    """A classifier that was made.

    Args:
        folder: of the model.
        row: its measurement, as in ``results.json``: at the most probable class.
        point: accuracy and balanced accuracy of what ``predict`` says, where that is not the most probable class.
        cross_validated: whether the figures are from cross-validation rather than from test images.
        licences: what the licences of images and weights ask for, in lines.
    """

    folder: Path
    row: Row
    point: dict[str, Any]
    cross_validated: bool
    licences: list[str]


def finetune(
    weights: str | Path,
    data: str | Path,
    out: str | Path,
    protocol: str = "auto",
    channels: str = "auto",
    convert: bool = False,
    modality: str = "",
    overrides: Sequence[str] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Fitted:
    """Make a classifier from weights and labelled images.

    Test images are scored once, at the end. Where the set has no val split of its own and fewer than ``FEW`` labelled
    images, a linear probe is fitted on all of them: what is chosen (strength, temperature, thresholds) comes from
    cross-validation by group, and so do the figures where there is no test split either.

    Args:
        weights: a run, an artifact folder, a name of ours, or ``imagenet:NAME[@SIZE]``.
        data: a labelled set.
        out: folder of the model; it appears whole or not at all.
        protocol: ``"linear"`` (the backbone stays frozen: seconds), ``"finetune"``, ``"linear_then_finetune"`` (where
            no epoch is better on val, the probe on the frozen backbone is kept, as epoch 0), or ``"auto"``: the last
            where it takes about a minute (a GPU, or a net of at most ``SMALL_NET`` parameters at ``SMALL_IMAGE``
            pixels) and there are ``FEW`` images, else the first.
        channels: ``"auto"`` takes those of the weights, gray for ImageNet.
        convert: turn images of the other kind into this one.
        modality: of images that do not say their own.
        overrides: ``key=value`` of a suite's keys: ``finetune.epochs=5``, or ``seed=1``, which is the seed of the
            folds, of the order and augmentation of fine-tuning, and of the bootstrap.
        overwrite: replace a model that is there.

    Raises:
        UserError: anything a user can mend.
    """
    began = time.time()
    folder = check_room(out, overwrite)
    if protocol not in ("auto", *PROTOCOLS):
        hint = did_you_mean(protocol, PROTOCOLS) or f"auto, {', '.join(PROTOCOLS)}"
        raise RecipeError(f"--protocol {protocol}: no such way to make a classifier", hint)
    plan = load_suite(None, str(data), list(overrides or []))
    if "seeds" in plan.model_fields_set:
        raise RecipeError("seeds: one classifier is made, with one seed", f"seed={plan.seeds[0]}")
    device, base = find_device(plan.device), open_base(str(weights), channels, plan.image_size)
    kind = base.weights.preprocessing.channels
    section = plan.sets[0].model_copy(update={"convert": convert, "modality": modality})
    side = max(plan.store_size, base.weights.preprocessing.image_size)
    plan = plan.model_copy(update={"sets": [section], "store_size": side})
    task = open_set(section, kind, plan, quiet)
    bench = Bench(base.weights, task, plan, device, quiet)
    labelled = len(task.splits["train"]) + len(task.splits["val"])
    if protocol == "auto":
        protocol = BOTH if labelled >= FEW and _affordable(base, device) else LINEAR
    options = {"weights": weights, "data": data, "out": out, "protocol": protocol}
    command = command_of(options | {"channels": channels, "modality": modality}, convert, overrides or ())
    folds = protocol == LINEAR and "val" in task.made and labelled < FEW
    parts = _folded(task) if folds else ("train",)
    used = replace(task, splits={"train": np.concatenate([task.splits[part] for part in parts])})
    if missing := used.without("train"):
        hint = "images of it among those to train on, or leave it out of the set"
        raise DataError(f"{data}: no train image of {', '.join(missing)}, which the classifier would never say", hint)
    fit = _by_folds(bench) if folds else _by_val(bench, protocol)
    with whole_folder(folder) as temporary:
        row = _measure(fit, protocol, temporary / RESULTS, command, began)
        said = about(fit, base, protocol, row)
        trained = None if protocol == LINEAR else fit.classifier.backbone
        keep_backbone(base, temporary / BACKBONE, trained, said["data"], folder.name)
        if trained is not None:
            keep_backbone(base, temporary / REFERENCE, None, said["data"], folder.name)
        write_head(temporary, fit.classifier.head.weight, fit.classifier.head.bias, fit.unlike, said)
        (temporary / "README.md").write_text(model_readme(folder.name, said))
    point = said["operating_point"].get("metrics", {})
    return Fitted(folder, row, point, fit.cross_validated, said["data"]["publishing"])


def _affordable(base: Base, device: torch.device) -> bool:
    """Whether fine-tuning takes minutes at most."""
    weights = base.weights
    small = sum(p.numel() for p in weights.model.parameters()) <= SMALL_NET
    return device.type != "cpu" or (small and weights.preprocessing.image_size <= SMALL_IMAGE)


def _by_val(bench: Bench, protocol: str) -> Fit:
    """Trained on train, chosen and tuned on val, and measured on test."""
    bench.copies = count_copies(bench.task)
    unlike = Unlike.fit(bench.features("train"), bench.labels("train"))  # of the frozen backbone, whatever comes after
    unlike = unlike.tuned(unlike.distances(bench.features("val")))
    probe, chosen, more = full_probe(bench) if protocol != "finetune" else None, {}, {}
    if protocol == LINEAR:
        assert probe is not None
        classifier = _frozen(bench, probe)
        scores = {split: probe.predict_proba(bench.features(split)) for split in ("val", "test")}
        chosen = {"strength": probe.strength, "note": probe.note}
    else:
        task, options, seed = bench.task, bench.suite.finetune, bench.suite.seed
        rows, where = task.splits, {"device": bench.device, "quiet": bench.quiet}
        result = train(bench.weights, task, rows, options, seed=seed, head=probe, or_start=protocol == BOTH, **where)  # type: ignore[arg-type]
        assert isinstance(result.classifier, Classifier)
        classifier, scores = result.classifier, result.scores
        chosen, more = result.chosen, {"history": result.history}
        net = classifier.backbone
        bench = replace(bench, weights=replace(bench.weights, model=net, digest=state_hash(net)), _features={})
    outcome = Outcome(scores["test"], len(bench.labels("train")), scores["val"], chosen=chosen, more=more)
    return Fit(bench, classifier, outcome, scores["val"], unlike)


def _by_folds(bench: Bench) -> Fit:
    """A linear probe on all rows but those of an official test split, tuned by cross-validation."""
    task = bench.task
    tested = "test" not in task.made
    rows = np.sort(np.concatenate([task.splits[part] for part in _folded(task)]))
    splits = {"train": rows, "val": rows, "test": task.splits["test"] if tested else rows}
    bench = replace(bench, task=replace(task, splits=splits, made=()))
    features, labels = bench.features("train"), bench.labels("train")
    strengths = tuple(bench.suite.strengths)
    units = kept_together(task.corpus, task.groups)[rows]
    found = cross_validate(features, labels, units, strengths, task.classes, bench.suite.seed)
    how = f"{found.folds}-fold cross-validation{' by group' if (task.groups[rows] >= 0).any() else ''}"
    note = f"strength, temperature and thresholds are from {how} of the {len(rows)} training images"
    if not tested:
        note = f"no test split: each image is scored by a probe fitted and chosen without it, {how}"
    chosen = {"strength": found.probe.strength, "note": found.probe.note}
    if tested:
        bench.copies = count_copies(bench.task)
        outcome = Outcome(found.probe.predict_proba(bench.features("test")), len(rows), found.scores, chosen=chosen)
    else:
        bench.copies = count_parted(bench.task, rows, found.fold)
        outcome = Outcome(found.scores, len(rows), chosen=chosen)
    unlike = Unlike.fit(features, labels).tuned(found.distances)
    return Fit(bench, _frozen(bench, found.probe), outcome, found.scores, unlike, note, found.fold)


def _folded(task: LabelledSet) -> tuple[str, ...]:
    """The splits that folds are made of: an official test split is none of them."""
    return ("train", "val") if "test" not in task.made else ("train", "val", "test")


def _frozen(bench: Bench, probe: LinearProbe) -> Classifier:
    pre, parameter = bench.weights.preprocessing, next(bench.weights.model.parameters())
    example = torch.zeros(1, len(pre.mean), pre.image_size, pre.image_size, device=parameter.device)
    classifier = build_classifier(bench.weights.model, example, len(bench.task.classes), probe)
    assert isinstance(classifier, nn.Module)
    return classifier


def _measure(fit: Fit, protocol: str, folder: Path, command: str, began: float) -> Row:
    """The row of results, with its predictions and pictures, in a folder that reports can be made from."""
    bench, store = fit.bench, Store(folder)
    job = Job(protocol, 1.0, None, bench.suite.seed)
    row, arrays = make_row(bench, job, fit.outcome, key=f"model_{row_key(bench, job)}")
    row["note"] = "; ".join(filter(None, [row["note"], fit.note]))
    row["weights"] = Path(row["weights"]).name or row["weights"]
    row["seconds"] = round(time.time() - began, 1)
    row["cross_validated"] = fit.cross_validated
    if fit.fold is not None:
        row["n_val"] = None  # the folds are of the training images
    store.put(row, arrays)
    (folder / "gallery").mkdir()
    shown = [worst_mistakes(row, folder)]
    if not fit.cross_validated and bench.suite.gallery:
        named = replace(bench, weights=replace(bench.weights, name=row["weights"]))
        path, ids = map_features(named, folder)
        row["gallery"] = path.relative_to(folder).as_posix()
        shown.append(ids)
    ids = np.unique(np.concatenate(shown))
    if len(ids):
        write_thumbnails(bench.task, folder, ids)
    write_json(folder / ROWS, [row], nan=False)
    write_json(folder / COMPARISONS, [])
    write_json(folder / RUN, session(command, bench.suite, began))
    return row
