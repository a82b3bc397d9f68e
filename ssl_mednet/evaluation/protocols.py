"""Protocols: what is done with a backbone and a labelled set, up to the scores of the test rows.

Those on frozen features ask the bench for them; hyper-parameters are chosen on val, and test rows are scored once.
Where a job uses part of the labels, it is done for several draws of them, and each hyper-parameter is chosen once for
all draws. Draws depend on the suite's ``seed`` alone, so they are the same for every model, and for every seed of an
untrained one. What is fine-tuned takes one draw for each of the suite's ``seeds``: draw 1 for seed 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ssl_mednet.errors import DataError
from ssl_mednet.evaluation.bench import Bench, Job, Outcome, register_protocol
from ssl_mednet.evaluation.finetune import finetune
from ssl_mednet.evaluation.subsets import few_shot, fraction
from ssl_mednet.probe import LinearProbe, fit_linear, fit_path, knn_scores, select_k, unit_rows

# --- on frozen features ---------------------------------------------------------------------------------------------


@register_protocol("majority", "")
def majority(bench: Bench, job: Job) -> Outcome:
    """The shares of the classes among the training images, whatever the image: what no backbone may fall below."""
    labels, count = bench.labels("train"), len(bench.task.classes)
    share = labels.mean(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=count) / len(labels)
    return _outcome(lambda split: [np.tile(share, (len(bench.labels(split)), 1))], [np.arange(len(labels))], {})


@register_protocol("knn", "labels", "knn_k", "temperature", "draws")
def knn(bench: Bench, job: Job) -> Outcome:
    """Votes of the nearest training images by cosine; k by the AUROC on val, mean over the draws."""
    bank, labels = bench.features("train"), bench.labels("train")
    subsets = _draws(bench, job)
    options: dict[str, Any] = {"num_classes": len(bench.task.classes), "temperature": bench.suite.temperature}
    val = bench.features("val"), bench.labels("val")
    choices = [select_k(bank[s], labels[s], *val, bench.suite.knn_k, **options) for s in subsets]
    tried = np.array([[c.tried.get(k, np.nan) for k in choices[0].tried] for c in choices])
    k, note = choices[0].k, choices[0].note
    if len(choices) > 1 and not np.isnan(tried).all():
        k = list(choices[0].tried)[int(np.nanargmax(np.nanmean(tried, axis=0)))]

    def scored(split: str) -> list[np.ndarray]:
        return [knn_scores(bank[s], labels[s], bench.features(split), k, **options) for s in subsets]

    return _outcome(scored, subsets, {"k": k, "note": note})


@register_protocol("linear", "labels", "draws")
def linear(bench: Bench, job: Job) -> Outcome:
    """L2 logistic regression, at 25 strengths; the strength by the AUROC on val, mean over the draws."""
    return _linear(bench, _draws(bench, job))


@register_protocol("few_shot_linear", "shots", "draws")
def few_shot_linear(bench: Bench, job: Job) -> Outcome:
    """As ``linear``, on a few labels a class."""
    return _linear(bench, _draws(bench, job))


@register_protocol("few_shot_knn", "shots", "knn_k", "temperature", "draws")
def few_shot_knn(bench: Bench, job: Job) -> Outcome:
    """As ``knn``, on a few labels a class."""
    return knn(bench, job)


@register_protocol("few_shot_centroid", "shots", "draws", "temperature")
def few_shot_centroid(bench: Bench, job: Job) -> Outcome:
    """Cosine to the mean of the normalised features of each class, as a softmax (Snell et al. 2017, equation 2)."""
    x, labels = unit_rows(bench.features("train")), bench.labels("train")
    subsets, temperature = _draws(bench, job), bench.suite.temperature

    def scored(split: str) -> list[np.ndarray]:
        queries = unit_rows(bench.features(split))
        return [_centroid_scores(x[s], labels[s], queries, len(bench.task.classes), temperature) for s in subsets]

    return _outcome(scored, subsets, {"temperature": temperature})


@register_protocol("robustness", "", "corrupted", corrupted=True)
def robustness(bench: Bench, job: Job) -> Outcome:
    """The linear probe of clean images on corrupted test images; see :mod:`ssl_mednet.augment.corruptions`.

    The scores are ``[S, N, C]``, one for each corruption and severity, and those of the clean images last.
    """
    probe = full_probe(bench)
    corruptions = bench.corruptions
    scores = [probe.predict_proba(bench.features("test", c)) for c in corruptions]
    scores.append(probe.predict_proba(bench.features("test")[bench.tried]))
    chosen = {"strength": probe.strength, "note": probe.note}
    named = {"conditions": [f"{name} {severity}" for name, severity in corruptions] + ["clean"]}
    return Outcome(np.stack(scores), len(bench.labels("train")), test=bench.tried, chosen=chosen, more=named)


def _linear(bench: Bench, subsets: list[np.ndarray]) -> Outcome:
    x, labels = bench.features("train"), bench.labels("train")
    val, val_labels = bench.features("val"), bench.labels("val")
    count, multilabel = len(bench.task.classes), bench.task.multilabel
    strengths = tuple(bench.suite.strengths)
    paths = [fit_path(x[s], labels[s], strengths, count, multilabel) for s in subsets]
    values = np.mean([path.auroc(val, val_labels) for path in paths], axis=0)
    losses = np.mean([path.log_loss(val, val_labels) for path in paths], axis=0)
    index, note = paths[0].choose(values, losses, len(val))
    probes = [path.probe(index, note) for path in paths]

    def scored(split: str) -> list[np.ndarray]:
        return [probe.predict_proba(bench.features(split)) for probe in probes]

    notes = "; ".join(sorted({probe.note for probe in probes} - {""}))
    converged = all(probe.converged for probe in probes)
    return _outcome(scored, subsets, {"strength": probes[0].strength, "converged": converged, "note": notes})


def _draws(bench: Bench, job: Job) -> list[np.ndarray]:
    """Positions among the training rows, for each draw; one draw where all labels are used."""
    if job.shots is None:
        everything = job.labels is None or job.labels >= 1
    else:
        everything = bench.labels("train").ndim == 1 and job.shots >= np.bincount(bench.labels("train")).max()
    return [_draw(bench, job, draw) for draw in range(1 if everything else bench.suite.draws)]


def _draw(bench: Bench, job: Job, draw: int) -> np.ndarray:
    labels, seed = bench.labels("train"), bench.suite.seed
    if job.shots is None:
        return fraction(labels, 1.0 if job.labels is None else job.labels, draw, seed)
    if labels.ndim == 2:
        raise DataError(f"{bench.task.name}: labels a class cannot be counted where an image has several")
    return few_shot(labels, job.shots, draw, seed)


def _outcome(
    scored: Callable[[str], list[np.ndarray]], subsets: list[np.ndarray], chosen: dict[str, Any], **more: Any
) -> Outcome:
    """Scores of the test rows; those of val rows too where there is one draw, which can be calibrated."""
    test, used = scored("test"), len(subsets[0])
    if len(subsets) == 1:
        return Outcome(test[0], used, scored("val")[0], chosen=chosen, more=more)
    return Outcome(np.stack(test), used, chosen=chosen, more={"draws": len(subsets), **more})


def _centroid_scores(
    x: np.ndarray, labels: np.ndarray, queries: np.ndarray, count: int, temperature: float
) -> np.ndarray:
    centroids = unit_rows(np.stack([x[labels == c].sum(axis=0) for c in range(count)]))
    logits = queries @ centroids.T / temperature
    logits[:, ~np.isin(np.arange(count), labels)] = -np.inf  # a class that was never seen
    return np.asarray(torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy())


def full_probe(bench: Bench, rows: np.ndarray | None = None) -> LinearProbe:
    """The linear probe on all training rows, or on these positions among them."""
    use = slice(None) if rows is None else rows
    return fit_linear(
        bench.features("train")[use],
        bench.labels("train")[use],
        bench.features("val"),
        bench.labels("val"),
        num_classes=len(bench.task.classes),
        strengths=tuple(bench.suite.strengths),
        multilabel=bench.task.multilabel,
    )


# --- with the backbone ----------------------------------------------------------------------------------------------


@register_protocol("finetune", "labels", "finetune", frozen=False)
def finetune_all(bench: Bench, job: Job) -> Outcome:
    """Backbone and a new linear head are trained together; the best epoch by AUROC on val."""
    return _finetune(bench, job, from_probe=False)


@register_protocol("linear_then_finetune", "labels", "finetune", frozen=False)
def linear_then_finetune(bench: Bench, job: Job) -> Outcome:
    """As ``finetune``, from the head of the linear probe (Kumar et al. 2022, arXiv 2202.10054).

    An untrained net starts from a new head, as ``finetune`` does: the statistics of its batch normalisation are of
    nothing and move at once, away from the head of a probe, whose loss is then in the hundreds.
    """
    return _finetune(bench, job, from_probe=True)


@register_protocol("few_shot_finetune", "shots", "finetune", frozen=False)
def few_shot_finetune(bench: Bench, job: Job) -> Outcome:
    """As ``linear_then_finetune``, on a few labels a class: one draw of them for each of the suite's seeds."""
    return _finetune(bench, job, from_probe=True)


def _finetune(bench: Bench, job: Job, from_probe: bool) -> Outcome:
    subset = _draw(bench, job, draw=job.seed)
    head = full_probe(bench, subset) if from_probe and not bench.weights.random else None
    done = (job.seed, subset.tobytes())
    if head or done not in bench.from_new_head:
        rows = {**bench.task.splits, "train": bench.task.splits["train"][subset]}
        where: dict[str, Any] = {"device": bench.device, "quiet": bench.quiet}
        result = finetune(bench.weights, bench.task, rows, bench.suite.finetune, seed=job.seed, head=head, **where)
        scores, more = result.scores, {"history": result.history}
        outcome = Outcome(scores["test"], len(subset), scores["val"], chosen=result.chosen, more=more)
        if head:
            return replace(outcome, chosen=outcome.chosen | {"head_strength": head.strength})
        bench.from_new_head[done] = outcome
    outcome = bench.from_new_head[done]
    if not from_probe:
        return outcome
    note = "; ".join(filter(None, [outcome.chosen["note"], "untrained, so from a new head"]))
    return replace(outcome, chosen=outcome.chosen | {"note": note})
