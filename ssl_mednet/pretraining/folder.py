"""The folder of a run: where it is, what it began with, what it says about itself."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ssl_mednet.data.corpus import QUARANTINE, Corpus
from ssl_mednet.errors import RecipeError
from ssl_mednet.pretraining.build import resolve_precision
from ssl_mednet.recipe import Recipe, load_recipe

# Which processes do the work, not what the work is: a run may go on with others. (Not from ddp to fsdp or back: their
# checkpoints number the optimizer's states differently.)
_FREE = ("train.devices", "train.nodes")
RECIPE, ENVIRONMENT, BACKBONE = "recipe.yaml", "environment.json", "backbone"


def run_folder(recipe: Recipe, out: str | Path | None, resume: bool) -> Path:
    if out is None:
        base = Path("runs") / recipe.name
        number = 1
        folder = base
        while not resume and (folder / RECIPE).exists():
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        return folder
    folder = Path(out).expanduser()
    if not resume and (folder / RECIPE).exists():
        raise RecipeError(f"{folder}: holds a run already", "--resume continues it; or choose another --out")
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder}: is a file, --out names a folder")
    return folder


def check_same(recipe: Recipe, folder: Path) -> None:
    """A run goes on with the recipe it began with.

    Raises:
        RecipeError: it would not; the message has every key that differs.
    """
    if not (folder / RECIPE).is_file():
        return
    began = load_recipe(folder / RECIPE)
    before, now = _flat(began.model_dump(mode="json")), _flat(recipe.model_dump(mode="json"))
    changed = [
        f"{k}: {before.get(k)} -> {now.get(k)}"
        for k in sorted(before | now)
        if before.get(k) != now.get(k) and k not in _FREE
    ]
    if changed:
        raise RecipeError(
            f"{folder}: the run began with another recipe ({'; '.join(changed)})",
            f"leave --recipe and overrides out to go on with {folder / RECIPE}, or choose another --out",
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def write_header(
    recipe: Recipe, folder: Path, corpus: Corpus, policies: dict[str, int], update: dict[str, Any]
) -> None:
    """The resolved recipe, the environment and the list of skipped files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(recipe.to_yaml())
    packages = ("ssl-mednet", "torch", "torchvision", "pytorch-lightning", "lightly", "timm", "kornia", "numpy")
    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": resolve_precision(recipe),
        "update": update,
        "images_by_policy": dict(policies),
        "packages": {name: metadata.version(name) for name in packages},
    }
    (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n")
    if corpus.meta["skipped"]:
        shutil.copyfile(corpus.folder / QUARANTINE, folder / QUARANTINE)
