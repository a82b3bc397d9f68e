"""The collapse alarm: tells features that have fallen together from features that never were far apart.

No single value says it. An untrained net sees all images alike, and a healthy masked autoencoder keeps a large common
mean, so that a spread of 0.05 and a RankMe of 2 are nothing to fear in it; a head can collapse while the backbone
behind it stays what it was; and of features that are one point the effective rank measures the rounding. So there are
three rules, each about values that hold for ``SUSTAINED`` points of the curves in a row, after the warm-up:

- ``point``: the spread of the features is below ``POINT``: all images have become one.
- ``head``: the spread of the projections is below ``HEAD`` and below that share of what it was: the loss is being
  solved by seeing no difference, though the features behind the head may keep theirs.
- ``directions``: since the first point the effective rank has fallen to less than ``RANK`` of what it was, and the
  spread to less than ``SPREAD``: few directions are left, and images lie closer in them.

The thresholds lie between what short healthy and deliberately broken runs of SimCLR, BYOL and MAE reach on phantoms and
real images: healthy features keep a spread above 0.045 and a rank above 0.24 of the first, healthy projections a spread
above 0.88; BYOL without predictor brings that to 0.06, with a rate of 3 to 0.38, and the rank to 0.14 of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ssl_mednet.errors import UserError
from ssl_mednet.files import write_json
from ssl_mednet.pretraining.curves import Curves
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.progress import Dispensable, warn

ALARMS = "alarms.json"
POINT, HEAD, RANK, SPREAD = 0.01, 0.5, 0.2, 0.5
SUSTAINED, FIRST_STEP = 3, 20
_JUDGED = ("feature_std", "effective_rank", "projection_std")
ADVICE = {
    "point": "lower optim.lr or lengthen optim.warmup; see whether the views in pictures/ still show the image",
    "head": "check that predictor and stop-gradient are there; raise method.momentum or lower optim.lr",
    "directions": "lower optim.lr, keep optim.clip above 0, and take a larger batch or weaker augment.strength",
}


class Collapsed(UserError):
    """The features of a run have collapsed, and it was told to stop then."""

    exit_code = 5


@dataclass
class CollapseRules:
    """The three rules over the course of a run.

    Args:
        warmup: steps before which nothing is judged.

    Attributes:
        first: the values of the first point.
        held: by rule, for how many points in a row it has held.
    """

    warmup: int
    first: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    def judge(self, step: int, values: dict[str, float]) -> dict[str, str]:
        """What is to be told at this point: for each rule that has just held long enough, the sentence."""
        if "feature_std" not in values:
            return {}
        if not self.first:
            self.first = {k: values[k] for k in _JUDGED if k in values}
        told = {}
        for rule, sentence in self._rules(values).items():
            self.held[rule] = self.held.get(rule, 0) + 1 if sentence and step >= self.warmup else 0
            if self.held[rule] == SUSTAINED:
                told[rule] = sentence
        return told

    def _rules(self, now: dict[str, float]) -> dict[str, str]:
        """A sentence for each rule that holds, else an empty string."""
        spread, rank = now["feature_std"], now["effective_rank"]
        head, first_head = (values.get("projection_std", 1.0) for values in (now, self.first))
        fallen = rank < RANK * self.first["effective_rank"] and spread < SPREAD * self.first["feature_std"]
        few = (
            f"the effective rank of the features has fallen from {self.first['effective_rank']:.1f} to {rank:.1f} and "
            f"their spread from {self.first['feature_std']:.2f} to {spread:.2g}"
        )
        same_head = head < HEAD * min(first_head, 1.0) and spread >= POINT
        return {
            "point": f"all images have the same features (spread {spread:.2g})" if spread < POINT else "",
            "head": f"the projections of all images fall together (spread {head:.2g})" if same_head else "",
            "directions": few if fallen and spread >= POINT else "",
        }


class CollapseAlarm(pl.Callback):
    """Says once for each rule that the features collapse, writes it to ``alarms.json``, and stops the run if wanted.

    It comes after the curves, whose newest point it judges, and before the checkpoints, so that a run that it stops
    leaves one. In several processes the first one judges for all.

    Args:
        folder: of the run.
        stop: end the run at the first alarm.
    """

    def __init__(self, folder: Path, curves: Curves, stop: bool) -> None:
        self.path, self.curves, self.stop = folder / ALARMS, curves, stop
        self.alarms: list[dict[str, Any]] = []
        self.stopped = ""
        self._rules = CollapseRules(FIRST_STEP)
        self._judged = 0
        self._disk = Dispensable("alarms")

    def state_dict(self) -> dict[str, Any]:
        return {"alarms": self.alarms, "first": self._rules.first, "held": self._rules.held, "judged": self._judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms, self._judged = state_dict["alarms"], state_dict["judged"]
        self._rules.first, self._rules.held = state_dict["first"], state_dict["held"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PretrainModule)
        warmup = round(pl_module.recipe.optim.warmup * pl_module.total_steps)
        self._rules.warmup = max(FIRST_STEP, warmup)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        step = trainer.global_step
        if step in (0, self._judged) or not self.curves.due(step, pl_module):
            return
        self._judged = step
        told = self._rules.judge(step, self.curves.last)
        if trainer.is_global_zero:
            for rule, sentence in told.items():
                self._tell(step, rule, sentence)
        if self.stop and trainer.strategy.broadcast(bool(told)):
            self.stopped = f"step {step}: {'; '.join(told.values()) or 'the features of the first process collapsed'}"
            trainer.should_stop = True

    def _tell(self, step: int, rule: str, sentence: str) -> None:
        if any(alarm["rule"] == rule for alarm in self.alarms):
            return
        self.alarms.append({"step": step, "rule": rule, "said": sentence, "advice": ADVICE[rule]})
        with self._disk:
            write_json(self.path, self.alarms)
        warn(f"collapse at step {step}: {sentence}; {ADVICE[rule]}")

    def raise_if_stopped(self) -> None:
        """After the trainer is done.

        Raises:
            Collapsed: this alarm has ended the run; its checkpoint is written.
        """
        if self.stopped:
            hint = "monitor.on_collapse=warn would go on; another recipe in another --out most often helps"
            raise Collapsed(f"stopped because of collapse at {self.stopped}", hint)
