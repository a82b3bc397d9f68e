"""One pretraining run, from the recipe to the backbone artifact."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from ssl_mednet.augment.views import ViewMaker
from ssl_mednet.backbones.artifact import Preprocessing, save_backbone
from ssl_mednet.backbones.factory import backbone_args, backbone_kind, create_backbone
from ssl_mednet.catalog.licences import DISCLAIMER, roll_up
from ssl_mednet.data.corpus import QUARANTINE, Corpus, CorpusSpec, open_corpus
from ssl_mednet.data.loader import BatchStream
from ssl_mednet.errors import DataError, RecipeError, UserError
from ssl_mednet.imaging.modality import CHANNEL_COUNT
from ssl_mednet.methods import METHODS, Method, View
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.monitor import CHECKPOINT, Checkpoints, Curves, Pictures, ProgressBar
from ssl_mednet.recipe import Recipe, load_recipe

RECIPE, ENVIRONMENT, BACKBONE = "recipe.yaml", "environment.json", "backbone"
DEFAULT_EPOCHS = 100.0


class Stopped(UserError):
    """The run was asked to stop and has written its checkpoint."""

    exit_code = 130


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Args:
        folder: of the run; ``backbone/`` in it is the artifact.
        skipped: files that could not be read; listed in ``quarantine.csv`` of the run folder.
        policies: how many images got each augmentation policy; those that say no modality get a generic one.
    """

    folder: Path
    steps: int
    images: int
    skipped: int
    images_per_second: float
    policies: dict[str, int]


def pretrain(
    recipe: str | Path | dict[str, Any] | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Result:
    """Pretrain a backbone on unlabeled images.

    Args:
        recipe: path or name of a recipe, or a dictionary; may be left out to resume the run in ``out``.
        data: replaces the recipe's ``data.source``.
        out: run folder; by default ``runs/NAME``, with a number where that is taken.
        resume: go on from the last checkpoint in ``out``, or start where there is none.
        overrides: ``key=value`` with dotted keys.
        quiet: no progress bar.

    Raises:
        UserError: anything a user can mend; nothing is lost.
    """
    said = list(overrides or [])
    if data is not None:
        said.append(f"data.source={json.dumps(str(data))}")
    if recipe is None:
        if not (resume and out):
            raise RecipeError("no recipe given", "--recipe NAME starts a run, --resume --out RUN continues one")
        recipe = Path(out) / RECIPE
    plan = load_recipe(recipe, said)
    folder = _run_folder(plan, out, resume)
    corpus = recipe_corpus(plan, quiet)
    rows = recipe_rows(plan, corpus)
    plan = _with_length(plan, len(rows))
    _check_same(plan, folder)
    held_out = _held_out(plan, corpus, rows, quiet)
    with _quiet_libraries(), torch.random.fork_rng():
        return _run(plan, corpus, rows, held_out, folder, quiet)


def _run(
    recipe: Recipe, corpus: Corpus, rows: np.ndarray, held_out: dict[str, Any], folder: Path, quiet: bool
) -> Result:
    steps = recipe.train.steps
    assert steps is not None
    mean, std = corpus.statistics(rows)
    batch_size = recipe.optim.batch_size // recipe.optim.accumulate
    stream = BatchStream(corpus, rows, batch_size, recipe.train.seed, sampling=recipe.data.sampling)
    start = _last_step(folder)
    if start >= steps and (folder / BACKBONE).is_dir():
        raise UserError(f"{folder}: this run is finished ({start} steps)", "train.steps=N with another --out goes on")
    module = build_module(recipe, steps, mean, std)
    policies = Counter[str]()
    for modality, count in corpus.modalities(rows).items():
        policies[module.views.policy_of(modality)] += count
    _write_header(recipe, folder, corpus, policies)
    stream.start = start * recipe.optim.accumulate
    checkpoints = Checkpoints(folder, recipe.train.checkpoint_every)
    bar = ProgressBar(recipe.name, quiet)
    callbacks: list[pl.Callback] = [Curves(folder, recipe.monitor.every, start), checkpoints, bar]
    if recipe.monitor.pictures:
        shown = corpus.batch(rows[: recipe.monitor.pictures])
        callbacks.append(Pictures(folder, recipe.train.checkpoint_every, shown))
    trainer = _trainer(recipe, folder, steps, start, callbacks)
    checkpoint = folder / CHECKPOINT if start else None
    trainer.fit(module, train_dataloaders=stream, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step < steps:
        step = trainer.global_step
        hint = f"go on with `ssl-mednet pretrain --resume --out {folder}`"
        raise Stopped(f"stopped at step {step} of {steps}, checkpoint written", hint)
    _save(recipe, corpus, rows, held_out, module, folder, mean, std)
    return Result(folder, steps, len(rows), corpus.meta["skipped"], bar.images_per_second, policies)


def build_module(recipe: Recipe, steps: int, mean: tuple[float, ...], std: tuple[float, ...]) -> PretrainModule:
    """Backbone, method and views of a recipe, with weights that depend on the seed only."""
    torch.manual_seed(recipe.train.seed)
    cls = METHODS.get(recipe.method.name)
    backbone = create_backbone(recipe.backbone.name, _model_args(recipe))
    method: Method = cls(backbone, cls.Config(**recipe.method.settings))
    views = build_views(recipe, method.views, mean, std)
    return PretrainModule(recipe, method, views, steps, channels_last=backbone_kind(recipe.backbone.name) == "cnn")


def build_views(recipe: Recipe, specs: Sequence[View], mean: tuple[float, ...], std: tuple[float, ...]) -> ViewMaker:
    """What makes the views of a recipe for a method that wants ``specs``."""
    augment = recipe.augment
    if augment.min_crop is not None:
        specs = [replace(view, scale=(augment.min_crop, view.scale[1])) for view in specs]
    return ViewMaker(specs, augment.policy, augment.strength, recipe.data.image_size, mean, std, augment.override)


def _model_args(recipe: Recipe) -> dict[str, Any]:
    backbone, channels = recipe.backbone, CHANNEL_COUNT[recipe.data.channels]
    return backbone_args(
        backbone.name, channels, recipe.data.image_size, backbone.patch_size, backbone.stem, dict(backbone.args)
    )


def recipe_corpus(recipe: Recipe, quiet: bool) -> Corpus:
    """The images that a recipe pretrains on."""
    data = recipe.data
    spec = CorpusSpec(data.channels, data.store_size or 2 * data.image_size, data.modality, data.convert)
    return open_corpus(data.source, spec, quiet)


def recipe_rows(recipe: Recipe, corpus: Corpus) -> np.ndarray:
    """The rows of its corpus that a recipe pretrains on.

    Raises:
        DataError: only good rows are wanted and nobody has marked them, or none is left.
    """
    rows = corpus.rows(recipe.data.split)
    if recipe.data.keep == "good":
        from ssl_mednet.auditing.quality import read_marks

        rows = rows[read_marks(corpus).keep[rows]]
        if not len(rows):
            raise DataError(f"{corpus.folder}: none of its rows is good", "data.keep=all trains on all of them")
    return rows


def _held_out(recipe: Recipe, corpus: Corpus, rows: np.ndarray, quiet: bool) -> dict[str, Any]:
    """What is known of the test images of the suite that the recipe names; empty where it names none."""
    if not recipe.data.held_out:
        return {}
    from ssl_mednet.auditing.audit import refuse

    return refuse(corpus, recipe.data.held_out, recipe.data.allow_contamination, rows, quiet)


def _with_length(recipe: Recipe, images: int) -> Recipe:
    """The recipe with the number of steps stated."""
    if recipe.train.steps is not None:
        return recipe
    epochs = recipe.train.epochs or DEFAULT_EPOCHS
    steps = max(1, round(epochs * images / recipe.optim.batch_size))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps, "epochs": None})})


def _run_folder(recipe: Recipe, out: str | Path | None, resume: bool) -> Path:
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


def _check_same(recipe: Recipe, folder: Path) -> None:
    """A run goes on with the recipe it began with.

    Raises:
        RecipeError: it would not; the message has every key that differs.
    """
    if not (folder / RECIPE).is_file():
        return
    began = load_recipe(folder / RECIPE)
    before, now = _flat(began.model_dump(mode="json")), _flat(recipe.model_dump(mode="json"))
    changed = [f"{k}: {before.get(k)} -> {now.get(k)}" for k in sorted(before | now) if before.get(k) != now.get(k)]
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


def _last_step(folder: Path) -> int:
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise UserError(f"{path}: the checkpoint cannot be read: {error}", "remove it to start again") from error


def _trainer(recipe: Recipe, folder: Path, steps: int, start: int, callbacks: list[pl.Callback]) -> pl.Trainer:
    logger = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=start + 1 if start else None)
    return pl.Trainer(
        accelerator=recipe.train.device,
        devices=1,
        precision=resolve_precision(recipe),  # type: ignore[arg-type]
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=recipe.optim.accumulate,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def resolve_precision(recipe: Recipe) -> str:
    """Lightning's name of the precision; ``auto`` is bfloat16 where the hardware multiplies it natively."""
    names = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    chosen = recipe.train.precision
    if chosen != "auto":
        return names[chosen]
    on_gpu = recipe.train.device in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    if on_gpu:
        return names["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"]
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    on_cpu = recipe.train.device == "cpu" or not torch.backends.mps.is_available()
    return names["bf16" if on_cpu and native else "float32"]


def _write_header(recipe: Recipe, folder: Path, corpus: Corpus, policies: dict[str, int]) -> None:
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
        "images_by_policy": dict(policies),
        "packages": {name: metadata.version(name) for name in packages},
    }
    (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n")
    if corpus.meta["skipped"]:
        shutil.copyfile(corpus.folder / QUARANTINE, folder / QUARANTINE)


def _save(
    recipe: Recipe,
    corpus: Corpus,
    rows: np.ndarray,
    held_out: dict[str, Any],
    module: PretrainModule,
    folder: Path,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    # Random crops enlarge what they show, so the whole image is best seen at a larger size than that of the views
    # (Touvron et al. 2019, arXiv 1906.06423).
    size = recipe.data.used_size or recipe.data.image_size
    preprocessing = Preprocessing(recipe.data.channels, size, mean, std)
    licences = Counter(corpus.column("licence").take(rows).to_pylist())
    verdict = roll_up(licences)
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "steps": recipe.train.steps,
        "data": {
            "source": Path(recipe.data.source).name,
            "images": len(rows),
            "modalities": corpus.modalities(rows),
            "fingerprint": corpus.meta["fingerprint"],
            "held_out": held_out,
            "licences": {licence or "not stated": count for licence, count in licences.most_common()},
            "publishing": [verdict.sentence, *verdict.conditions, DISCLAIMER],
        },
    }
    encoder = module.method.encoder
    save_backbone(encoder, folder / BACKBONE, recipe.backbone.name, _model_args(recipe), preprocessing, provenance)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Lightning's advice is about its own loaders and flags, none of which a user of ours can set."""
    names = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
