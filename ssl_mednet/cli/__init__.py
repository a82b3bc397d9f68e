"""The command line: one thin command a verb. Heavy libraries are imported by the verbs that need them."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys

from ssl_mednet.cli.app import app, unwrap_help
from ssl_mednet.errors import DataError, Hung, UserError
from ssl_mednet.pretraining.world import speaks

for _verbs in ("training", "evaluation", "use", "corpora", "things"):  # in the order of --help; each adds its verbs
    importlib.import_module(f"ssl_mednet.cli.{_verbs}")
unwrap_help()

# Options that take several values, as in `--weights RUN random:resnet18`; the parser knows repeated options only.
_SEVERAL = ("--weights", "--data", "--against", "--compare")
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")

# What the system refuses for reasons that a user can mend, wherever it does.
_REFUSED = {
    errno.ENAMETOOLONG: "a shorter name is needed",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
    errno.EROFS: "name another place",
    errno.EACCES: "name another place, or change its permissions",
    errno.EPERM: "name another place, or change its permissions",
}


def expand_several(arguments: list[str]) -> list[str]:
    """``--weights A B key=v`` as ``--weights A --weights B key=v``.

    >>> expand_several(["evaluate", "--weights", "runs/a", "random:", "--data", "x.zip", "seed=1"])
    ['evaluate', '--weights', 'runs/a', '--weights', 'random:', '--data', 'x.zip', 'seed=1']
    """
    expanded: list[str] = []
    option, values = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            long = {"-w": "--weights", "-d": "--data", "-a": "--against", "-c": "--compare"}.get(argument, argument)
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
        if speaks():  # of several processes, all of which meet the same error
            print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, Hung):
            sys.stdout.flush()
            os._exit(error.exit_code)  # an ordinary exit would wait for the threads that hang
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        path = "" if error.filename is None else f"{str(error.filename)[:200]}: "
        if speaks():
            print(f"error: {path}{error.strerror} ({_REFUSED[error.errno]})", file=sys.stderr, flush=True)
        sys.exit(DataError.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
