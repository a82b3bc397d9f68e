"""Contamination: which images of an evaluation set are in a corpus, and a run that will not start on such a corpus."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_mednet.auditing.alike import CORRELATION
from ssl_mednet.auditing.copies import copies
from ssl_mednet.auditing.embeddings import Embedder, unit
from ssl_mednet.auditing.near import (
    EMBEDDING,
    EXACT,
    NEAR,
    RADIUS,
    Pairs,
    embedding_between,
)
from ssl_mednet.auditing.records import records
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.errors import DataError, UserError
from ssl_mednet.evaluation.run import open_set
from ssl_mednet.evaluation.suite import SetSection, Suite, load_suite
from ssl_mednet.files import cache_folder, replacing

COSINE = 0.98
_FORMAT = 1  # part of the cache key: pairs found another way are never read


class ContaminationError(DataError):
    """A corpus that holds images on which its weights are to be tested."""


@dataclass(frozen=True)
class Count:
    """How many of the images of one split are in the corpus.

    An image counts once, by the strongest evidence: equal pixels, then a near copy, then embeddings.
    """

    dataset: str
    split: str
    images: int
    exact: int
    near: int
    embedding: int

    @property
    def share(self) -> float:
        return (self.exact + self.near + self.embedding) / self.images if self.images else 0.0


@dataclass(frozen=True)
class Match:
    """An image of an evaluation set, and a row of the corpus that holds it."""

    dataset: str
    split: str
    row: int
    corpus_row: int
    kind: str
    distance: float


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Args:
        fingerprint: of the corpus.
        counts: a line for each set and split.
        matches: every pair, by row numbers alone, because names of files may be identifiers.
        failed: sets that could not be opened, and why. Nothing is known of these.
    """

    fingerprint: str
    counts: list[Count]
    matches: list[Match]
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """All pairs as a CSV table."""
        names = ("dataset", "split", "row", "corpus_row", "kind", "distance")
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([getattr(m, n) for n in names[:-1]] + [f"{m.distance:.4g}"] for m in self.matches)

    def lines(self) -> list[str]:
        """The counts as a table of 80 columns."""
        out = [f"{'set':<30.30} {'split':<5} {'images':>8} {'exact':>7} {'near':>7} {'embed':>7} {'share':>8}"]
        for c in self.counts:
            numbers = f"{c.images:>8} {c.exact:>7} {c.near:>7} {c.embedding:>7} {100 * c.share:>6.2f} %"
            out.append(f"{c.dataset:<30.30} {c.split:<5} {numbers}")
        return out + [f"not audited: {why}" for why in self.failed.values()]


def audit(
    corpus: str | Path | Corpus,
    against: Sequence[str | Path | SetSection],
    weights: str | None = None,
    *,
    rows: np.ndarray | None = None,
    cosine: float = COSINE,
    quiet: bool = False,
) -> Report:
    """Which images of evaluation sets are in a corpus, exact and near.

    Exact means equal pixels; near means a perceptual hash within ten bits, confirmed on the pixels (see
    :mod:`ssl_mednet.auditing.alike`). Pictures without contrast are no evidence and are not reported, and copies that
    are mirrored, turned by more than a few degrees, inverted, framed or written on are not found. What is found is
    kept in the cache, keyed by the fingerprints of corpus and set.

    Args:
        against: names or paths of suites (``.yaml``), or labelled sets, as a suite describes them or by name.
        weights: a run, a backbone folder or ``random:NAME``; then embeddings are compared too.
        rows: of the corpus that count; all when None.
        cosine: of embeddings, the mean of the evaluation set taken out, from which images are reported.

    Raises:
        DataError: not a corpus, or no set can be opened.
    """
    opened = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    counted = np.ones(len(opened), bool)
    if rows is not None:
        counted[:] = False
        counted[rows] = True
    counts: list[Count] = []
    matches: list[Match] = []
    failed: dict[str, UserError] = {}
    for section, plan in _sets(against):
        try:
            kind = opened.channels if section.channels == "auto" else section.channels
            task = open_set(section, kind, plan, quiet, audited=True)
        except DataError as error:
            failed[section.source] = error
            continue
        found = _pairs(opened, task)
        if weights is not None:
            found[EMBEDDING] = _by_embedding(opened, task, weights, cosine, quiet)
        found = {kind: pairs.of(counted[pairs.left]) for kind, pairs in found.items()}
        for split, members in task.splits.items():
            some = {kind: pairs.of(np.isin(pairs.right, members)) for kind, pairs in found.items()}
            counts.append(_count(task.name, split, len(members), some))
            matches += _matches(task.name, split, some)
    if failed and not counts:
        raise next(iter(failed.values()))
    return Report(opened.meta["fingerprint"], counts, matches, {name: str(e) for name, e in failed.items()})


def left_out(corpus: Corpus, sets: Sequence[SetSection], rows: np.ndarray, quiet: bool = False) -> np.ndarray:
    """The rows of a corpus that are no val or test images of labelled sets, nor near copies of some.

    Raises:
        DataError: a set that cannot be opened or has no labels, or no row is left.
    """
    report = audit(corpus, sets, rows=rows, quiet=quiet)
    if report.failed:
        raise DataError(f"data.leave_out: {next(iter(report.failed.values()))}")
    kept = np.setdiff1d(rows, [match.corpus_row for match in report.matches if match.split != "train"])
    if not len(kept):
        named = ", ".join(one.source for one in sets)
        raise DataError(f"{corpus.folder}: all its images are val or test images of {named}", "train on more images")
    return kept


def refuse(
    corpus: Corpus, suite: str, override: bool, rows: np.ndarray | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Refuse a corpus that holds test images of a suite.

    Returns:
        What the provenance of the weights says of it: suite, test images, how many are in the corpus, overridden.

    Raises:
        ContaminationError: it does, and ``override`` is False.
        DataError: a set of the suite cannot be opened, so nothing can be said.
    """
    report = audit(corpus, [suite], rows=rows, quiet=quiet)
    if report.failed and not override:
        hint = "data.allow_contamination=true trains all the same, and the weights say so"
        raise DataError(
            f"data.held_out={suite}: not all of it can be audited: {'; '.join(report.failed.values())}", hint
        )
    tests = [c for c in report.counts if c.split == "test"]
    exact, near = sum(c.exact for c in tests), sum(c.near for c in tests)
    if (exact or near) and not override:
        worst = ", ".join(f"{c.dataset} {c.exact + c.near} of {c.images}" for c in tests if c.share)
        raise ContaminationError(
            f"the corpus holds test images of {suite}: {worst} ({exact} exact, {near} near)",
            f"`ssl-mednet curate {corpus.folder} --against {suite}` and data.keep=good leave them out; "
            "data.allow_contamination=true trains all the same and is recorded",
        )
    return {
        "suite": Path(suite).name,
        "test_images": sum(c.images for c in tests),
        "exact": exact,
        "near": near,
        "not_audited": [Path(name).name for name in report.failed],
        "contamination_allowed": override,
    }


def _sets(against: Sequence[str | Path | SetSection]) -> Iterator[tuple[SetSection, Suite]]:
    if not against:
        raise DataError("nothing to audit against", "--against SUITE.yaml, or labelled sets")
    for one in against:
        if isinstance(one, SetSection):
            yield one, Suite(sets=[one])
            continue
        name = str(one)
        is_suite = name.endswith((".yaml", ".yml"))
        plan = load_suite(name if is_suite else None, None if is_suite else [name], None)
        yield from ((section, plan) for section in plan.sets)


def _pairs(corpus: Corpus, task: LabelledSet) -> dict[str, Pairs]:
    """Exact and near pairs, left of the corpus, right of the set; from the cache where they are known."""
    said = f"{_FORMAT} {RADIUS} {CORRELATION} {corpus.meta['fingerprint']} {task.corpus.meta['fingerprint']}"
    path = cache_folder() / "audits" / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.npz"
    if not path.is_file():
        pairs = copies(corpus, task.corpus)
        arrays = {f"{kind}_{name}": value for kind, p in pairs.items() for name, value in vars(p).items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        return {
            kind: Pairs(*(stored[f"{kind}_{name}"] for name in ("left", "right", "distance"))) for kind in (EXACT, NEAR)
        }


def _by_embedding(corpus: Corpus, task: LabelledSet, spec: str, cosine: float, quiet: bool) -> Pairs:
    if task.corpus.channels != corpus.channels:
        raise DataError(
            f"{task.source}: embeddings of {task.corpus.channels} and {corpus.channels} images do not compare"
        )
    embedder = Embedder(spec, corpus.channels, quiet)
    theirs, mine = (np.flatnonzero(records(c).clear) for c in (task.corpus, corpus))
    features = embedder(task.corpus, theirs)
    mean = features.mean(axis=0)
    wanted = unit(features, mean)
    parts = []
    for part, own in embedder.parts(corpus, mine):
        parts.append(embedding_between(unit(own, mean), wanted, cosine).within(mine[part], theirs))
    return Pairs.joined(parts)


def _count(name: str, split: str, images: int, found: dict[str, Pairs]) -> Count:
    seen: set[int] = set()
    numbers = []
    for kind in (EXACT, NEAR, EMBEDDING):
        rows = set(found[kind].right.tolist()) - seen if kind in found else set()
        numbers.append(len(rows))
        seen |= rows
    return Count(name, split, images, *numbers)


def _matches(name: str, split: str, found: dict[str, Pairs]) -> list[Match]:
    return [
        Match(name, split, int(right), int(left), kind, float(distance))
        for kind, pairs in found.items()
        for left, right, distance in zip(pairs.left, pairs.right, pairs.distance, strict=True)
    ]
