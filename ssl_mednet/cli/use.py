"""Verbs that put weights to use: make a classifier, ask it, take it elsewhere."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ssl_mednet.cli.app import Quiet, SuiteOverrides, app
from ssl_mednet.errors import DataError, UserError


@app.command()
def finetune(
    overrides: SuiteOverrides = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights", "-w", help="Required: a run, a backbone, a name of `list weights`, imagenet:NAME@SIZE."
        ),
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Required: a labelled set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Required: folder of the model.")] = None,
    protocol: Annotated[
        str, typer.Option(help="linear (seconds), finetune, linear_then_finetune (a minute or more); auto.")
    ] = "auto",
    channels: Annotated[str, typer.Option(help="gray, color, or auto: those of the weights.")] = "auto",
    convert: Annotated[bool, typer.Option("--convert", help="Turn images of the other kind into this one.")] = False,
    modality: Annotated[str, typer.Option(help="Of images that do not say their own.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a classifier from weights and labelled images, calibrated, with a card and a report.

    By default the linear probe comes first and then all is fine-tuned, unless no epoch is better on val than the probe;
    with fewer than 1,000 images, or a large net and no GPU, the backbone stays frozen. Without splits of its own the
    set is split by group; a linear classifier of fewer than 1,000 images needs no val split, what is chosen for it
    comes from cross-validation.

    [bold]seed=1[/bold] draws the folds, the order and augmentation of fine-tuning, and the bootstrap anew.

    [bold]Examples[/bold]

    ssl-mednet finetune --weights runs/gray --data labelled.zip --out models/mine

    ssl-mednet finetune -w imagenet:efficientnet_lite0@96 -d labelled/ -o models/b --protocol finetune finetune.epochs=5
    """
    if not weights or not data or out is None or len(weights) > 1 or len(data) > 1:
        raise UserError("finetune takes one --weights, one --data and --out", "ssl-mednet finetune -w W -d D -o M")
    from ssl_mednet.backbones.card import in_words
    from ssl_mednet.classifying.fit import finetune as run
    from ssl_mednet.reporting.build import report

    try:
        made = run(weights[0], data[0], out, protocol, channels, convert, modality, overrides, overwrite, quiet)
    except DataError as error:
        error.message = error.message.replace("convert=true", "--convert")  # as the option is called here
        raise
    where = "by cross-validation" if made.cross_validated else f"on {made.row['n']} test images"
    for name in ("auroc", "balanced_accuracy", "ece_calibrated"):
        if name in made.row["metrics"]:
            value = made.point.get(name, made.row["metrics"][name])
            title = f"{name} of predict" if name in made.point else name
            figure, interval = in_words(value)
            print(f"{title}: {figure} ({interval}), {where}")
    page = report([made.folder / "results"], made.folder / "report.html", tables=False)[0]
    print(f"model:  {made.folder}")
    print(f"report: {page}")
    print(f"next:   ssl-mednet predict --model {shlex.quote(str(made.folder))} FILES... --out predictions.csv")


@app.command()
def predict(
    files: Annotated[list[str], typer.Argument(help="Files, folders, archives, globs in quotes.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder of a model, as finetune makes it.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A table, .csv or .json.")] = None,
    modality: Annotated[
        str,
        typer.Option(help="Of images that do not say their own; needed for CT volumes, if the model knows others too."),
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the rows that a run left which ended early.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Ask a classifier about images: probabilities, and whether an image is unlike those of the training.

    Each slice of a volume and each frame of a cine is a row. Files that cannot be read, or that the model was not made
    for, are listed with the reason.

    [bold]Examples[/bold]

    ssl-mednet predict --model models/mine scan.dcm pictures/ volume.nii.gz more.zip --out predictions.csv
    """
    from ssl_mednet.classifying.model import load_model
    from ssl_mednet.classifying.predict import predict as run
    from ssl_mednet.classifying.tables import as_csv, shown

    loaded = load_model(model)
    found = run(loaded, files, out, quiet, modality, resume)
    if out is None:
        print(as_csv(loaded, found), end="")
    said = f"{len(found.rows)} images, {found.unlike} unlike the training, {len(found.refused)} refused"
    print(said if out is None else f"{said}: {out}", file=sys.stderr)
    if not found.rows:
        file, reason = found.refused[0]
        raise DataError(f"no image got a prediction: {shown(file)}: {reason}")


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="A run, a backbone, a name of `list weights`, a model.")],
    format_: Annotated[str, typer.Option("--format", "-f", help="timm, hf, onnx or zoo.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    licence: Annotated[str, typer.Option(help="Of the weights; by default what those of the data lead to.")] = "",
    results: Annotated[
        list[Path] | None, typer.Option("--results", help="Results whose figures the card shows; may be repeated.")
    ] = None,
    limits: Annotated[
        list[str] | None, typer.Option("--limit", help="A sentence for the card; may be repeated.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
) -> None:
    """Write weights for another program: timm, a model hub, ONNX; or as weights that are known by name.

    Of a model, a classifier, onnx takes backbone and head; the other formats take the backbone alone.

    [bold]Examples[/bold]

    ssl-mednet export runs/gray --format hf --out upload/gray --licence CC-BY-4.0

    ssl-mednet export models/mine --format onnx --out models/mine-onnx

    ssl-mednet export runs/gray --format zoo --out zoo/my-gray --results results/gray   # then SSL_MEDNET_ZOO=zoo
    """
    from ssl_mednet.backbones.artifact import read_config
    from ssl_mednet.exporting.run import export as run

    folder = run(weights, format_, out, licence, results or (), limits or (), overwrite)
    for path in sorted(folder.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    if format_ == "hf":
        if terms := read_config(folder)["ssl_mednet"].get("data", {}).get("publishing"):
            print(f"terms: {terms[0]}")
        print(f"next: hf upload YOUR_NAME/REPOSITORY {shlex.quote(str(out))}   # the card says under which terms")
