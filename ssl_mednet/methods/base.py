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
    "method", builtin=("ssl_mednet.methods.simclr", "ssl_mednet.methods.byol", "ssl_mednet.methods.mae")
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
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    views: tuple[View, ...] = (View(), View())
    backbone_kinds: ClassVar[frozenset[str]] = frozenset({"cnn", "vit"})
    paper: ClassVar[str] = ""

    def __init__(self, backbone: nn.Module, config: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def training_step(self, views: list[Tensor], batch: Batch) -> StepOutput:
        """One step. ``views`` are ``[B, C, H, W]``, normalised, in the order of ``self.views``."""
        raise NotImplementedError

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
