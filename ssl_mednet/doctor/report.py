"""The checks as lines of a terminal, or as one object of JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from ssl_mednet.doctor.checks import CHECKS, Check
from ssl_mednet.doctor.self_test import self_test

WIDTH = 80
_INDENT = 19
_COLORS = {"ok": "\033[32m", "note": "\033[33m", "fail": "\033[31m"}
_PLAIN = "\033[0m"


def examine(with_self_test: bool = True) -> Iterator[Check]:
    """All checks, each as soon as it is known."""
    for check in CHECKS:
        yield from check()
    if with_self_test:
        yield from self_test()


def lines(check: Check, color: bool = False) -> list[str]:
    """One check in ``WIDTH`` columns: state, subject, what is; and below it what to do."""
    head = f"{check.state:<5} {check.name:<13}"
    text = textwrap.wrap(head + check.said, WIDTH, subsequent_indent=" " * _INDENT, break_on_hyphens=False)
    if check.advice:
        text += textwrap.wrap(
            check.advice, WIDTH, initial_indent=" " * (_INDENT - 3) + "-> ", subsequent_indent=" " * _INDENT
        )
    if color:
        text[0] = _COLORS[check.state] + text[0][: len(check.state)] + _PLAIN + text[0][len(check.state) :]
    return text


def verdict(checks: list[Check]) -> str:
    """The last line."""
    failed = [check.name for check in checks if check.state == "fail"]
    return f"not ready: {', '.join(failed)}" if failed else "ready"


def as_json(checks: list[Check]) -> str:
    """``{"ready": bool, "checks": [{"name", "state", "said", "advice"}]}``."""
    ready = all(check.state != "fail" for check in checks)
    return json.dumps({"ready": ready, "checks": [vars(check) for check in checks]}, indent=1)
