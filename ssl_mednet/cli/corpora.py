"""Verbs that make, describe and check a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_mednet.cli.app import Quiet, app
from ssl_mednet.errors import DataError, UserError
from ssl_mednet.files import check_file

if TYPE_CHECKING:
    from ssl_mednet.ingesting.run import Summary


@app.command()
def ingest(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, files, archives, globs in quotes, medmnist:NAME, catalog:ID, idc:COLLECTION."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the corpus; one that is there is added to.")
    ] = None,
    channels: Annotated[str, typer.Option(help="gray or color; images of the other kind are left out.")] = "gray",
    store_size: Annotated[int, typer.Option("--size", help="Longest side kept, pixels; nothing is enlarged.")] = 256,
    quality: Annotated[int, typer.Option(help="1 to 100: 8-bit images as JPEG; 0: nothing is lost.")] = 0,
    modality: Annotated[str, typer.Option(help="Of images that do not say their own.")] = "",
    convert: Annotated[bool, typer.Option("--convert", help="Turn images of the other kind into this one.")] = False,
    labels: Annotated[str, typer.Option(help="table: of labels.csv; all: names of folders too; none.")] = "table",
    group_field: Annotated[
        str,
        typer.Option(
            "--group", help="What stays together: folder, file, path:REGEX, tag:NAME, or a column of labels.csv."
        ),
    ] = "",
    mpp: Annotated[float, typer.Option(help="Of whole slides: microns per pixel of the tiles.")] = 0.5,
    tile: Annotated[int, typer.Option(help="Of whole slides: side of a tile, pixels.")] = 256,
    max_tiles: Annotated[int, typer.Option("--max-tiles", help="Tiles of a slide at most; 0: all with tissue.")] = 0,
    source: Annotated[str, typer.Option("--source", help="Name of the data set that is stored with each image.")] = "",
    licence: Annotated[str, typer.Option(help="SPDX identifier, as in CC-BY-4.0, or custom:WORDS.")] = "",
    root: Annotated[
        Path | None, typer.Option("--from", help="Where the files of catalog:ID lie; of several sets: DIR/ID.")
    ] = None,
    per_patient: Annotated[
        int | None, typer.Option("--per-patient", min=1, help="At most so many images or slides of a patient, of idc:.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    recipe: Annotated[
        str,
        typer.Option("--recipe", help="A whole corpus: mednet/corpus_gray.yaml; --from DIR has DIR/ID of each set."),
    ] = "",
    plan: Annotated[
        str, typer.Option("--plan", help="Only say what a corpus recipe would hold: mednet/corpus_gray.yaml.")
    ] = "",
    engine: Annotated[str, typer.Option(help="loky (this machine), ray or dask.")] = "loky",
    address: Annotated[str, typer.Option(help="Of a Ray or Dask cluster.")] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes on this machine; 0: one a core.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds that one image may take.")] = 120.0,
    quiet: Quiet = False,
) -> None:
    """Make a corpus of images, or add to one; killed and run again it goes on where it was.

    Groups (patients, lesions) are kept as hashes under the key in $SSL_MEDNET_GROUP_KEY or the file
    $SSL_MEDNET_GROUP_KEY_FILE; corpora made with one key share their groups. Without --group they are the column
    "group" of labels.csv, else the patient of a DICOM file (PatientID), else the slide. --group tag:NAME takes another
    tag of DICOM files: tag:StudyInstanceUID, tag:(0010,0020), or of a private block tag:(0019,xx0C,OWNER); a DICOM file
    that lacks it has no group, and other files have the same group as without --group. Sets of the catalog and of IDC
    have rules of their own.

    The name of the folder or archive is stored as the source (of a single image: file); --source sets another.

    [bold]Examples[/bold]

    ssl-mednet ingest scans/ more.zip --out corpora/gray --licence CC-BY-4.0

    ssl-mednet ingest "slides/*.tif" --out corpora/color --channels color --quality 90 --modality histopathology

    ssl-mednet ingest catalog:mura --from downloads/mura --out corpora/gray

    ssl-mednet ingest idc:nlst --per-patient 20 --out corpora/gray

    ssl-mednet ingest --plan mednet/corpus_gray.yaml

    ssl-mednet ingest --recipe mednet/corpus_gray.yaml --from downloads --out corpora/gray
    """
    if plan:
        from ssl_mednet.catalog.plan import plan as make_plan
        from ssl_mednet.catalog.table import plan_lines

        for line in plan_lines(make_plan(plan)):
            print(line)
        return
    if out is None or not (sources or recipe):
        raise UserError("say what to ingest and where to", "ssl-mednet ingest SCANS --out CORPUS")
    if recipe:
        _refuse_beside_recipe(context)
        from ssl_mednet.ingesting.from_recipe import ingest_recipe
        from ssl_mednet.ingesting.run import Way

        _tell(ingest_recipe(recipe, out, root, Way(engine, address, workers, timeout), quiet))
        return
    assert sources
    from ssl_mednet.catalog.licences import doubt, spelled
    from ssl_mednet.catalog.selection import is_selection
    from ssl_mednet.ingesting.selected import Choice, ingest_selected
    from ssl_mednet.progress import warn

    if not any(map(is_selection, sources)):
        _refuse_beside_plain(context)
    if reason := doubt(licence):
        warn(f"--licence {reason}")
    summary = ingest_selected(
        sources,
        out,
        Choice(root, per_patient, seed),
        channels=channels,
        store_size=store_size,
        quality=quality,
        modality=modality,
        convert=convert,
        labels=labels,
        group_field=group_field,
        mpp=mpp,
        tile=tile,
        max_tiles=max_tiles,
        source=source,
        licence=spelled(licence),
        engine=engine,
        address=address,
        workers=workers,
        timeout=timeout,
        quiet=quiet,
    )
    _tell(summary)


def _refuse_beside_recipe(context: typer.Context) -> None:
    """Options that the recipe states itself, so that none is passed over in silence."""
    beside = _given(context).keys() - {"recipe", "out", "root", "engine", "address", "workers", "timeout", "quiet"}
    if beside:
        name = _given(context)[min(beside)]
        raise UserError(f"{name} does not go with --recipe", "the recipe says what is ingested and how it is stored")


def _refuse_beside_plain(context: typer.Context) -> None:
    """Options that only sets of the catalog and of IDC heed."""
    beside = _given(context).keys() & {"root", "per_patient", "seed"}
    if beside:
        name = _given(context)[min(beside)]
        raise UserError(f"{name} is for catalog:ID and idc:COLLECTION", "a folder, file or archive is ingested whole")


def _given(context: typer.Context) -> dict[str, str]:
    """The parameters that stand on the command line, with the option that sets each."""
    given = {n for n in context.params if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"}
    return {p.name: p.opts[0] for p in context.command.params if p.name in given}


def _tell(summary: Summary) -> None:
    print(f"{'was there already' if summary.already else 'ingested'}: {summary.images} images, {summary.total} in all")
    if summary.quarantined:
        print(f"quarantined {summary.quarantined} files that could not be used: {summary.folder / 'quarantine.csv'}")
    for note in summary.notes:
        print(f"note:   {note}")
    print(f"corpus: {summary.folder}")
    if summary.missing:
        print(f"missing: {len(summary.missing)} of what the recipe names; run it again when they are there")
    for line in summary.missing:
        print(f"- {line}")


@app.command()
def inspect(
    corpus: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A page with pictures, .html.")] = None,
) -> None:
    """Show what a corpus holds: counts, sizes, intensities, copies, groups, and what its licences allow.

    [bold]Example[/bold]

    ssl-mednet inspect corpora/gray --out gray.html
    """
    from ssl_mednet.auditing.inspection import inspect as run
    from ssl_mednet.auditing.inspection_page import check_page, write_page

    if out is not None:
        check_page(out)
    found = run(corpus)
    print("\n".join(found.lines()))
    if out is not None:
        print(f"page: {write_page(found, out)}")


@app.command()
def audit(
    corpus: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    against: Annotated[list[str], typer.Option("--against", "-a", help="Suites (.yaml) or labelled sets.")],
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", help="Compare embeddings too: a run, a name of `list weights`.")
    ] = None,
    cosine: Annotated[float, typer.Option(min=0, max=1, help="Of embeddings: from where it is reported.")] = 0.98,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All pairs as a table, .csv.")] = None,
    quiet: Quiet = False,
) -> None:
    """List which images of evaluation sets are in a corpus, exact and near.

    Near are other sizes, encodings, brightness and contrast, and turns of a few degrees. Copies that are mirrored,
    turned further, inverted, framed or written on are not found.

    [bold]Example[/bold]

    ssl-mednet audit corpora/gray --against gray.yaml brain.zip --out audit.csv
    """
    from ssl_mednet.auditing.audit import audit as run

    if out is not None:
        check_file(out)
    report = run(corpus, against, weights, cosine=cosine, quiet=quiet)
    print("\n".join(report.lines()))
    if out is not None:
        report.write(out)
        print(f"pairs: {out}")
    if report.failed:
        raise typer.Exit(DataError.exit_code)


@app.command()
def curate(
    corpus: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    keep_ratio: Annotated[float, typer.Option(help="Share of the slices of each volume that stays.")] = 1.0,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", help="Look for copies by embeddings too: a run, a name of `list weights`."),
    ] = None,
    cosine: Annotated[float, typer.Option(min=0, max=1, help="Of embeddings: from where pixels are compared.")] = 0.9,
    against: Annotated[
        list[str] | None, typer.Option(help="Suite or labelled set whose test images are marked; may be repeated.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Mark copies, empty frames, redundant slices, test images and burnt-in text.

    With data.keep=good, pretrain leaves out all of these but text. Near copies are candidates whose perceptual hashes
    differ in at most 4 of 64 bits, or with --weights whose embeddings are within --cosine; a correlation of
    0.995 of the aligned pixels decides. All marks are made anew each time: say in one run all that is to be marked.

    [bold]Example[/bold]

    ssl-mednet curate corpora/gray --keep-ratio 0.3 --against gray.yaml
    """
    from ssl_mednet.auditing.quality import curate as run

    quality = run(corpus, keep_ratio, weights, quiet, cosine, against or ())
    print(", ".join(f"{name} {count}" for name, count in quality.counts().items()))
    print(f"good: {int(quality.keep.sum())} of {len(quality.keep)} images; train on them with data.keep=good")
