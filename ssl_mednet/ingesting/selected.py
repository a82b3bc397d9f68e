"""``catalog:ID`` and ``idc:COLLECTION`` among the sources of an ingest: fetched where that may be, by their rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_mednet.catalog.selection import Selection, is_selection, prepare, resolve, roots_of
from ssl_mednet.catalog.source import open_selection
from ssl_mednet.data.schema import CorpusSpec
from ssl_mednet.errors import DataError
from ssl_mednet.ingesting.checks import check, check_folder
from ssl_mednet.ingesting.run import STORE_SIZE, Summary, Way, ingest, ingest_opened


@dataclass(frozen=True)
class Choice:
    """What is taken of the sets of the catalog and of IDC.

    Args:
        root: folder with the files of a set (for IDC: into which they go; the cache when None); with ``root/ID`` for
            each where a set of the catalog is one of several.
        per_patient: instances or slides of a patient at most, of IDC.
        seed: which of them.
    """

    root: Path | None = None
    per_patient: int | None = None
    seed: int = 0


def ingest_selected(sources: Sequence[str], out: str | Path, choice: Choice, **options: Any) -> Summary:
    """:func:`~ssl_mednet.ingesting.run.ingest` of sources some of which are ``catalog:ID`` or ``idc:COLLECTION``.

    Each set is an ingest of its own, with its own modality, licence, name and rules for patients, labels and splits.
    What could not be fetched is among the notes; nothing is fetched that a person has to agree to.

    Args:
        options: of ``ingest``.

    Raises:
        DataError: as ``ingest``; or files that are not there, with how to get them.
    """
    folder = Path(out).expanduser().absolute()
    wanted = [*dict.fromkeys(text for text in sources if is_selection(text))]
    plain = [text for text in sources if not is_selection(text)]
    roots = roots_of(wanted, choice.root)
    chosen = [one for text in wanted for one in resolve(text, roots[text], choice.per_patient, choice.seed)]
    if not plain and not chosen:
        raise DataError("nothing to ingest", "name a folder, a file, an archive, catalog:ID or idc:COLLECTION")
    way = Way(**{name: options[name] for name in Way.__dataclass_fields__ if name in options})
    done, notes = [ingest(plain, folder, **options)] if plain else [], []
    for selection in chosen:
        summary, said = ingest_selection(selection, folder, _spec(selection, options), way, options.get("quiet", False))
        done.append(summary)
        notes += said
    return summed(done, notes)


def ingest_selection(
    selection: Selection, folder: Path, spec: CorpusSpec, way: Way, quiet: bool
) -> tuple[Summary, list[str]]:
    """Fetch one selection where it has to be, and ingest it.

    Returns:
        What was done, and notes on series that could not be fetched.

    Raises:
        DataError: as :func:`~ssl_mednet.ingesting.run.ingest`, or a server that gives nothing.
    """
    check(spec, way.timeout)
    check_folder(folder)
    notes = _fetch([selection], quiet)
    opened = open_selection(selection)
    return ingest_opened(opened, folder, spec, selection.name, selection.licence, way, quiet), notes


def summed(done: Sequence[Summary], notes: Sequence[str]) -> Summary:
    """Several ingests into one corpus as one, the last one last."""
    return replace(
        done[-1],
        images=sum(s.images for s in done),
        quarantined=sum(s.quarantined for s in done),
        already=all(s.already for s in done),
        notes=tuple(dict.fromkeys([*notes, *(note for s in done for note in s.notes)])),
    )


def _fetch(chosen: list[Selection], quiet: bool) -> list[str]:
    """Have the files of the selections here; notes on those that could not be had."""
    failed = prepare(chosen, quiet=quiet).failed
    if not failed:
        return []
    address, reason = failed[0]
    return [f"{len(failed)} series could not be fetched, for example {address}: {reason}"]


def _spec(selection: Selection, options: dict[str, Any]) -> CorpusSpec:
    names = ("channels", "store_size", "convert", "quality", "labels", "mpp", "tile", "max_tiles")
    said: dict[str, Any] = {"channels": "gray", "store_size": STORE_SIZE, "labels": "table"}
    said |= {name: options[name] for name in names if name in options}
    return CorpusSpec(**said, modality=options.get("modality") or selection.modality or "")
