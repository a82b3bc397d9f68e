"""The recipes and suites that come with the package, found by name from any directory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ssl_mednet.errors import RecipeError, did_you_mean

Kind = Literal["recipes", "eval"]
FACTS = ("references.yaml",)  # beside the suites, but none: published figures to compare with
CORPORA = ("mednet/corpus_gray.yaml", "mednet/corpus_color.yaml")  # beside the recipes: what to ingest, not to pretrain


def shipped_folder(kind: Kind) -> Path:
    """Where the shipped files lie: beside the package in a checkout, inside it when it was installed as a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / kind
    return (
        checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / "_shipped" / kind
    )


def list_shipped(kind: Kind) -> list[str]:
    """Names of all shipped files of a kind, sub-folders included: ``["byol_color.yaml", ...]``."""
    folder = shipped_folder(kind)
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*.yaml"))
    return sorted(name for name in names if name not in FACTS + CORPORA)


def find_shipped(name: str | Path, kind: Kind) -> Path:
    """A path as it is (absolute, or from the working directory) if it is a file, else a shipped file of that name.

    The suffix ``.yaml`` may be left out.

    Raises:
        RecipeError: neither; the message has the nearest shipped name, unless a path into another folder was given.
    """
    given = Path(name).expanduser()
    for candidate in (given, given.with_name(given.name + ".yaml")):
        if candidate.is_file():
            return candidate
    for candidate in (shipped_folder(kind) / given, shipped_folder(kind) / f"{given}.yaml"):
        if candidate.is_file():
            return candidate
    word = "recipe" if kind == "recipes" else "suite"
    names = list_shipped(kind)
    if given.parent != Path() and given.parts[0] not in {Path(one).parts[0] for one in names}:
        raise RecipeError(f"{name}: no such file")
    raise RecipeError(
        f"{name}: no such {word}", did_you_mean(given.as_posix(), names) or f"shipped: {', '.join(names)}"
    )
