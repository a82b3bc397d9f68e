"""What weights are called where there is little room: short, and never two of them alike."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path


def short_names(weights: Iterable[str]) -> dict[str, str]:
    """A short name for each of ``weights``, all different: of a path as many last parts as tell it from the others.

    >>> short_names(["runs/gray", "random:resnet10t", "other/ct/backbone", "a/mri", "b/mri"])
    {'runs/gray': 'gray', 'random:resnet10t': 'random:resnet10t', 'other/ct/backbone': 'ct', 'a/mri': 'a/mri', \
'b/mri': 'b/mri'}
    """
    names = list(dict.fromkeys(weights))
    return {name: _shortest(name, names) for name in names}


def short_name(label: str, parts: int = 1) -> str:
    """The last parts of a path without the ``backbone`` folder of a run, and anything else as it is."""
    weights, bracket, folder = label.partition(" [")  # the folder that a report's label may carry stays with it
    if ":" in weights and "/" not in weights:
        return label
    path = Path(weights)
    last = (path.parent if path.name == "backbone" else path).parts[-parts:]
    return (Path(*last).as_posix() if last else weights) + bracket + folder


def _shortest(name: str, names: list[str]) -> str:
    for parts in range(1, len(Path(name).parts) + 1):
        short = short_name(name, parts)
        if [short_name(other, parts) for other in names].count(short) == 1:
            return short
    return name


def file_stem(name: str) -> str:
    """A name as a part of a file's name, another one for every name: ``skin`` as it is, ``runs/gray`` as
    ``runs-gray-`` and eight digits of its hash."""
    plain = re.sub(r"[^\w.]+", "-", name).strip("-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
