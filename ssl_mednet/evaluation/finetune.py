"""Fine-tuning: backbone and linear head trained together on labelled rows; epoch and rate are chosen on val."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_mednet.augment.policy import BY_MODALITY
from ssl_mednet.augment.views import ViewMaker, resize
from ssl_mednet.backbones.depthwise import quicken
from ssl_mednet.backbones.optim import cosine_with_warmup, create_optimizer
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.draws import Draws, stable_hash
from ssl_mednet.errors import ArtifactError, DataError
from ssl_mednet.evaluation.classifier import build_classifier, build_loss, class_weights, probabilities
from ssl_mednet.evaluation.features import forward_batch
from ssl_mednet.evaluation.halfway import Halfway
from ssl_mednet.evaluation.schedule import Schedule
from ssl_mednet.evaluation.weights import Weights, identity
from ssl_mednet.methods import View
from ssl_mednet.probe.linear import LinearProbe
from ssl_mednet.probe.metrics import auroc
from ssl_mednet.progress import Progress, warn
from ssl_mednet.schema import Recipe, Section, Share

_DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


Rate = Annotated[float, Field(gt=0)]


class FinetuneSection(Section):
    """How a backbone is fine-tuned."""

    epochs: int = Field(10, ge=1, le=1000, description="times that val is looked at; each is a pass over the rows")
    min_steps: int = Field(200, ge=0, description="few rows are passed over several times an epoch to reach these")
    max_steps: int | None = Field(None, ge=1, description="most updates of a run, for small machines")
    optimizer: str = Field("adamw", description="any optimizer of timm")
    lr: Rate | list[Rate] = Field(3e-3, description="peak learning rate, of the head; of several the best on val")
    layer_decay: float = Field(0.75, gt=0, le=1, description="factor on the rate from a layer to the one below")
    weight_decay: float = Field(0.05, ge=0, description="not on norms, biases, tokens and positions")
    batch_size: int = Field(64, ge=2, description="images per update")
    warmup: Share = Field(0.1, description="share of the steps in which the rate rises")
    clip: float = Field(3.0, ge=0, description="largest norm of the gradient; 0: no clipping")
    strength: float = Field(0.5, ge=0, le=2, description="of each modality's augmentation policy; 0: crop only")
    min_crop: float = Field(0.6, gt=0, le=1, description="smallest share of the image a crop keeps")
    statistics: Literal["auto", "kept", "batch"] = Field(
        "auto",
        description="of batch normalisation; auto: kept where the head starts as a probe, which was fitted on them, "
        "and the net is not an untrained one, whose statistics are of nothing",
    )
    class_weights: bool = Field(False, description="rare classes count more: inverse frequency")
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where it is fast")

    @field_validator("lr")
    @classmethod
    def _one_at_least(cls, lr: float | list[float]) -> float | list[float]:
        if lr == []:
            raise ValueError("holds no rate")
        return lr

    @property
    def rates(self) -> list[float]:
        return self.lr if isinstance(self.lr, list) else [self.lr]


class DivergedError(ArtifactError):
    """Training came to numbers that are not finite."""


@dataclass(frozen=True)
class Finetuned:
    """What a run came to.

    Args:
        classifier: of the best epoch, in evaluation mode: normalised images ``[B, C, S, S]`` to logits ``[B, K]``.
        scores: probabilities ``[N, K]`` float64 of the rows of ``"val"`` and ``"test"``, by that classifier.
        best_epoch: that of the highest macro AUROC on val, and of those the lowest loss there. From 1; 0 is the start.
        history: of each epoch: epoch, loss, val_loss, val_auroc, lr (of the head at its last update); of 0 val alone.
        lr: the peak rate; of several the one whose best epoch was best on val, by the same rule.
        note: what a report must say about the choice; empty where there is nothing.
    """

    classifier: nn.Module
    scores: dict[str, np.ndarray]
    best_epoch: int
    history: list[dict[str, float]]
    lr: float
    note: str = ""

    @property
    def chosen(self) -> dict[str, Any]:
        """What val decided, for a row of results."""
        return {"epoch": self.best_epoch, "lr": self.lr, "note": self.note}


def finetune(
    weights: Weights,
    task: LabelledSet,
    rows: dict[str, np.ndarray],
    options: FinetuneSection,
    *,
    seed: int,
    device: torch.device,
    quiet: bool,
    head: LinearProbe | None = None,
    or_start: bool = False,
) -> Finetuned:
    """Train a copy of a backbone, all of it, to tell the classes of a task.

    A long run that was killed goes on after the last epoch that the cache has of it, to the same scores.

    Args:
        rows: positions in the corpus of ``"train"`` (a part of the split is fine), ``"val"`` and ``"test"``.
        seed: of order, augmentation and dropout; on a CPU the same seed gives the same scores to the bit.
        head: a probe fitted on the frozen features of these rows. The head starts as this probe, which distorts the
            features less than a head that knows nothing (Kumar et al. 2022, arXiv 2202.10054); without it at zero.
        or_start: the start is a candidate too, as epoch 0: where no epoch is better on val, the backbone stays what it
            was under the head it was given.

    Raises:
        ArtifactError: weights without parameters.
        DivergedError: a loss, or scores, that are not finite, at every rate.
        DataError: fewer than two training rows, or a split without rows.
        RecipeError: timm does not know the optimizer.
    """
    if not any(True for _ in weights.model.parameters()):
        raise ArtifactError(f"{weights.name}: has no parameters, there is nothing to fine-tune")
    if len(rows["train"]) < 2 or not len(rows["val"]) or not len(rows["test"]):
        counts = ", ".join(f"{len(r)} {split}" for split, r in rows.items())
        raise DataError(f"{task.name}: {counts} rows", "fine-tuning needs two of train, and one of val and of test")
    best: Run | None = None
    known = (identity(weights), weights.random, task.fingerprint, task.labels.tobytes(), *_bytes(rows, head))
    said = (*known, options.model_dump_json(), seed, device.type, or_start)
    halfway = [Halfway(*said, lr) for lr in options.rates]
    for lr, kept in zip(options.rates, halfway, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(stable_hash(seed, "finetune"))
            run = Run(weights, task, rows, options, lr, seed, device, head)
            try:
                run.train(quiet, or_start, kept)
            except DivergedError as error:
                kept.drop()
                if best is None and lr == options.rates[-1]:
                    raise
                warn(f"{run.name} on {task.name}, rate {lr:g}: {error.message}; the other rates go on")
                continue
        if best is None or run.best.value > best.best.value:
            best = run
    assert best is not None
    result = best.result()
    for kept in halfway:
        kept.drop()
    return result


def _bytes(rows: dict[str, np.ndarray], head: LinearProbe | None) -> Iterator[bytes]:
    """All rows, and the probe that the head starts as."""
    arrays = [*rows.values(), *((head.mean, head.std, head.weight, head.bias) if head else ())]
    yield from (np.ascontiguousarray(array).tobytes() for array in arrays)


class Run:
    """One run of :func:`finetune`, from the first step to the scores."""

    def __init__(
        self,
        weights: Weights,
        task: LabelledSet,
        rows: dict[str, np.ndarray],
        options: FinetuneSection,
        lr: float,
        seed: int,
        device: torch.device,
        head: LinearProbe | None,
    ) -> None:
        self.name, self.preprocessing = Path(weights.name).name or weights.name, weights.preprocessing
        self.task, self.rows, self.options, self.seed, self.device = task, rows, options, seed, device
        self.lr, self.best, self.history = lr, _Best(), list[dict[str, float]]()
        self.schedule = Schedule.of(rows["train"], options, seed)
        self.classifier = build_classifier(weights.model, self._whole(rows["train"][:1]), len(task.classes), head)
        quicken(self.classifier)
        pre, view = weights.preprocessing, View(scale=(options.min_crop, 1.0))
        self.views = ViewMaker([view], BY_MODALITY, options.strength, pre.image_size, pre.mean, pre.std).to(device)
        known = class_weights(task.labels[rows["train"]], len(task.classes)) if options.class_weights else None
        self.loss = build_loss(known, task.multilabel)
        self.optimizer = create_optimizer(
            self.classifier,
            options.optimizer,
            lr,
            options.weight_decay,
            layer_decay=options.layer_decay,
            key="finetune.optimizer",
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        fitted = head is not None and not weights.random
        kept = options.statistics == "kept" or (options.statistics == "auto" and fitted)
        self.kept = [m for m in self.classifier.modules() if kept and isinstance(m, _BatchNorm)]
        self.dtype = _dtype(options.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def train(self, quiet: bool, or_start: bool, halfway: Halfway) -> None:
        """All epochs that are not done yet; the best is kept."""
        done = halfway.take_up(self)
        if or_start and not done:
            self.history.append({"epoch": 0} | self._offer(0))
        rate = f", rate {self.lr:g}" if len(self.options.rates) > 1 else ""
        with Progress(f"fine-tuning {self.name}{rate}", self.schedule.steps, "img", quiet) as progress:
            progress.start_from(self.schedule.steps_of(done))
            for epoch in range(done + 1, self.schedule.epochs + 1):
                loss, factor = self._train(epoch, progress)
                self.history.append({"epoch": epoch, "loss": loss, "lr": self.lr * factor} | self._offer(epoch))
                halfway.save(self, epoch)

    def result(self) -> Finetuned:
        """The best epoch scores the test rows: once."""
        best = self.best
        self.classifier.load_state_dict(best.state)
        scores = {"val": best.scores, "test": probabilities(self._logits(self.rows["test"]), self.task.multilabel)}
        return Finetuned(self.classifier.eval(), scores, best.epoch, self.history, self.lr, best.note)

    def _train(self, epoch: int, progress: Progress) -> tuple[float, float]:
        """One epoch; its mean loss, and the factor on the rates at its end."""
        self.classifier.train()
        for norm in self.kept:  # else one small batch moves the features away from the head that knows them
            norm.eval()
        total, images, factor = 0.0, 0, 0.0
        warmup = round(self.options.warmup * self.schedule.steps)
        for step, rows in self.schedule.epoch(epoch):
            factor = cosine_with_warmup(step, self.schedule.steps, warmup)
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            loss = self._step(step, rows)
            total, images = total + loss * len(rows), images + len(rows)
            progress.advance(1, f"epoch {epoch}, loss {loss:.3f}", self.schedule.mean_batch)
        return total / images, factor

    def _step(self, step: int, rows: np.ndarray) -> float:
        """One update; the loss before it."""
        batch = self.task.corpus.batch(rows).to(self.device)
        (images,) = self.views(batch, Draws(self.seed, step, batch.rows, device=self.device))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.classifier(images)
        loss = self.loss(logits, self._targets(rows))
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value} at step {step + 1} of {self.schedule.steps}")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.classifier.parameters(), self.options.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _offer(self, epoch: int) -> dict[str, float]:
        """Score val, offer the classifier as it is now, and say the loss without class weights and the macro AUROC."""
        rows, multilabel = self.rows["val"], self.task.multilabel
        logits = self._logits(rows)
        scores = probabilities(logits, multilabel)
        loss = build_loss(None, multilabel)(logits, self._targets(rows)).item()
        value = auroc(self.task.labels[rows], scores)
        self.best.offer(epoch, value, loss, scores, self.classifier)
        return {"val_loss": loss, "val_auroc": value}

    @torch.inference_mode()
    def _logits(self, rows: np.ndarray) -> Tensor:
        """``[N, K]`` of whole images, as a frozen backbone sees them, in full precision."""
        self.classifier.eval()
        size = forward_batch(self.device)
        parts = [self.classifier(self._whole(r)) for r in np.split(rows, range(size, len(rows), size))]
        logits = torch.cat(parts).float()
        if not torch.isfinite(logits).all():
            raise self._diverged("the scores are not finite")
        return logits

    def _whole(self, rows: np.ndarray) -> Tensor:
        batch = self.task.corpus.batch(rows).to(self.device)
        return self.preprocessing.normalise(resize(batch, self.preprocessing.image_size))

    def _targets(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.task.labels[rows]).long().to(self.device)

    def _diverged(self, what: str) -> DivergedError:
        hint = f"finetune.lr={self.lr / 10:g} may be stable, finetune.precision=float32 too"
        return DivergedError(f"fine-tuning diverged, {what}", hint)


@dataclass
class _Best:
    """The best epoch so far, by macro AUROC on val, of equals by the loss on val; by that alone without AUROC."""

    epoch: int = 0
    value: tuple[float, float] = (-math.inf, -math.inf)
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    state: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""

    def offer(self, epoch: int, value: float, loss: float, scores: np.ndarray, classifier: nn.Module) -> None:
        """Take this epoch if it is better."""
        if math.isnan(value):
            self.note = "val has no AUROC: the epoch with the lowest loss on val is taken"
            value = 0.0
        if (value, -loss) > self.value:
            self.epoch, self.value, self.scores = epoch, (value, -loss), scores
            # Copies: the tensors of the state go on changing, and the last epoch would pass for the best.
            self.state = {k: v.detach().cpu().clone() for k, v in classifier.state_dict().items()}


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    """What pretraining would compute in."""
    from ssl_mednet.pretraining.build import resolve_precision  # brings Lightning along

    train = {"precision": precision, "device": device.type}
    return _DTYPES[resolve_precision(Recipe.model_validate({"train": train}))]
