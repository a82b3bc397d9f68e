"""The command line: one thin command a verb. Heavy libraries are imported by the verbs that need them."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ssl_mednet import __version__
from ssl_mednet.errors import DataError, UserError

app = typer.Typer(
    name="ssl-mednet",
    help="Self-supervised pretraining and trustworthy evaluation for gray and color medical images.",
    epilog="Start with: ssl-mednet pretrain --recipe mae_gray.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
# Options that take several values, as in `--weights RUN random:resnet18`; the parser knows repeated options only.
_SEVERAL = ("--weights", "--data", "--against")
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the file: train.steps=200")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


class What(StrEnum):
    recipes = "recipes"
    suites = "suites"
    methods = "methods"
    protocols = "protocols"
    policies = "policies"
    augmentations = "augmentations"
    modalities = "modalities"
    backbones = "backbones"
    datasets = "datasets"


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def pretrain(
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Path, or the name of a shipped one.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Folder, zip, tar, npz, file, phantoms:gray or phantoms:color."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; by default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Pretrain a backbone on unlabeled images.

    [bold]Examples[/bold]

    ssl-mednet pretrain --recipe mae_gray.yaml

    ssl-mednet pretrain --recipe simclr_gray.yaml --data scans.zip --out runs/mine train.epochs=50

    ssl-mednet pretrain --resume --out runs/mine
    """
    if data and len(data) > 1:
        raise UserError(f"pretrain takes one --data, not {len(data)}", "put them into one folder or archive")
    if recipe is not None:
        from ssl_mednet.recipe import read_recipe

        read_recipe(recipe, overrides)  # what is wrong in it is told before torch is loaded
    from ssl_mednet.pretraining.run import pretrain as run

    result = run(recipe, data[0] if data else None, out, resume, overrides, quiet)
    if result.skipped:
        print(f"skipped {result.skipped} files that could not be used: {result.folder / 'quarantine.csv'}")
    print("augmented as " + ", ".join(f"{name} ({count})" for name, count in result.policies.items()))
    print(f"pretrained on {result.images} images, {result.steps} steps, {result.images_per_second:.0f} img/s")
    print(f"backbone:  {result.folder / 'backbone'}")
    print(f"curves:    tensorboard --logdir {result.folder}")
    print(f"next:      ssl-mednet evaluate --weights {result.folder} random: --data LABELLED")


@app.command()
def evaluate(
    overrides: Overrides = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights", "-w", help="Run or backbone folders, random:NAME, imagenet:NAME, baseline:NAME; compared."
        ),
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="One or more labelled sets.")] = None,
    suite: Annotated[str | None, typer.Option("--suite", "-s", help="Suite: path, or the name of one.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results; rows in it are kept.")] = None,
    page: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the folder.")] = True,
    quiet: Quiet = False,
) -> None:
    """Evaluate backbones on labelled sets, with 95 % intervals and paired tests against the first.

    Protocols are kNN and a linear probe unless a suite or [bold]protocols=[...][/bold] says more: few-shot, shares of
    the labels, robustness, fine-tuning ([bold]ssl-mednet list protocols[/bold]). A run that was stopped goes on where
    it was; features are computed once.

    [bold]random:[/bold] alone is the untrained net of the first weights' architecture, the baseline to beat.
    [bold]imagenet:NAME@96[/bold] is timm's pretrained net at 96 pixels, also for gray images.

    [bold]Examples[/bold]

    ssl-mednet evaluate --weights runs/mae_gray random: --data phantoms:gray

    ssl-mednet evaluate --weights runs/a random: imagenet:efficientnet_lite0 --suite gray.yaml --out results/a

    ssl-mednet evaluate --weights runs/a --data medmnist:bloodmnist?size=64 protocols=\\[finetune] finetune.epochs=5
    """
    from ssl_mednet.evaluation.run import evaluate as run
    from ssl_mednet.evaluation.table import show

    results = run(weights or [], suite=suite, data=data, out=out, overrides=overrides, quiet=quiet)
    show(results.rows, results.comparisons)
    print(f"results: {results.path}")
    if page:
        from ssl_mednet.reporting.build import report as write

        print(f"report:  {write([results.path.parent], results.path.with_name('report.html'))[0]}")
    for source, reason in results.failed.items():
        print(f"not evaluated: {source}: {reason}", file=sys.stderr)
    if results.failed:
        raise typer.Exit(DataError.exit_code)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Results folders and pretraining runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; tables go beside it.")] = Path("report.html"),
    tables: Annotated[bool, typer.Option(help="Also write the tables as Markdown, CSV and LaTeX.")] = True,
) -> None:
    """One page that a clinician or reviewer can read, from results and runs; it needs no network.

    [bold]Examples[/bold]

    ssl-mednet report results/gray

    ssl-mednet report runs/mine results/a results/b --out paper/report.html
    """
    from ssl_mednet.reporting.build import report as write

    for path in write(folders, out, tables):
        print(path)


@app.command()
def preview(
    overrides: Overrides = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Path, or the name of a shipped one.")
    ] = "simclr_gray.yaml",
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="As in pretrain.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A page (.html) or picture (.png).")] = Path("preview.html"),
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="How many of each modality.")] = 4,
    step: Annotated[int, typer.Option("--step", min=0, help="The training step whose views are shown.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Look at what augmentation does: originals, views, and each op with what was drawn for it.

    [bold]Examples[/bold]

    ssl-mednet preview --recipe simclr_gray.yaml --data scans.zip

    ssl-mednet preview --recipe simclr_color.yaml --out preview.png augment.strength=0.5
    """
    if data and len(data) > 1:
        raise UserError(f"preview takes one --data, not {len(data)}")
    from ssl_mednet.contact_sheet import preview as run

    print(f"preview: {run(recipe, data[0] if data else None, out, images, step, overrides, quiet)}")


@app.command()
def ingest(
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
        str, typer.Option("--group", help="What stays together: folder, file, path:REGEX, or a column of labels.csv.")
    ] = "",
    mpp: Annotated[float, typer.Option(help="Of whole slides: microns per pixel of the tiles.")] = 0.5,
    tile: Annotated[int, typer.Option(help="Of whole slides: side of a tile, pixels.")] = 256,
    max_tiles: Annotated[int, typer.Option("--max-tiles", help="Tiles of a slide at most; 0: all with tissue.")] = 0,
    source: Annotated[str, typer.Option("--source", help="Name of the data set; by default that of the path.")] = "",
    licence: Annotated[str, typer.Option(help="SPDX identifier, as in CC-BY-4.0, or custom:WORDS.")] = "",
    root: Annotated[Path | None, typer.Option("--from", help="Where the files of catalog:ID lie.")] = None,
    per_patient: Annotated[
        int | None, typer.Option("--per-patient", min=1, help="At most so many images or slides of a patient, of idc:.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
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
    $SSL_MEDNET_GROUP_KEY_FILE; corpora made with one key share their groups.

    [bold]Examples[/bold]

    ssl-mednet ingest scans/ more.zip --out corpora/gray --licence CC-BY-4.0

    ssl-mednet ingest "slides/*.tif" --out corpora/color --channels color --quality 90 --modality histopathology

    ssl-mednet ingest catalog:mura --from downloads/mura --out corpora/gray

    ssl-mednet ingest idc:nlst --per-patient 20 --out corpora/gray

    ssl-mednet ingest --plan mednet/corpus_gray.yaml
    """
    if plan:
        from ssl_mednet.catalog.plan import plan as make_plan
        from ssl_mednet.catalog.table import plan_lines

        for line in plan_lines(make_plan(plan)):
            print(line)
        return
    if not sources or out is None:
        raise UserError("say what to ingest and where to", "ssl-mednet ingest SCANS --out CORPUS")
    from ssl_mednet.ingesting.selected import Choice, ingest_selected

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
        licence=licence,
        engine=engine,
        address=address,
        workers=workers,
        timeout=timeout,
        quiet=quiet,
    )
    print(f"{'was there already' if summary.already else 'ingested'}: {summary.images} images, {summary.total} in all")
    if summary.quarantined:
        print(f"quarantined {summary.quarantined} files that could not be used: {summary.folder / 'quarantine.csv'}")
    for note in summary.notes:
        print(f"note:   {note}")
    print(f"corpus: {summary.folder}")


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
    from ssl_mednet.auditing.inspection_page import write_page

    found = run(corpus)
    print("\n".join(found.lines()))
    if out is not None:
        print(f"page: {write_page(found, out)}")


@app.command()
def audit(
    corpus: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    against: Annotated[list[str], typer.Option("--against", "-a", help="Suites (.yaml) or labelled sets.")],
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", help="Compare embeddings too: a run, a backbone, random:NAME.")
    ] = None,
    cosine: Annotated[float, typer.Option(min=0, max=1, help="Of embeddings: from where it is reported.")] = 0.98,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All pairs as a table, .csv.")] = None,
    quiet: Quiet = False,
) -> None:
    """List which images of evaluation sets are in a corpus, exact and near.

    [bold]Example[/bold]

    ssl-mednet audit corpora/gray --against gray.yaml brain.zip --out audit.csv
    """
    from ssl_mednet.auditing.audit import audit as run

    report = run(corpus, against, weights, cosine=cosine, quiet=quiet)
    print("\n".join(report.lines()))
    if out is not None:
        report.write(out)
        print(f"pairs: {out}")


@app.command()
def curate(
    corpus: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    keep_ratio: Annotated[float, typer.Option(help="Share of the slices of each volume that stays.")] = 1.0,
    quiet: Quiet = False,
) -> None:
    """Mark copies, empty frames, redundant slices and burnt-in text.

    With data.keep=good, pretrain leaves out all of these but text.

    [bold]Example[/bold]

    ssl-mednet curate corpora/gray --keep-ratio 0.3
    """
    from ssl_mednet.auditing.quality import curate as run

    quality = run(corpus, keep_ratio, quiet)
    print(", ".join(f"{name} {count}" for name, count in quality.counts().items()))
    print(f"good: {int(quality.keep.sum())} of {len(quality.keep)} images; train on them with data.keep=good")


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")],
    pattern: Annotated[str, typer.Argument(help="For backbones and datasets: a pattern, as in '*resnet*'.")] = "",
) -> None:
    """Show what is there: recipes, suites, methods, policies, modalities, backbones, datasets."""
    from ssl_mednet.listing import listing

    for line in listing(what.value, pattern):
        print(line)


def expand_several(arguments: list[str]) -> list[str]:
    """``--weights A B key=v`` as ``--weights A --weights B key=v``.

    >>> expand_several(["evaluate", "--weights", "runs/a", "random:", "--data", "x.zip", "seed=1"])
    ['evaluate', '--weights', 'runs/a', '--weights', 'random:', '--data', 'x.zip', 'seed=1']
    """
    expanded: list[str] = []
    option, values = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            long = {"-w": "--weights", "-d": "--data", "-a": "--against"}.get(argument, argument)
            option, values = (long, 0) if long in _SEVERAL else ("", 0)
            expanded.append(argument)
        elif option and values and not _OVERRIDE.match(argument):
            expanded += [option, argument]
        else:
            values += 1
            if _OVERRIDE.match(argument):
                option = ""
            expanded.append(argument)
    return expanded


def main() -> None:
    """Entry point: errors that a user can mend are one line and an exit code."""
    try:
        app(args=expand_several(sys.argv[1:]), prog_name="ssl-mednet")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
