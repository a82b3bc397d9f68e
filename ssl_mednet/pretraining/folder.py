"""The folder of a run: where it is, what it began with, what it says about itself."""

from __future__ import annotations

import csv
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ssl_mednet.data.corpus import QUARANTINE, Corpus
from ssl_mednet.errors import RecipeError
from ssl_mednet.files import check_folder, replacing, write_json
from ssl_mednet.pretraining.build import resolve_precision
from ssl_mednet.pretraining.checkpoints import all_checkpoints
from ssl_mednet.progress import warn
from ssl_mednet.schema import Recipe

RECIPE, ENVIRONMENT, BACKBONE = "recipe.yaml", "environment.json", "backbone"


def run_folder(recipe: Recipe, out: str | Path | None, resume: bool) -> Path:
    if out is None:
        base = Path("runs") / recipe.name
        number = 1
        folder = base
        while not resume and (folder / RECIPE).exists():
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        check_folder(folder)
        return folder
    folder = Path(out).expanduser()
    if not resume and ((folder / RECIPE).exists() or all_checkpoints(folder)):
        raise RecipeError(f"{folder}: holds a run already", "--resume continues it; or choose another --out")
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder}: is a file, --out names a folder")
    check_folder(folder)
    return folder


def write_header(
    recipe: Recipe, folder: Path, corpus: Corpus, policies: dict[str, int], update: dict[str, Any]
) -> None:
    """The resolved recipe, the environment and the list of skipped files.

    The recipe that was there before, where it was another one, is kept as ``recipe.1.yaml`` and so on.

    Args:
        update: what one update is made of; see :func:`~ssl_mednet.pretraining.share.describe_update`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / RECIPE, recipe.to_yaml()
    if path.is_file() and path.read_text() != text:
        number = 1
        while (kept := folder / f"recipe.{number}.yaml").exists():
            number += 1
        shutil.copyfile(path, kept)
    with replacing(path) as temporary:
        temporary.write_text(text)
    packages = ("ssl-mednet", "torch", "torchvision", "pytorch-lightning", "lightly", "timm", "kornia", "numpy")
    groups = [g for g in metadata.entry_points().groups if g.startswith("ssl_mednet.")]
    plugins = [p.dist for group in groups for p in metadata.entry_points(group=group) if p.dist]
    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": resolve_precision(recipe),
        "update": update,
        "images_by_policy": dict(policies),
        "packages": {name: metadata.version(name) for name in packages} | {d.name: d.version for d in plugins},
    }
    write_json(folder / ENVIRONMENT, environment)
    if corpus.meta["skipped"] and not (folder / QUARANTINE).exists():
        shutil.copyfile(corpus.folder / QUARANTINE, folder / QUARANTINE)


class RottenRows:
    """Puts rows of the corpus that cannot be read any more on the run's ``quarantine.csv``, and says so.

    Several processes may write, and a resumed run meets the same rows again: each is named once.
    """

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.path, self.corpus, self.count = folder / QUARANTINE, corpus, 0

    def __call__(self, row: int, other: int, reason: str) -> None:
        self.count += 1
        name = f"{self.corpus.folder}!row {row}"
        warn(f"{name} cannot be read any more, row {other} stands in for it: {reason}")
        with FileLock(self.path.with_name(f".{QUARANTINE}.lock")):
            before: list[list[str]] = []
            if self.path.exists():
                with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                    before = list(csv.reader(file))
            if any(line and line[0] == name for line in before):
                return
            with self.path.open("a", newline="", encoding="utf-8") as file:
                rows = [] if before else [("path", "reason", "reader")]
                csv.writer(file).writerows([*rows, (name, f"{reason}; row {other} stands in for it", "corpus")])
