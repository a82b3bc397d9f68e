"""Folders that this package writes: what lies in them (features, thumbnails, views, tables) is no data."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from ssl_mednet.data.schema import is_corpus

# What marks a folder of each kind, apart from corpora: all names of a line are in it.
_MARKS = (
    {"recipe.yaml", "environment.json"},  # a run, from its first second
    {"results.json", "rows"},
    {"results.json", "predictions"},
    {"rows", "predictions"},  # results of an evaluation that was killed before its first set was done
    {"model.json", "head.safetensors"},  # a classifier
    {"config.json", "model.safetensors", "README.md"},  # an artifact, an export for timm or a hub
    {"preprocessing.json", "model.onnx", "README.md"},
)


def is_written(folder: Path, names: Set[str]) -> bool:
    """Whether a folder with these files and folders in it is a corpus, run, classifier, export, or holds results."""
    if any(marks <= names for marks in _MARKS):
        return True
    try:
        return "_versions" in names and is_corpus(folder)
    except PermissionError:  # it will be told when it is entered
        return False
