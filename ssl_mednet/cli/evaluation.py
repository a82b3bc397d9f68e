"""Verbs that measure and report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ssl_mednet.cli.app import Quiet, SuiteOverrides, app
from ssl_mednet.errors import DataError


@app.command()
def evaluate(
    overrides: SuiteOverrides = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights", "-w", help="Runs, names of `list weights`, random:NAME, imagenet:NAME, baseline:NAME."
        ),
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="One or more labelled sets.")] = None,
    suite: Annotated[str | None, typer.Option("--suite", "-s", help="Suite: path, or the name of one.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder; work in it is reused, results and report are of this call."),
    ] = None,
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
