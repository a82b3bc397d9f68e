"""Verbs about what is there."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from ssl_mednet.cli.app import app


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
    weights = "weights"


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")],
    pattern: Annotated[str, typer.Argument(help="For backbones and datasets: a pattern, as in '*resnet*'.")] = "",
) -> None:
    """Show what is there: recipes, suites, methods, policies, modalities, backbones, datasets, weights."""
    from ssl_mednet.listing import listing

    for line in listing(what.value, pattern):
        print(line)


@app.command()
def doctor(
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Pretrain, resume and evaluate for ten seconds.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One object for programs to read.")] = False,
) -> None:
    """Look at this machine: devices, versions, disks, memory, and a ten-second self test.

    Ends with 1 where something must be mended before anything works.
    """
    from ssl_mednet.doctor import report

    checks = []
    for check in report.examine(self_test):
        checks.append(check)
        if not as_json:
            print("\n".join(report.lines(check, sys.stdout.isatty())), flush=True)
    print(report.as_json(checks) if as_json else report.verdict(checks))
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)
