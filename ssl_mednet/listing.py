"""What `ssl-mednet list` shows: names and one line on each."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from itertools import takewhile

from ssl_mednet.errors import UserError, did_you_mean


def listing(what: str, pattern: str = "") -> list[str]:
    """Lines to print; ``what`` is a key of the table below, ``pattern`` a part of names, or a shell pattern of them.

    Raises:
        UserError: there is no such list, or nothing in it has such a name.
    """
    if what not in KINDS:
        raise UserError(f"there is no list of {what}", did_you_mean(what, KINDS) or f"one of {', '.join(KINDS)}")
    rows = KINDS[what](pattern)
    if pattern and what not in ("backbones", "datasets"):  # which look for it themselves
        rows = [row for row in rows if fnmatch(row[0], _loosely(pattern))]
        if not rows:
            raise UserError(f"none of the {what} matches {pattern!r}", f"`ssl-mednet list {what}` shows all")
    return _aligned(rows)


def _loosely(pattern: str) -> str:
    """A word stands for every name that it is a part of."""
    return pattern if set(pattern) & set("*?[") else f"*{pattern}*"


def _recipes(pattern: str) -> list[tuple[str, str]]:
    return _shipped("recipes")


def _suites(pattern: str) -> list[tuple[str, str]]:
    return _shipped("eval")


def _shipped(kind: str) -> list[tuple[str, str]]:
    from ssl_mednet.shipped import list_shipped, shipped_folder

    rows = []
    for name in list_shipped(kind):  # type: ignore[arg-type]
        lines = (shipped_folder(kind) / name).read_text().splitlines()  # type: ignore[arg-type]
        said = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
        rows.append((name, re.split(r"(?<=\.)\s", said)[0]))
    return rows


def _methods(pattern: str) -> list[tuple[str, str]]:
    from ssl_mednet.methods import METHODS

    rows = []
    for name in METHODS:
        cls = METHODS.get(name)
        kinds = "/".join(sorted(cls.backbone_kinds))
        apart = f" Several processes: {cls.across_processes}" if cls.across_processes else ""
        rows.append((name, f"[{kinds}] {_first_line(cls.__doc__)}{apart}"))
    return rows + _broken(METHODS.broken)


def _policies(pattern: str) -> list[tuple[str, str]]:
    from ssl_mednet.augment.ops import MASKS
    from ssl_mednet.augment.policy import POLICIES

    rows = [(name, _first_line(POLICIES.get(name).doc)) for name in POLICIES]
    return rows + _broken(POLICIES.broken) + _broken(MASKS.broken)


def _augmentations(pattern: str) -> list[tuple[str, str]]:
    from ssl_mednet.augment.ops import OPS

    return [(name, _first_line(OPS.get(name).__doc__)) for name in OPS] + _broken(OPS.broken)


def _protocols(pattern: str) -> list[tuple[str, str]]:
    from ssl_mednet.evaluation.bench import PROTOCOLS

    return [(name, _first_line(PROTOCOLS.get(name).run.__doc__)) for name in PROTOCOLS] + _broken(PROTOCOLS.broken)


def _broken(reasons: dict[str, str]) -> list[tuple[str, str]]:
    """What is installed and left out."""
    return [(name, f"does not load: {reason}") for name, reason in reasons.items()]


def _modalities(pattern: str) -> list[tuple[str, str]]:
    from ssl_mednet.imaging.modality import MODALITIES

    return [(m.name, f"{m.channels}: {m.title}") for m in MODALITIES.values()]


def _backbones(pattern: str) -> list[tuple[str, str]]:
    import timm

    from ssl_mednet.backbones.factory import import_plugins

    broken = _broken(import_plugins())
    names = timm.list_models(_loosely(pattern))
    if not names:
        raise UserError(f"timm has no backbone that matches {pattern!r}", "try '*resnet*'")
    return [(name, "") for name in names] + broken


def _datasets(pattern: str) -> list[tuple[str, str]]:
    from ssl_mednet.catalog.table import dataset_rows

    return dataset_rows(pattern)


def _weights(pattern: str) -> list[tuple[str, str]]:
    from ssl_mednet.backbones.zoo import zoo_rows

    return zoo_rows() or [("none", "no weights came with this installation")]


def _first_line(doc: str | None) -> str:
    """The first line of a docstring, without its markup."""
    line = (doc or "").strip().partition("\n")[0]
    return re.sub(r"(?::\w+:)?`+~?([^`]+)`+", r"\1", line)


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {text}".rstrip() for name, text in rows]


KINDS: dict[str, Callable[[str], list[tuple[str, str]]]] = {
    "recipes": _recipes,
    "suites": _suites,
    "methods": _methods,
    "protocols": _protocols,
    "policies": _policies,
    "augmentations": _augmentations,
    "modalities": _modalities,
    "backbones": _backbones,
    "datasets": _datasets,
    "weights": _weights,
}
