"""A plan, and the catalog, as lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ssl_mednet.catalog.entries import Entry, matching
from ssl_mednet.catalog.licences import CLASSES, DISCLAIMER, LicenceClass
from ssl_mednet.catalog.plan import FORMULA, Plan, Row
from ssl_mednet.errors import DataError, did_you_mean
from ssl_mednet.imaging.modality import MODALITIES

WIDTH = 80
_ACCESS = {"open": "open", "registration": "sign", "credentialed": "apply"}
_LEGEND = (
    "count: counted in the index of IDC, read in a source, or memory. licence: its class, ? where it was not read. "
    "access: open; sign an agreement or make an account; apply for it."
)
_STEPS: dict[str, tuple[LicenceClass, ...]] = {
    "all": CLASSES,
    "without nc": tuple(c for c in CLASSES if c != "nc"),
    "without nc and unknown": tuple(c for c in CLASSES if c not in ("nc", "unknown")),
    "permissive only": ("permissive",),
}


def plan_lines(plan: Plan) -> list[str]:
    """What a corpus would hold: a line a set under its modality, totals, licences, and what to know before."""
    return [*_sets(plan), "", *_totals(plan), "", *_licences(plan), "", *_remarks(plan)]


def dataset_rows(pattern: str = "") -> list[tuple[str, str]]:
    """Id and facts of the catalog's sets whose id or modality matches a shell pattern.

    Raises:
        DataError: none matches.
    """
    entries = matching(pattern)
    if not entries:
        hint = did_you_mean(pattern, [e.id for e in matching()]) or "a modality, or a pattern as in 'idc_*_ct'"
        raise DataError(f"no set of the catalog matches {pattern!r}", hint)
    return [(entry.id, _facts(entry)) for entry in entries]


def _facts(entry: Entry) -> str:
    count = "-" if entry.n_images is None else f"{entry.n_images:,}"
    slides = " (slides)" if entry.is_slides else ""
    licence = f"{entry.licence or 'unknown'}{'' if entry.licence_verified or not entry.licence else ' ?'}"
    modality = entry.ingest.modality or f"mixed {entry.modality}"
    return f"{modality:<14} {count:>10} {entry.count_mark:<6} {_ACCESS[entry.access]:<5} {licence}{slides}"


def _sets(plan: Plan) -> Iterator[str]:
    yield f"{plan.recipe.name}: {plan.recipe.channels}, at {_stored(plan)}"
    yield f"{'set':<26}{'images':>10}{'patients':>9}{'GB':>7} {'count':<8}{'licence':<12}{'access':<6}".rstrip()
    for modality, images in plan.by(lambda row: row.modality).items():
        weight = plan.recipe.weights.get(modality)
        drawn = f"{weight:.1%} of draws".replace(".0%", "%") if weight else "never drawn"
        yield f"-- {MODALITIES[modality].name}: {images:,} images, {drawn} --"
        yield from (_set(row) for row in plan.rows if row.modality == modality)


def _stored(plan: Plan) -> str:
    store = plan.recipe.store
    return f"{store.size} px, " + ("without loss" if store.quality is None else f"JPEG quality {store.quality}")


def _set(row: Row) -> str:
    name = row.name if len(row.name) <= 25 else row.name[:24] + "…"
    patients = "-" if row.patients is None else f"{row.patients:,}"
    kind = next(iter(row.classes)) if len(row.classes) == 1 else "mixed"
    mark = "" if row.licence_read or kind == "unknown" else "?"
    numbers = f"{row.images:>10,}{patients:>9}{row.size / 1e9:>7.1f}"
    return f"{name:<26}{numbers} {row.count:<8}{kind + mark:<12}{_ACCESS[row.access]}"


def _totals(plan: Plan) -> Iterator[str]:
    yield f"{'total':<26}{plan.images:>10,}{plan.patients:>9,}{plan.size / 1e9:>7.1f}"
    unknown = sum(row.images for row in plan.rows if row.patients is None)
    yield from _wrapped(f"patients: of the sets that state them; {unknown:,} images are of sets that do not")
    marks = ", ".join(f"{n:,} {mark}" for mark, n in plan.by(lambda row: row.count).items())
    yield from _wrapped(f"images by count: {marks}")
    access = ", ".join(f"{n:,} {_ACCESS[a]}" for a, n in plan.by(lambda row: row.access).items())
    yield from _wrapped(f"images by access: {access}")
    yield from _wrapped(_LEGEND)


def _licences(plan: Plan) -> Iterator[str]:
    yield from (f"{name:<24}{plan.of_classes(classes):>12,} images" for name, classes in _STEPS.items())
    read = sum(row.images for row in plan.rows if row.licence_read)
    yield f"{'licence read':<24}{read:>12,} images"
    yield from _wrapped(plan.verdict.sentence)
    for condition in plan.verdict.conditions:
        yield from _wrapped(condition, "- ")
    yield from _wrapped(DISCLAIMER)


def _remarks(plan: Plan) -> Iterator[str]:
    yield from _wrapped(f"GB: {FORMULA}")
    if plan.index:
        yield from _wrapped(f"counted in idc-index-data {plan.index}; objects of several frames count as one image")
    for one, other in plan.overlaps:
        yield from _wrapped(f"{one} holds images of {other}: they come twice until duplicates are removed")
    if plan.evaluation:
        names = ", ".join(plan.evaluation)
        yield from _wrapped(f"images of these evaluation sets of MedMNIST are in it, audit before evaluating: {names}")


def _wrapped(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=bullet, subsequent_indent="  ", break_on_hyphens=False)
