"""What a suite may say: which labelled sets, which protocols, how many labels, against which baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ssl_mednet.backbones.optim import check_optimizer
from ssl_mednet.data.labelled import stem
from ssl_mednet.errors import RecipeError
from ssl_mednet.evaluation.finetune import FinetuneSection
from ssl_mednet.probe import DEFAULT_KS, DEFAULT_STRENGTHS
from ssl_mednet.recipe import parse, read_yaml
from ssl_mednet.schema import Section

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class SetSection(Section):
    source: str = Field(description="labelled set: zip, folder, npz, medmnist:NAME or phantoms; relative to the root")
    channels: Literal["gray", "color", "auto"] = Field("auto", description="auto: those of the suite")
    convert: bool = Field(False, description="turn images of the other kind (gray, color) into this one")
    modality: str = Field("", description="of images that do not say their own")
    ordinal: bool | list[str] = Field(
        False, description="classes have an order, so that quadratic kappa says something: true for numbers, else names"
    )


class Suite(Section):
    """What to measure."""

    name: str = "evaluation"
    root: str = Field("", description="folder that relative sources are looked up in; environment variables work")
    size: int = Field(28, description="for sources that come in several sizes, as medmnist:NAME?size=${size}")
    sets: list[SetSection] = Field(min_length=1)
    channels: Literal["gray", "color", "auto"] = Field(
        "auto", description="of the images; auto: those of the first weights that were made for one kind, else gray"
    )
    baselines: list[str] = Field([], description="weights that are always compared too: random:NAME, imagenet:NAME")
    protocols: list[str] = Field(["knn", "linear"], min_length=1, description="see `ssl-mednet list protocols`")
    labels: list[Fraction] = Field([1.0], min_length=1, description="shares of the training labels")
    shots: list[Positive] = Field([1, 5, 10, 50], min_length=1, description="labels a class, for few-shot protocols")
    draws: int = Field(20, ge=1, description="draws of the labels wherever not all are used")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="of untrained nets and of fine-tuning, which takes a draw of few labels for each"
    )
    corrupted: int = Field(500, ge=1, description="test images, as many of each class, that robustness is tried on")
    image_size: int | None = Field(
        None,
        ge=16,
        description="of random: and imagenet: without @SIZE; else that of the first run named",
    )
    convert: bool = Field(False, description="turn images of the other kind (gray, color) into that of the weights")
    store_size: int = Field(256, ge=16, description="longest side kept in the cache, pixels; what a net sees at least")
    knn_k: list[Positive] = Field(list(DEFAULT_KS), min_length=1, description="chosen among on the validation split")
    temperature: float = Field(0.07, ge=1e-3, description="of the kNN votes and of the nearest centroid")
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        list(DEFAULT_STRENGTHS), min_length=1, description="of the linear probe; chosen among on the validation split"
    )
    finetune: FinetuneSection = FinetuneSection()
    resamples: int = Field(1000, ge=0, description="bootstrap resamples behind each interval")
    seed: int = Field(0, ge=0, description="of the bootstrap and of the draws of labels")
    gallery: int = Field(400, ge=0, description="test images on the map of the report; 0: no gallery")
    device: str = "auto"

    @field_validator("baselines", "protocols", "labels", "shots", "seeds")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        return list(dict.fromkeys(values))


def load_suite(
    suite: str | Path | dict[str, Any] | None, data: list[str] | str | Path | None, overrides: list[str] | None
) -> Suite:
    """The suite of a file, or one made of labelled sets, with overrides.

    Raises:
        RecipeError: neither or both are given, or something in it is wrong.
    """
    if (suite is None) == (data is None):
        raise RecipeError("say what to evaluate on: --data SET... or --suite NAME, one of them")
    if suite is not None:
        where, content = read_yaml(suite, "eval", overrides)
    else:
        assert data is not None
        sources = [str(data)] if isinstance(data, str | Path) else [str(d) for d in data]
        name = "_".join(stem(source).replace(":", "_") for source in sources)[:80]
        where, content = read_yaml({"name": name, "sets": [{"source": s} for s in sources]}, "eval", overrides)
        where = "evaluation"
    plan = parse(Suite, content, where)
    _check_protocols(plan, where)
    check_optimizer(plan.finetune.optimizer, f"{where}: finetune.optimizer")
    return plan


def _check_protocols(plan: Suite, where: str) -> None:
    from ssl_mednet.evaluation.bench import PROTOCOLS

    for name in plan.protocols:
        try:
            PROTOCOLS.get(name)
        except RecipeError as error:
            raise RecipeError(f"{where}: protocols: {error.message}", error.hint) from error


def locate(source: str, root: str) -> str:
    """Where a set of a suite lies: as it is said, or below the suite's root."""
    if ":" in source.partition("?")[0] or Path(source).expanduser().is_absolute() or not root:
        return source
    return str(Path(root).expanduser() / source)
