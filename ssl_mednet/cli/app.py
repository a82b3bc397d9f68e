"""The application that the verbs add themselves to, and the options that several of them share."""

from __future__ import annotations

from typing import Annotated

import typer

from ssl_mednet import __version__

app = typer.Typer(
    name="ssl-mednet",
    help="Self-supervised pretraining and trustworthy evaluation for gray and color medical images.",
    epilog="Start with: ssl-mednet pretrain --recipe mae_gray.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the file: train.steps=200")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
