"""Verbs about what is there."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ssl_mednet.cli.app import app
from ssl_mednet.listing import KINDS, listing


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", help=f"{', '.join(KINDS)}.")],
    pattern: Annotated[str, typer.Argument(help="A part of the names to show, or a pattern: 'mednet*'.")] = "",
) -> None:
    """Show what is there, a line on each."""
    for line in listing(what, pattern):
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
