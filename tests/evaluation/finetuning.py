"""Small fine-tuning runs on phantoms, and what they start from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ssl_mednet.augment.views import resize
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.evaluation.finetune import Finetuned, FinetuneSection, finetune
from ssl_mednet.evaluation.weights import Weights, load_weights
from ssl_mednet.probe.linear import LinearProbe, fit_linear

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "min_steps": 0, "batch_size": 32, "precision": "float32"}


def weights_of(name: str) -> Weights:
    return next(iter(load_weights([name], "gray", 32, seed=0)))


def run(
    weights: Weights, task: LabelledSet, seed: int = 0, head: LinearProbe | None = None, **options: Any
) -> Finetuned:
    rows, or_start = options.pop("rows", task.splits), options.pop("or_start", False)
    section = FinetuneSection(**{**SHORT, **options})
    return finetune(weights, task, rows, section, seed=seed, device=CPU, quiet=True, head=head, or_start=or_start)


def seen(weights: Weights, task: LabelledSet, rows: np.ndarray) -> torch.Tensor:
    return weights.preprocessing.normalise(resize(task.corpus.batch(rows), weights.preprocessing.image_size))


@torch.no_grad()
def probe_of(weights: Weights, task: LabelledSet, train: np.ndarray | None = None) -> tuple[LinearProbe, np.ndarray]:
    """A probe on the frozen features, and its probabilities of the test rows."""
    splits = {**task.splits, "train": task.splits["train"] if train is None else train}
    features = {s: weights.model(seen(weights, task, r)).numpy() for s, r in splits.items()}
    labels = {s: task.labels[r] for s, r in splits.items()}
    data = features["train"], labels["train"], features["val"], labels["val"]
    probe = fit_linear(*data, num_classes=len(task.classes), multilabel=task.multilabel)
    return probe, probe.predict_proba(features["test"])


def several_findings(task: LabelledSet) -> LabelledSet:
    """The same images under two labels that do not exclude each other."""
    labels = np.stack([np.isin(task.labels, [0, 1]), np.isin(task.labels, [1, 2])], axis=1).astype(np.int8)
    return replace(task, labels=labels, classes=["one", "other"])
