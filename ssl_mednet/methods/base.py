"""The contract of an objective: which views it wants, what one step returns, and what happens after the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ssl_mednet.draws import Draws
from ssl_mednet.registry import Registry

METHODS: Registry[type[Method]] = Registry(
    "method",
    builtin=("ssl_mednet.methods.simclr", "ssl_mednet.methods.byol", "ssl_mednet.methods.mae"),
    wanted=lambda item: isinstance(item, type) and issubclass(item, Method),
)
M = TypeVar("M", bound="type[Method]")


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator: make a :class:`Method` known to recipes as ``method: {name: NAME}``."""

    def add(cls: M) -> M:
        cls.name = name
        METHODS.register(name)(cls)
        return cls

    return add


@dataclass(frozen=True)
class View:
    """One augmented version of an image that a method asks for.

    Args:
        scale: smallest and largest share of the image's area that the crop keeps.
        intensity: whether brightness, noise and the like are changed too, or only the geometry.
        size: side of the view in pixels as a share of the recipe's ``image_size``; below 1 for local crops.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    intensity: bool = True
    size: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What a step knows of its images besides the views.

    Args:
        rows: ``[B]`` int64 on the CPU, positions in the corpus.
        modality: ``[B]`` int64 on the CPU, codes of :data:`ssl_mednet.imaging.modality.MODALITIES`.
        draws: random numbers that depend on (seed, step, row) only; use these for masks and the like, so that a row
            gets the same draw in whatever batch, process or order it comes.
        step: number of the batch since the start of training.
        progress: share of the training that is done, in [0, 1].
    """

    rows: Tensor
    modality: Tensor
    draws: Draws
    step: int
    progress: float


@dataclass(frozen=True)
class StepOutput:
    """What a training step returns.

    Args:
        loss: scalar to minimise.
        metrics: scalars worth a curve, detached.
        embedding: ``[B, D]`` features of the backbone, detached, for monitors (collapse, rank).
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


class MethodConfig(BaseModel):
    """Base of a method's own settings, the keys under ``method:`` in a recipe; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(nn.Module):
    """Base of every objective. A subclass reads like its paper: ``Config``, the parts, the step.

    Class attributes:
        Config: the method's settings.
        views: the views it trains on; may be set on the instance where they depend on the settings.
        backbone_kinds: which of ``"cnn"`` and ``"vit"`` it can train.
        paper: where the method was published.
        sees_batch: what in the loss is of the batch as a whole ("negatives"), so that accumulating several small
            batches is not one large batch; empty where the loss is a mean over images.
        across_processes: why the gradients of several processes, averaged, are not those of one process with the whole
            batch; empty where they are, which the contract test checks.

    What it knows beside its weights (a queue, a centre, a counter) are buffers, of one shape from the start:
    checkpoints keep those of the first process, so that of several processes all must hold the same (gather first).

    A loss over embeddings can be split in two, so that a large batch goes through the net in chunks
    (``optim.cache_chunk``): then ``training_step`` is ``compare(embed(views, batch), batch)``.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    views: tuple[View, ...] = (View(), View())
    backbone_kinds: ClassVar[frozenset[str]] = frozenset({"cnn", "vit"})
    paper: ClassVar[str] = ""
    sees_batch: ClassVar[str] = ""
    across_processes: ClassVar[str] = ""

    def __init__(self, backbone: nn.Module, config: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        """One step. ``views`` are ``[B, C, H, W]``, normalised, in the order of ``self.views``."""
        raise NotImplementedError

    def embed(self, views: list[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        """What the loss needs of some images, each ``[B, ...]`` and of each image by itself; changes nothing."""
        raise NotImplementedError

    def compare(self, embedded: tuple[Tensor, ...], batch: Batch) -> StepOutput:
        """The loss over what :meth:`embed` gave for all images of a batch."""
        raise NotImplementedError

    @classmethod
    def can_split(cls) -> bool:
        """Whether the step is split into :meth:`embed` and :meth:`compare`."""
        return cls.embed is not Method.embed

    def checkpoint_activations(self) -> None:
        """Keep no activations inside the student's blocks; the backward pass makes them again."""
        self.backbone.set_grad_checkpointing(True)  # type: ignore[operator]

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step with the share of the training done, in (0, 1]; EMA updates go here."""

    def pictures(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Pictures worth a look, ``[N, C, H, W]`` in the space of the normalised views; none by default."""
        return {}

    @property
    def encoder(self) -> nn.Module:
        """The backbone to keep when the training is over."""
        return self.backbone


@torch.no_grad()
def copy_of(module: nn.Module) -> nn.Module:
    """A teacher: a deep copy of ``module`` that takes no gradient."""
    import copy

    teacher = copy.deepcopy(module)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher
