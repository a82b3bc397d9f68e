"""A corpus as a selection of public sets: what such a recipe may say, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ssl_mednet.catalog.entries import Entry, find_entry
from ssl_mednet.errors import RecipeError, did_you_mean
from ssl_mednet.imaging.modality import MODALITIES, Channels
from ssl_mednet.recipe import read_yaml
from ssl_mednet.shipped import CORPORA, find_shipped

Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Store(_Strict):
    """How images are stored: longest side in pixels, and JPEG quality, None for without loss."""

    size: Positive = 256
    quality: Annotated[int, Field(ge=1, le=100)] | None = None


class Part(_Strict):
    """One set, or one query to IDC, with what of it is taken.

    Attributes:
        catalog, idc: exactly one: id of an entry, or id or pattern of collections.
        modality: DICOM modalities, with ``idc``.
        per_patient: instances of a patient at most, or slides; for IDC.
        any_licence: with ``idc``, also what is not permissive.
        tiles: of a slide.
        per_volume: slices or frames of a volume or video.
        beside_images: frames of each video of a set that holds images, too; they come on top.
        limit: images of the whole part at most.
    """

    catalog: str | None = None
    idc: str | None = None
    modality: tuple[str, ...] = ()
    per_patient: Positive | None = None
    any_licence: bool = False
    tiles: Positive | None = None
    per_volume: Positive | None = None
    beside_images: Positive | None = None
    limit: Positive | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Part:
        if (self.catalog is None) == (self.idc is None):
            raise ValueError("a part has either catalog or idc")
        if self.idc is not None and not self.modality:
            raise ValueError("idc needs its modality, as in [CT]")
        if self.catalog is not None and (self.modality or self.any_licence):
            raise ValueError("modality and any_licence are for idc; the catalog knows them of its own sets")
        if self.per_volume and self.beside_images:
            raise ValueError("per_volume is for sets of volumes only, beside_images for those that hold images, too")
        return self


class CorpusRecipe(_Strict):
    """A corpus as a selection of public sets.

    Attributes:
        weights: share of draws of each modality, together 1.
        seed: which series, slides, instances.
    """

    name: str
    channels: Channels
    seed: int = 0
    store: Store = Store()
    weights: dict[str, Annotated[float, Field(gt=0, le=1)]]
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _parts_differ(self) -> CorpusRecipe:
        for number, part in enumerate(self.parts):
            before = self.parts[:number]
            if part in before or (part.catalog and part.catalog in [other.catalog for other in before]):
                raise ValueError(f"parts.{number}: {part.catalog or f'idc:{part.idc}'} is listed twice")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> CorpusRecipe:
        wrong = [m for m in self.weights if m not in MODALITIES or MODALITIES[m].channels != self.channels]
        if wrong:
            raise ValueError(f"weights: {wrong[0]!r} is no {self.channels} modality")
        if abs(sum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f"weights add up to {sum(self.weights.values()):.3f}, not 1")
        return self


def read_corpus_recipe(path: str | Path) -> CorpusRecipe:
    """A corpus recipe by its path, or by the name of a shipped one.

    Raises:
        RecipeError: no such file, or it breaks the schema; the message names the key.
    """
    file = _find(path)
    _, content = read_yaml(file, "recipes")
    try:
        return CorpusRecipe.model_validate(content)
    except ValidationError as error:
        # A key that is misspelled is also one that is missing: the first says more.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"]))
        known = [*CorpusRecipe.model_fields, *Part.model_fields, *Store.model_fields]
        hint = did_you_mean(str(first["loc"][-1]), known) if first["type"] == "extra_forbidden" else ""
        raise RecipeError(f"{path}: {where or 'recipe'}: {first['msg']}", hint) from error


def part_entry(part: Part, recipe: CorpusRecipe) -> Entry | None:
    """The entry of the catalog that a part means; None where it is a query to IDC.

    Raises:
        DataError: no such entry.
        RecipeError: it has other channels than the corpus, or caps that it cannot have.
    """
    entry = find_entry(part.catalog) if part.catalog else None
    name = entry.id if entry else f"idc:{part.idc}"
    if entry and entry.channels != recipe.channels:
        raise RecipeError(f"{recipe.name}: {name} is {entry.channels}, the corpus is {recipe.channels}")
    if entry and not entry.ingest.idc:
        if part.per_patient:
            raise RecipeError(f"{recipe.name}: {name}: per_patient is for IDC", "per_volume or limit may be meant")
    elif part.limit or part.per_volume or part.beside_images:
        raise RecipeError(f"{recipe.name}: {name}: IDC has no caps but per_patient and tiles")
    return entry


def _find(path: str | Path) -> Path:
    name = str(path)
    for candidate in (name, name.removeprefix("recipes/"), f"mednet/{name}"):
        try:
            return find_shipped(candidate, "recipes")
        except RecipeError:
            continue
    raise RecipeError(f"{path}: no such corpus recipe", f"shipped: {', '.join(CORPORA)}")
