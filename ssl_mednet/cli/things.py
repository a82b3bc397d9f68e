"""Verbs about what is there."""

from __future__ import annotations

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
