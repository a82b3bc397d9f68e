"""A whole corpus from its recipe: every set that is here or may be fetched, and a list of those that are neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ssl_mednet.catalog.caps import Caps
from ssl_mednet.catalog.corpus_recipe import CorpusRecipe, Part, part_entry, read_corpus_recipe
from ssl_mednet.catalog.selection import Selection, folder_of, resolve
from ssl_mednet.data.schema import CorpusSpec
from ssl_mednet.errors import DataError, IngestError, UserError, WriteError
from ssl_mednet.ingesting.commit import state_weights
from ssl_mednet.ingesting.run import WAY, Summary, Way
from ssl_mednet.ingesting.selected import ingest_selection, summed


def ingest_recipe(
    path: str | Path, out: str | Path, root: Path | None = None, way: Way = WAY, quiet: bool = False
) -> Summary:
    """Make the corpus of a recipe, or as much of it as can be had.

    Each set is an ingest of its own, in the order of the recipe: killed and run again it goes on where it was, and a
    set that came later is added. The shares of the modalities are kept in the corpus, for ``data.sampling=weights``.

    Args:
        path: of a recipe, or the name of a shipped one.
        out: folder of the corpus.
        root: ``root/ID`` holds the files of ``catalog: ID``; series of IDC go to ``root/idc`` (the cache when None).

    Returns:
        What was done; ``missing`` has the sets that are not in it, and why or how to get them.

    Raises:
        RecipeError: the recipe says what it may not say; nothing was done.
        IngestError, WriteError: the corpus cannot be written or its engine does not run.
        DataError: none of its sets can be had.
    """
    recipe = read_corpus_recipe(path)
    for part in recipe.parts:
        part_entry(part, recipe)
    folder = Path(out).expanduser().absolute()
    done: list[Summary] = []
    notes: list[str] = []
    missing: list[str] = []
    for part in recipe.parts:
        try:
            selections = [*_selections(part, recipe, root)]
        except UserError as error:
            missing.append(_told(part, error))
            continue
        for selection in selections:
            spec = _spec(part, recipe, selection)
            try:
                summary, said = ingest_selection(selection, folder, spec, way, quiet)
            except (IngestError, WriteError):
                raise
            except UserError as error:
                missing.append(_told(part, error, selection.name))
            else:
                done.append(summary)
                notes += said
    if not done:
        raise DataError(f"{recipe.name}: none of its sets can be had:\n" + "\n".join(missing), "--from DIR holds them")
    state_weights(folder, recipe.weights)
    return replace(summed(done, notes), missing=tuple(missing))


def _told(part: Part, error: UserError, name: str = "") -> str:
    """One line on a set that is not in the corpus, beginning with its name."""
    name = name or f"{'catalog' if part.catalog else 'idc'}:{part.catalog or part.idc}"
    text = " ".join(str(error).split())
    return text if text.startswith(name) else f"{name}: {text}"


def _selections(part: Part, recipe: CorpusRecipe, root: Path | None) -> Iterator[Selection]:
    entry = part_entry(part, recipe)
    if entry is None or entry.ingest.idc:
        words = f"?modality={','.join(part.modality)}&licence={'any' if part.any_licence else 'permissive'}"
        spec = f"catalog:{entry.id}" if entry else f"idc:{part.idc}{words}"
        yield from resolve(spec, folder_of(spec, root), part.per_patient, recipe.seed)
        return
    caps = Caps(part.per_volume or 0, part.beside_images or 0, part.tiles or 0, part.limit or 0, recipe.seed)
    for selection in resolve(f"catalog:{entry.id}", folder_of(f"catalog:{entry.id}", root)):
        yield replace(selection, caps=caps)


def _spec(part: Part, recipe: CorpusRecipe, selection: Selection) -> CorpusSpec:
    return CorpusSpec(
        recipe.channels,
        recipe.store.size,
        selection.modality or "",
        quality=recipe.store.quality or 0,
        labels="table",
        max_tiles=part.tiles or 0,
    )
