"""What a source is called in a corpus and in what is made of it: a data set by its name, a patient never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_mednet.data.sources import Source
from ssl_mednet.files import expanded
from ssl_mednet.imaging.readers import archive

FILE = "file"
_SETS = (".npz", ".parquet", ".arrow")  # files that hold a data set, beside archives


def name_of(source: Source) -> str:
    """A short name for a source: the last part of its path without endings, or its specification.

    A folder or archive is named after a data set. A single image may be named after a patient, so it is a ``file``.
    """
    if not source.path.exists():
        return source.spec.partition("?")[0]
    return utf8(told_path(source.path).split(".")[0])


def utf8(name: str) -> str:
    """The name of a file or folder as a text that can be stored: bytes that are no UTF-8 become question marks."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def told_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as artifacts tell it: the last parts of its paths, as who reads them need not know more."""
    said = {section: dict(content) if isinstance(content, dict) else content for section, content in recipe.items()}
    for section, key in (("data", "source"), ("monitor", "probe")):
        if (content := said.get(section)) and content.get(key):
            content[key] = told_path(expanded(content[key]))
    for section, key in (("data", "held_out"), ("backbone", "weights")):  # a suite and a run are named after no patient
        if (content := said.get(section)) and content.get(key):
            content[key] = Path(content[key]).name
    if said.get("data", {}).get("leave_out"):
        said["data"]["leave_out"] = [told_path(expanded(one)) for one in said["data"]["leave_out"]]
    return said


def told_path(path: Path) -> str:
    """The last part of a path, as far as others may read it; ``file`` of a single image, the folder of a glob."""
    while ":" not in path.name and any(sign in path.name for sign in "*?["):  # phantoms:gray?n=5 is no glob
        path = path.parent
    a_set = not path.is_file() or path.suffix.lower() in _SETS or archive.is_archive(path)
    return (path.name.strip(".") or path.resolve().name) if a_set else FILE
