"""Looks at the frozen encoder while it trains: RankMe on fixed images, a probe on labels, and the best so far."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_mednet.backbones.artifact import Preprocessing
from ssl_mednet.data.corpus import Corpus, CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled
from ssl_mednet.draws import stable_hash
from ssl_mednet.evaluation.subsets import balanced
from ssl_mednet.evaluation.suite import Suite
from ssl_mednet.pretraining import health
from ssl_mednet.pretraining.frozen import frozen_features
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.probe import METRICS, fit_linear, knn_scores
from ssl_mednet.progress import warn
from ssl_mednet.schema import Recipe

HELD = 512  # images of the corpus that RankMe is taken of
NEIGHBOURS = 20  # votes of the kNN probe (Caron et al. 2021, arXiv 2104.14294, section 4.1)
STRENGTH = 1e-2  # of the linear probe: one, so that val measures and chooses nothing
COSTLY, _SETTLED = 0.02, 60.0  # share of the time that looks may take, said after so many seconds of training
Choice = Literal["last", "rank_me", "probe"]


@dataclass(frozen=True)
class Probe:
    """A labelled set, train and val rows; the rows of its test split are never read."""

    task: LabelledSet
    train: np.ndarray
    val: np.ndarray
    kind: Literal["knn", "linear"]


def open_probe(recipe: Recipe, quiet: bool) -> Probe | None:
    """What ``monitor.probe`` names, at most ``monitor.probe_images`` train rows of it and half as many val rows.

    Raises:
        DataError: it is no labelled set.
    """
    monitor = recipe.monitor
    if not monitor.probe:
        return None
    store = Suite.model_fields["store_size"].default  # as evaluate does, so that both read one cache
    data = recipe.data
    spec = CorpusSpec(data.channels, store, modality=data.modality, convert=data.convert)
    task = open_labelled(monitor.probe, spec, quiet)

    def some(split: str, count: int) -> np.ndarray:
        rows = task.splits[split]
        return rows[np.sort(balanced(task.labels[rows], count))]

    train, val = some("train", monitor.probe_images), some("val", monitor.probe_images // 2)
    return Probe(task, train, val, monitor.probe_kind)


def held_rows(rows: np.ndarray) -> np.ndarray:
    """The fixed images of a corpus that RankMe is taken of: ``HELD`` of ``rows``, or all where there are fewer."""
    order = np.random.default_rng(stable_hash(len(rows), "held")).permutation(len(rows))
    return rows[np.sort(order[:HELD])]


class Online(pl.Callback):
    """Every ``every`` steps and at the last one, the first process looks at the encoder; the others go on to the next
    step and wait for it there.

    - ``held_rank_me``: RankMe on fixed images of the corpus, whole and without augmentation. That of a batch of
      training changes with the images and the views, and so do not its maxima only; figures of one run are comparable,
      those of two runs when corpus and width of the features are the same. At most ``HELD``.
    - ``probe_auroc``, ``probe_balanced_accuracy``: on the val rows of a labelled set, macro averages.

    Training does not notice: the random state, the buffers and the modes of the layers stay as they were, and the
    values are a function of the weights alone.

    Args:
        rows: of the corpus, that are trained on.
        choose: which value decides which encoder is kept; ``"last"``: none.

    Attributes:
        seconds: that the looks took.
        best: step, value and state of the encoder with the best value so far; of equals the first. It is part of every
            checkpoint, so a run that goes on from one chooses as if it had never stopped.
    """

    def __init__(
        self,
        every: int,
        corpus: Corpus,
        rows: np.ndarray,
        preprocessing: Preprocessing,
        probe: Probe | None,
        choose: Choice,
    ) -> None:
        self.every, self.corpus, self.held, self.preprocessing = every, corpus, held_rows(rows), preprocessing
        self.probe, self.choose = probe, choose
        self.seconds = 0.0
        self.best: dict[str, Any] = {}
        self._of = self._measure()
        self._at, self._values, self._said = -1, dict[str, float](), False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "of": self._of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best so far, unless it is the best by another measure, with which no later value can be compared."""
        self.best = state_dict["best"] if state_dict.get("of", self._of) == self._of else {}

    def _measure(self) -> str:
        """By what, on which images, the best is found."""
        if self.choose == "probe" and self.probe is not None:
            probe, rows = self.probe, np.concatenate([self.probe.train, self.probe.val])
            name = f"{self.choose} {probe.kind} {probe.task.fingerprint}"
        else:
            name, rows = f"{self.choose} {self.corpus.meta['fingerprint']}", self.held
        return f"{name} {stable_hash(*rows.tolist())}"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        step = trainer.global_step
        due = self.is_due(step, pl_module.total_steps)
        if not due or (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        began = time.perf_counter()
        self._at, self._values = step, self.look(trainer, pl_module)
        self._keep_best(step, pl_module)
        self.seconds += time.perf_counter() - began
        self._tell_cost(time.perf_counter() - self._began)

    def is_due(self, step: int, total: int) -> bool:
        """Whether the first process looks after this step; all processes know."""
        return step % self.every == 0 or step == total

    def values_at(self, step: int) -> dict[str, float]:
        """What was seen at this step; empty where nobody looked."""
        return self._values if self._at == step else {}

    def look(self, trainer: pl.Trainer, module: PretrainModule) -> dict[str, float]:
        """All values of the encoder as it is now."""

        def features(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
            precision = trainer.precision_plugin.forward_context()
            encoder, last = module.method.encoder, module.channels_last
            return frozen_features(encoder, corpus, rows, self.preprocessing, module.device, precision, last)

        values = {"held_rank_me": _rank(features(self.corpus, self.held))}
        if self.probe is not None:
            task = self.probe.task
            seen = [features(task.corpus, rows) for rows in (self.probe.train, self.probe.val)]
            if all(np.isfinite(x).all() for x in seen):
                values |= self._score(*seen)
        return values

    def _score(self, train: np.ndarray, val: np.ndarray) -> dict[str, float]:
        assert self.probe is not None
        task, labels = self.probe.task, self.probe.task.labels
        y, y_val, count = labels[self.probe.train], labels[self.probe.val], len(task.classes)
        if self.probe.kind == "knn":
            scores = knn_scores(train, y, val, NEIGHBOURS, num_classes=count)
        else:
            linear = fit_linear(
                train, y, val, y_val, num_classes=count, strengths=(STRENGTH,), multilabel=task.multilabel
            )
            scores = linear.predict_proba(val)
        names = ("auroc", "balanced_accuracy")
        return {f"probe_{name}": float(METRICS[name](y_val, scores)) for name in names}

    def _keep_best(self, step: int, module: PretrainModule) -> None:
        value = self._values.get({"rank_me": "held_rank_me", "probe": "probe_auroc"}.get(self.choose, ""))
        if value is None or not np.isfinite(value) or (self.best and value <= self.best["value"]):
            return
        state = {k: v.detach().to("cpu", copy=True) for k, v in module.method.encoder.state_dict().items()}
        self.best = {"step": step, "value": value, "state": state}

    def _tell_cost(self, elapsed: float) -> None:
        share = self.seconds / elapsed
        if self._said or elapsed < _SETTLED or share <= COSTLY:
            return
        self._said = True
        less = int(-(-self.every * share // COSTLY))
        hint = f"monitor.probe_every={less} would take {100 * COSTLY:.0f} %, and so would fewer monitor.probe_images"
        warn(f"looking at the encoder takes {100 * share:.1f} % of the time; {hint}")

    def chosen(self, steps: int) -> dict[str, Any]:
        """What the weights' config says of the choice."""
        if self.choose == "last" or not self.best:
            return {"by": "last", "step": steps}
        names = {"rank_me": f"RankMe on {len(self.held)} fixed images of the corpus"}
        if self.probe is not None:
            names["probe"] = f"AUROC of {self.probe.kind} on {len(self.probe.val)} val images of {self.probe.task.name}"
        return {"by": self.choose, "step": self.best["step"], "value": self.best["value"], "why": names[self.choose]}


def _rank(features: np.ndarray) -> float:
    x: Tensor = torch.from_numpy(features)
    return float(health.rank_me(x)) if bool(x.isfinite().all()) else float("nan")
