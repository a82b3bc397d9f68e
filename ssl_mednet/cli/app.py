"""The application that the verbs add themselves to, and the options that several of them share."""

from __future__ import annotations

import inspect
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

_KEYS = "[KEY=VALUE]..."
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar=_KEYS, help="Override keys of the recipe: train.steps=200")
]
SuiteOverrides = Annotated[
    list[str] | None, typer.Argument(metavar=_KEYS, help="Override keys of the suite: seed=1 finetune.epochs=5")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def unwrap_help() -> None:
    """Take the line ends of the source out of the paragraphs of each verb's help, which the terminal wraps again."""
    for command in app.registered_commands:
        paragraphs = inspect.cleandoc(getattr(command.callback, "__doc__", None) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
