"""Labelled sets: rows of a corpus with classes, splits that do not leak, and groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_mednet.data.corpus import QUARANTINE, Corpus, CorpusSpec, open_corpus
from ssl_mednet.data.sources import SPLITS
from ssl_mednet.draws import stable_hash
from ssl_mednet.errors import DataError

_FEW = 5  # test images of a class
VAL_SHARE, TEST_SHARE = 0.15, 0.2  # of the groups, where a source comes without these splits


@dataclass(frozen=True)
class LabelledSet:
    """A task: which rows of a corpus have which label, for training, choosing and testing.

    Args:
        name: of the task.
        labels: ``[N]`` class numbers, or ``[N, L]`` of 0 and 1 for several findings a row.
        splits: rows of ``"train"``, ``"val"``, ``"test"``.
        groups: ``[N]`` what no split may part: patient, lesion, slide, or else volume; -1 where there is none.
        made: the splits that the source did not have and that were made here.
        source: as the user named it.
        ordinal: the classes have an order.
    """

    name: str
    corpus: Corpus
    labels: np.ndarray
    splits: dict[str, np.ndarray]
    groups: np.ndarray
    classes: list[str]
    made: tuple[str, ...]
    source: str = ""
    ordinal: bool = False

    @property
    def multilabel(self) -> bool:
        return self.labels.ndim == 2

    @property
    def fingerprint(self) -> str:
        """What results depend on: images, labels, splits and groups, in one word."""
        digest = hashlib.sha256(f"{self.corpus.meta['fingerprint']} {self.classes}".encode())
        for array in (self.labels, *self.splits.values(), self.groups):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()

    @property
    def left_out(self) -> str:
        """How many files gave no image, one of them with the reason, and where all are listed; empty for none."""
        from ssl_mednet.ingesting.commit import read_quarantine

        count = self.corpus.meta["skipped"]
        if not count:
            return ""
        said = f"{count} file{'s' if count > 1 else ''} could not be used and {'were' if count > 1 else 'was'} left out"
        if listed := read_quarantine(self.corpus.folder):
            path, reason, _ = listed[0]
            said += f", for example {path}: {reason} (all are in {self.corpus.folder / QUARANTINE})"
        return said

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the labels: images without one, and classes that a split has no image of."""
        count = len(self.corpus.split) - sum(map(len, self.splits.values()))
        said = [
            f"{count} image{'s have' if count > 1 else ' has'} no label and {'are' if count > 1 else 'is'} left out"
        ]
        said = said if count else []
        meanings = {"train": "no net will ever say it", "val": "nothing is chosen for it"}
        for split, meaning in (meanings | {"test": "the figures say nothing of it"}).items():
            if missing := self.without(split):
                said.append(f"no {split} image of {', '.join(missing)}, so that {meaning}")
        if few := self._few():
            told = ", ".join(few) if len(few) < len(self.classes) else "every class"
            said.append(f"{told}: fewer than {_FEW} test images, of which intervals say little")
        if alike := [name for name in self.classes if sum(name.lower() == c.lower() for c in self.classes) > 1]:
            said.append(f"{', '.join(alike)}: classes that differ in capitals alone")
        return said

    def _few(self) -> list[str]:
        labels = self.labels[self.splits["test"]]
        counts = labels.sum(axis=0) if self.multilabel else np.bincount(labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if 0 < count < _FEW]

    def without(self, split: str) -> list[str]:
        """Classes that no image of a split has."""
        labels = self.labels[self.splits[split]]
        there = labels.any(axis=0) if self.multilabel else np.isin(np.arange(len(self.classes)), labels)
        return [name for name, known in zip(self.classes, there, strict=True) if not known]

    @property
    def grouped(self) -> bool:
        """Whether test rows have groups, so that intervals are drawn by group; a row without one stands alone."""
        return bool((self.groups[self.splits["test"]] >= 0).any())

    @property
    def ungrouped(self) -> int:
        """Test rows without a group."""
        return int((self.groups[self.splits["test"]] < 0).sum())


def task_names(sources: Sequence[str]) -> list[str]:
    """What sets are called: each by the stem of its source, or where several have the same one by the whole source."""
    stems = [stem(source) for source in sources]
    said = [stem if stems.count(stem) == 1 else source for stem, source in zip(stems, sources, strict=True)]
    before = [said[:number].count(name) for number, name in enumerate(said)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(said, before, strict=True)]


def stem(source: str) -> str:
    """What a source is called: its last part, without suffix."""
    path = Path(source.partition("?")[0])
    return (path.resolve() if path.name in ("", "..") else path).name.split(".")[0]


def open_labelled(
    source: str | Path, spec: CorpusSpec, quiet: bool = False, *, ordinal: bool | Sequence[str] = False
) -> LabelledSet:
    """A labelled set from ``labels.csv``, class folders, an npz with MedMNIST's keys, or phantoms.

    Splits of the source are kept. A missing test or validation split is made from the training rows: by group, or
    else volume, where there are any (:attr:`Corpus.unit`), else by exact copies, stratified by class, the same every
    time.

    Args:
        ordinal: whether the classes have an order, which numbers have and sources may say; or names in their order.

    Raises:
        DataError: no labels, one class only, a split without rows, a group on both sides of a split, or an order that
            is asked for and not known.
    """
    corpus = open_corpus(source, spec, quiet)
    labels, name = corpus.label, stem(str(source))
    has_label = np.asarray((labels >= 0).all(axis=1) if labels.ndim == 2 else labels >= 0)
    if not has_label.any() or not corpus.classes:
        hint = "a labels.csv with path,label, two folders or more, one a class, or an npz with train_labels"
        raise DataError(f"{source}: has no labels to evaluate on", hint)
    if len(corpus.classes) < 2 and labels.ndim == 1:
        raise DataError(f"{source}: has one class only ({corpus.classes[0]})", "a task needs two or more")
    together = kept_together(corpus, corpus.unit)
    alone = (corpus.unit < 0) & (np.bincount(together)[together] == 1)
    assigned, made = _complete(corpus.split, labels, np.where(alone, -1, together), has_label)
    splits = {s: np.flatnonzero(has_label & (assigned == i)) for i, s in enumerate(SPLITS)}
    for split, rows in splits.items():
        if len(rows) == 0:
            hint = "it needs more images, and of more groups (patients, lesions, volumes) where they name any"
            raise DataError(f"{source}: no labelled image is left for the {split} split", hint)
    _check_groups(source, splits, corpus.unit)
    classes, ordered = corpus.classes, bool(ordinal or corpus.meta["ordinal"]) and labels.ndim == 1
    if ordered and ordinal:
        classes = _in_order(source, corpus, ordinal)
        place = np.array([*map(classes.index, corpus.classes), -1], np.int32)
        labels = place[labels]
    return LabelledSet(name, corpus, labels, splits, corpus.unit, classes, made, str(source), ordered)


def open_audited(source: str | Path, spec: CorpusSpec, quiet: bool = False) -> LabelledSet:
    """A set whose images are to be found elsewhere: as :func:`open_labelled`, but images need no label.

    Where the source names test images those are the test split, whether or not their labels are known; without labels
    and splits all images are.

    Raises:
        DataError: as :func:`open_labelled`, of a set that has labels and names no test images.
    """
    corpus = open_corpus(source, spec, quiet)
    labelled = bool(corpus.classes) and bool((corpus.label >= 0).any())
    split = corpus.split if labelled or (corpus.split >= 0).any() else np.full(len(corpus), SPLITS.index("test"))
    if not (split == SPLITS.index("test")).any():
        return open_labelled(source, spec, quiet)
    splits = {name: np.flatnonzero(split.clip(min=0) == number) for number, name in enumerate(SPLITS)}
    return LabelledSet(
        stem(str(source)), corpus, corpus.label, splits, corpus.unit, corpus.classes, (), str(source), False
    )


def _in_order(source: str | Path, corpus: Corpus, order: bool | Sequence[str]) -> list[str]:
    """The classes of a corpus from the lowest to the highest, as they are given or known to be."""
    hint = f"ordinal: [LOWEST, ..., HIGHEST] of {', '.join(corpus.classes)}"
    if not isinstance(order, bool):
        if sorted(order) != sorted(corpus.classes):
            raise DataError(f"{source}: the order {', '.join(order)} is not of its classes", hint)
        return list(order)
    known = corpus.meta["ordinal"] or all(name.isdigit() for name in corpus.classes)
    if not known and len(corpus.classes) > 2:  # of two, either order gives the same figures
        raise DataError(f"{source}: the order of its classes is not known", hint)
    return corpus.classes


def kept_together(corpus: Corpus, groups: np.ndarray) -> np.ndarray:
    """``[N]`` number of what no split and no fold may part: a group, or a row without one with its exact copies.

    It goes with the first group that has a copy of it. Groups that hold the same image stay apart, because black slices
    would tie all patients together.

    Args:
        groups: ``[N]`` number of each row's group, -1 where it has none.
    """
    same = np.unique(corpus.column("sha256").to_pylist(), return_inverse=True)[1]
    together = groups.max(initial=-1) + 1 + same
    order = np.flatnonzero(groups >= 0)[::-1]  # of several the first is written last
    first = np.full(len(groups), -1)
    first[same[order]] = groups[order]
    return np.where(groups >= 0, groups, np.where(first[same] >= 0, first[same], together))


def _complete(
    split: np.ndarray, labels: np.ndarray, groups: np.ndarray, usable: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Every usable row in a split; what is missing is taken from the training rows."""
    assigned = np.where(usable & (split < 0), 0, split)
    made = []
    for name, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        number = SPLITS.index(name)
        train = np.flatnonzero(usable & (assigned == 0))
        if len(train) and not (usable & (assigned == number)).any():
            assigned[_held_out(train, labels, groups, share, name)] = number
            made.append(name)
    return assigned, tuple(made)


def _held_out(rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, share: float, name: str) -> np.ndarray:
    """A share of ``rows``: whole groups, chosen class by class; at least one group a class that has two."""
    # A group is filed under the label of its first row; a row without a group is a group of its own.
    key = np.where(groups[rows] >= 0, groups[rows], -1 - rows)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    of_group = labels[rows[first]]
    strata = of_group if of_group.ndim == 1 else of_group @ (1 << np.arange(of_group.shape[1]).clip(max=30))
    generator = np.random.default_rng(stable_hash(len(rows), name))
    chosen = []
    for stratum in np.unique(strata):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        count = max(round(share * len(members)), 1 if len(members) > 1 else 0)
        chosen.append(members[:count])
    return rows[np.isin(inverse, np.concatenate(chosen))]


def _check_groups(source: str | Path, splits: dict[str, np.ndarray], groups: np.ndarray) -> None:
    names = list(splits)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = np.intersect1d(groups[splits[one]], groups[splits[other]])
            shared = shared[shared >= 0]
            if len(shared):
                raise DataError(
                    f"{source}: {len(shared)} groups (patients, lesions, volumes) are in both {one} and {other}",
                    "scores on such a split are too good; split by group, or leave the split column empty",
                )
