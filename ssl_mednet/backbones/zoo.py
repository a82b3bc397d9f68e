"""Weights that come with the package, found by name: a folder each, with a checksum that is verified before use.

An entry is an artifact folder (see :mod:`ssl_mednet.backbones.artifact`) named as the weights are. Entries lie inside
the package; folders in ``$SSL_MEDNET_ZOO`` are looked through first, so that a laboratory can have names of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ssl_mednet.backbones.card import in_words
from ssl_mednet.errors import did_you_mean
from ssl_mednet.files import with_nan

VARIABLE = "SSL_MEDNET_ZOO"
MAX_BYTES = 16 * 1024**2  # of the weights of an entry in the package: what a wheel can carry
CONFIG = "config.json"


def zoo_folders() -> list[Path]:
    """Where entries are looked for: the folders in ``$SSL_MEDNET_ZOO``, then the package's own."""
    named = [Path(p).expanduser() for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p]
    return [*named, shipped_zoo()]


def shipped_zoo() -> Path:
    """The folder of the entries that come with the package."""
    return Path(__file__).resolve().parents[1] / "zoo"


def zoo_entries() -> dict[str, Path]:
    """Folder of each entry by its name, in alphabetical order; of two with one name the first that is found."""
    found: dict[str, Path] = {}
    for folder in zoo_folders():
        for config in folder.glob(f"*/{CONFIG}"):
            found.setdefault(config.parent.name, config.parent)
    return dict(sorted(found.items()))


def find_entry(name: str) -> Path | None:
    """The folder of an entry, or None where there is none of this name."""
    return zoo_entries().get(name)


def suggestion(name: str) -> str:
    """``"did you mean 'gray-mednet-tiny'?"``, or what there is; empty where there is nothing."""
    known = zoo_entries()
    return did_you_mean(name, known) or (f"weights by name: {', '.join(known)}" if known else "")


def zoo_rows() -> list[tuple[str, str]]:
    """Name of each entry, and one line on it: architecture, input, size, licence and a figure."""
    return [(name, _line(folder)) for name, folder in zoo_entries().items()]


def _line(folder: Path) -> str:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        ours = config["ssl_mednet"]
        seen = ours["preprocessing"]
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6
        said = [config["architecture"], seen["channels"], f"{seen['image_size']} px", f"{size:.1f} MB"]
        said.append(ours.get("licence") or "licence not stated")
        return ", ".join([*said, *(figure_text(f) for f in ours.get("figures", [])[:1])])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({type(error).__name__})"


def figure_text(figure: dict[str, Any]) -> str:
    """``"AUROC .991 (.985 to .995) on brain_mri, linear"`` for an entry of ``figures`` in a config."""
    value, interval = in_words(with_nan(figure))
    said = f"{value} ({interval})".replace("0.", ".")
    return f"{figure['metric'].upper()} {said} on {figure['task']}, {figure['protocol']}"
