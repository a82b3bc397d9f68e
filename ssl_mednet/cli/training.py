"""Verbs that train or show what training sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_mednet.cli.app import Overrides, Quiet, app
from ssl_mednet.errors import UserError


@app.command()
def pretrain(
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Path, or the name of a shipped one.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Folder, zip, tar, npz, file, phantoms:gray or phantoms:color."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; by default runs/NAME.")] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", help="Processes on this machine: a number, or auto: one a GPU.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with another recipe or other images than before.")
    ] = False,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Do a step again that went wrong: RUN/replay/step_N.")
    ] = None,
    page: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the run folder.")] = True,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", "-c", help="Labelled sets: evaluate the backbone on them, after and before."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Pretrain a backbone on unlabeled images.

    [bold]backbone.weights=[/bold] goes on from weights: a run, a name of [bold]ssl-mednet list weights[/bold] or
    imagenet:NAME. [bold]--compare[/bold] then shows what it gained over them, else over the untrained net.

    [bold]Examples[/bold]

    ssl-mednet pretrain --recipe mae_gray.yaml

    ssl-mednet pretrain --recipe simclr_gray.yaml --data scans.zip --out runs/mine train.epochs=50

    ssl-mednet pretrain --recipe continue_gray.yaml --data scans/ backbone.weights=runs/gray --compare labelled.zip

    ssl-mednet pretrain --resume --out runs/mine

    ssl-mednet pretrain --resume --out runs/mine --allow-changes train.steps=20000

    ssl-mednet pretrain --recipe mae_gray.yaml --devices 4
    """
    if replay is not None:
        from ssl_mednet.pretraining.replay import replay as run_again

        print(run_again(replay, quiet))
        return
    if data and len(data) > 1:
        raise UserError(f"pretrain takes one --data, not {len(data)}", "put them into one folder or archive")
    if devices is not None:
        overrides = [*(overrides or []), f"train.devices={devices}"]
    if recipe is not None:
        from ssl_mednet.recipe import read_recipe

        read_recipe(recipe, overrides)  # what is wrong in it is told before torch is loaded
    from ssl_mednet.pretraining.run import pretrain as run
    from ssl_mednet.pretraining.world import speaks

    if compare:  # their val and test images are not trained on; a set that cannot be used is told before the training
        from ssl_mednet.recipe import load_recipe

        said = recipe or (out / "recipe.yaml" if out is not None else None)
        named = load_recipe(said, overrides).data.leave_out if said is not None else []
        overrides = [*(overrides or []), f"data.leave_out={json.dumps(list(dict.fromkeys([*named, *compare])))}"]
    result = run(recipe, data[0] if data else None, out, resume, overrides, quiet, allow_changes)
    if not speaks():
        return
    if result.skipped:
        print(f"skipped {result.skipped} files that could not be used: {result.folder / 'quarantine.csv'}")
    if result.rotten:
        print(f"stood in for {result.rotten} rows that cannot be read any more: {result.folder / 'quarantine.csv'}")
    if result.skipped_steps:
        print(f"skipped {result.skipped_steps} updates whose loss or gradient was not finite")
    print("augmented as " + ", ".join(f"{name} ({count})" for name, count in result.policies.items()))
    rate = f", {result.images_per_second:.0f} img/s" if result.images_per_second else ""  # none of a run written anew
    print(f"pretrained on {result.images} images, {result.steps} steps{rate}")
    print(f"backbone:  {result.folder / 'backbone'}")
    if page:
        from ssl_mednet.reporting.build import report as write

        print(f"report:    {write([result.folder], result.folder / 'report.html', tables=False)[0]}")
    print(f"curves:    tensorboard --logdir {result.folder}")
    if not compare:
        print(f"next:      ssl-mednet evaluate --weights {result.folder} {result.before} --data LABELLED")
        return
    from ssl_mednet.evaluation.run import evaluate
    from ssl_mednet.evaluation.table import show

    told = load_recipe(result.folder / "recipe.yaml").data  # the sets are read as the images of the training were
    sets = [{"source": source, "convert": told.convert, "modality": told.modality} for source in compare]
    suite = {"name": "compare", "sets": sets}
    results = evaluate([result.folder, result.before], suite=suite, out=result.folder / "results", quiet=quiet)
    show(results.rows, results.comparisons)
    if said := _sizes(results.rows):
        print(said)
    print(f"results:   {results.path}")


def _sizes(rows: list[dict[str, Any]]) -> str:
    """At which sizes the weights in a table saw the images, where they differ; else empty."""
    from ssl_mednet.evaluation.names import short_names
    from ssl_mednet.evaluation.run import MAJORITY

    sizes = {row["weights"]: row["image_size"] for row in rows if row["protocol"] != MAJORITY}
    if len(set(sizes.values())) < 2:
        return ""
    short = short_names(sizes)
    told = ", ".join(f"{short[name]} {size} px" for name, size in sizes.items())
    return f"sizes differ: {told}; some of the difference may come from that"


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
