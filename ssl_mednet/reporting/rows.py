"""What the files of a results folder say, checked and typed: rows, paired comparisons, the session that made them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAN = float("nan")
# The name of an account is nobody's business in a file that is sent around.
_HOME = re.compile(
    r"(?<![\w.])(?:/home/[^/\s'\"]+|/Users/[^/\s'\"]+|/root|[A-Za-z]:\\Users\\[^\\\s'\"]+)(?=[/\\\s'\"]|$)"
)


def without_home(text: str) -> str:
    """Paths in ``text`` with ``~`` for any user's home folder."""
    return _HOME.sub("~", text)


def source_name(source: str) -> str:
    """A labelled set as the report calls it: the file without its folders, a name without where it is kept.

    >>> source_name("/data/brain.zip"), source_name("medmnist:bloodmnist?size=64&root=/data")
    ('brain.zip', 'medmnist:bloodmnist?size=64')
    """
    name, _, options = source.partition("?")
    kept = "&".join(o for o in options.split("&") if o and not o.startswith("root="))
    return (name if ":" in name else Path(name).name) + (f"?{kept}" if kept else "")


def _nan_for_none(value: Any) -> Any:
    return NAN if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_none)]


class Record(BaseModel):
    """Keys that the report does not need are let pass: newer files stay readable."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Estimate(Record):
    """A value with its 95 % interval; NaN where not defined."""

    value: Number = NAN
    low: Number = NAN
    high: Number = NAN

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else {"value": given}


class OperatingPoint(Record):
    """Two classes: the threshold on the second class's probability, chosen on val, and what it gives on test."""

    threshold: Number
    sensitivity: Number
    specificity: Number


class Row(Record):
    """One measurement: a task, a protocol, so many labels, one set of weights."""

    folder: Path
    key: str
    weights: str
    label: str = Field("", description="what the report calls the weights: other than `weights` where two share a name")
    task: str
    protocol: str
    kind: Literal["multi-class", "multi-label", "ordinal"] = "multi-class"
    labels: float | None = None
    shots: int | None = None
    seed: int = 0
    n: int
    n_train: int
    n_val: int | None = None
    cross_validated: bool = False
    classes: list[str]
    metrics: dict[str, Estimate]
    per_class: dict[str, dict[str, Number]] = {}
    chosen_on_val: dict[str, Any] = {}
    draws: int | None = None
    spread: dict[str, Number] = {}
    corruptions: dict[str, list[Number]] = {}
    history: list[dict[str, Number]] = []
    operating_point: OperatingPoint | None = None
    grouped: bool
    splits_made: list[str] = []
    image_size: int
    channels: str = ""
    architecture: str = ""
    weights_sha256: str = ""
    source: str = ""
    data_fingerprint: str = ""
    copies: dict[str, int] = {}
    skipped: int = 0
    licence: str | None = None
    note: str | None = None
    predictions: str | None = None
    seconds: Number = NAN

    @property
    def all_labels(self) -> bool:
        return self.labels == 1.0

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, given: Any) -> Any:
        return {"label": given["weights"]} | given if isinstance(given, dict) and "weights" in given else given

    @property
    def ordinary(self) -> bool:
        """Whether it says how good weights are: neither the trivial baseline nor about corrupted images."""
        return self.protocol != "majority" and not self.robust

    @property
    def labels_drawn(self) -> int | None:
        """Over how many draws of labels its figures are means; None where nothing was drawn."""
        return (self.draws or 1) if self.shots is not None or (self.labels or 1.0) < 1 else None

    @property
    def several_draws(self) -> bool:
        """Whether the figures are means over draws of labels, so that there is no one set of predictions."""
        return (self.draws or 1) > 1

    @property
    def setting(self) -> tuple[str, float | None, int | None, int]:
        """What rows share that may be compared within a task."""
        return self.protocol, self.labels, self.shots, self.seed

    def metric(self, name: str) -> Estimate:
        """The metric, undefined where the row has none of that name."""
        return self.metrics.get(name, Estimate())

    @property
    def robust(self) -> bool:
        """Whether it is about corrupted images: errors instead of an AUROC, and on a part of the test images."""
        return self.protocol == "robustness"

    @property
    def main_metric(self) -> str:
        """What weights are compared by."""
        return "balanced_error" if self.robust else "auroc"

    @property
    def made_of(self) -> tuple[int, str]:
        """Differs where weights of one name are not the same ones; an untrained net is another one for every seed."""
        return self.image_size, self.architecture if self.weights.startswith("random:") else self.weights_sha256

    @property
    def test_set(self) -> tuple[str, int, tuple[str, ...]]:
        """What rows share that were measured on the same images: they make one section of the report."""
        return self.task, self.n, tuple(self.classes)


class Comparison(Record):
    """Row ``a`` less row ``b`` on the same resamples, and the verdict on ``a``."""

    task: str
    protocol: str
    labels: float | None = None
    shots: int | None = None
    seed: int = 0
    metric: str
    a: str
    b: str
    value: Number
    low: Number
    high: Number
    p: Number
    verdict: Literal["better", "worse", "cannot tell"]

    def turned(self) -> Comparison:
        """The same, as ``b`` less ``a``."""
        other = {"better": "worse", "worse": "better"}.get(self.verdict, self.verdict)
        changed = {"a": self.b, "b": self.a, "value": -self.value, "low": -self.high, "high": -self.low}
        return self.model_copy(update=changed | {"verdict": other})


class Session(Record):
    """``run.json``: what was run, when and where."""

    folder: Path
    command: str = ""
    suite: dict[str, Any] = {}
    version: str = ""
    started: str = ""
    seconds: Number = NAN
    platform: str = ""
    packages: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        command, started = given.get("command", ""), given.get("started", "")
        words = " ".join(map(str, command)) if isinstance(command, list) else str(command)
        return given | {"command": without_home(words), "started": str(started)}
