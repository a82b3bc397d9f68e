"""What a protocol works with: a backbone on a labelled set, the row that is wanted, and what comes of it.

A protocol is a function ``(Bench, Job) -> Outcome`` under ``@register_protocol``; those that come with the package are
in :mod:`ssl_mednet.evaluation.protocols`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ssl_mednet.augment.corruptions import SEVERITIES, corruptions_of
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.errors import RecipeError
from ssl_mednet.evaluation.features import Corruption, extract
from ssl_mednet.evaluation.subsets import balanced
from ssl_mednet.evaluation.suite import Suite
from ssl_mednet.evaluation.weights import Weights
from ssl_mednet.registry import Registry


@dataclass(frozen=True)
class Job:
    """One row of results to be made.

    Args:
        labels: share of the training labels, or None where ``shots`` counts them.
        shots: labels a class, or None.
        seed: of an untrained net, and of fine-tuning; the draws of labels come from the suite's own.
    """

    protocol: str
    labels: float | None
    shots: int | None
    seed: int

    def __str__(self) -> str:
        used = f"{self.shots} labels a class" if self.shots else f"{100 * (self.labels or 1):g} % of the labels"
        return f"{self.protocol}, {used}"


@dataclass(frozen=True)
class Outcome:
    """What a protocol came to.

    Args:
        scores: ``[N, C]`` probabilities of the test rows; ``[D, N, C]`` of D draws of labels.
        n_train: how many labelled images were used (by each draw).
        test: positions of those rows among the test rows; None: all.
        val_scores: ``[N, C]`` of the val rows, to calibrate on; None where there are draws.
        chosen: hyper-parameters and how they came about.
        more: further entries of the row.
    """

    scores: np.ndarray
    n_train: int
    val_scores: np.ndarray | None = None
    test: np.ndarray | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """A backbone on a labelled set, with its frozen features, computed when they are first wanted.

    ``copies`` counts the test images that the training split holds too; see :mod:`ssl_mednet.evaluation.leaks`.
    ``from_new_head`` keeps what fine-tuning without a probe gave, by seed and rows, for several protocols do the same.
    """

    weights: Weights
    task: LabelledSet
    suite: Suite
    device: torch.device
    quiet: bool
    copies: dict[str, int] = field(default_factory=dict)
    from_new_head: dict[tuple[int, bytes], Outcome] = field(default_factory=dict)
    _features: dict[tuple[str, Corruption | None], np.ndarray] = field(default_factory=dict)

    def features(self, split: str, corruption: Corruption | None = None) -> np.ndarray:
        """``[N, D]`` of the rows of a split, in its order; of corrupted images those that are ``tried``."""
        key = (split, corruption)
        if key not in self._features:
            title = f"features, {split}" + ("" if corruption is None else f", {corruption[0]} {corruption[1]}")
            rows = self.task.splits[split]
            rows = rows if corruption is None else rows[self.tried]
            self._features[key] = extract(
                self.weights, self.task.corpus, rows, self.device, self.quiet, corruption, title
            )
        return self._features[key]

    def labels(self, split: str) -> np.ndarray:
        return self.task.labels[self.task.splits[split]]

    @property
    def tried(self) -> np.ndarray:
        """Positions of the test rows that robustness is tried on: a part that is balanced over the classes."""
        return np.sort(balanced(self.labels("test"), self.suite.corrupted))

    @property
    def corruptions(self) -> list[Corruption]:
        """Those that every modality of the test rows has, at every severity."""
        modalities = self.task.corpus.modalities(self.task.splits["test"])
        names = set.intersection(*(set(corruptions_of(m)) for m in modalities))
        if not names:
            names = set(corruptions_of(f"generic_{self.task.corpus.channels}"))
        return [(name, severity) for name in sorted(names) for severity in SEVERITIES]


@dataclass(frozen=True)
class Protocol:
    """A registered protocol.

    Args:
        counts: what of a suite says how many labels it uses: ``"labels"`` (shares), ``"shots"``, or ``""`` (all).
        options: keys of the suite that its result depends on.
        frozen: works on features; else the backbone itself is trained.
        corrupted: wants features of corrupted images too.
    """

    run: Callable[[Bench, Job], Outcome]
    counts: str
    options: tuple[str, ...]
    frozen: bool = True
    corrupted: bool = False


PROTOCOLS: Registry[Protocol] = Registry(
    "protocol", ("ssl_mednet.evaluation.protocols",), lambda item: isinstance(item, Protocol)
)
Run = Callable[[Bench, Job], Outcome]


def register_protocol(name: str, counts: str, *options: str, **more: bool) -> Callable[[Run], Run]:
    """Decorator: make ``(Bench, Job) -> Outcome`` known to suites by this name; see :class:`Protocol`."""

    def add(run: Run) -> Run:
        PROTOCOLS.register(name)(Protocol(run, counts, options, **more))
        return run

    return add


def find_device(name: str) -> torch.device:
    """The device of a name: ``"auto"`` is a GPU of CUDA where there is one, ``"gpu"`` too, ``"cuda:1"`` the second.

    Raises:
        RecipeError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device("cuda" if name == "gpu" else name)
    except RuntimeError as error:
        raise RecipeError(f"device={name}: torch knows no such device", "auto, cpu, cuda, cuda:1, mps") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        raise RecipeError(f"device={name}: torch finds none here", "device=auto or cpu")
    return device
