"""One pretraining run, from the recipe to the backbone artifact."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from ssl_mednet.backbones.artifact import Preprocessing, save_backbone
from ssl_mednet.backbones.start import IMAGENET, Start
from ssl_mednet.catalog.licences import DISCLAIMER, roll_up
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.loader import BatchStream
from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.pretraining.build import (
    build_module,
    recipe_corpus,
    recipe_rows,
    recipe_start,
    resolve_precision,
    with_length,
)
from ssl_mednet.pretraining.checkpoints import CHECKPOINT, Checkpoints, last_step
from ssl_mednet.pretraining.curves import Curves, ProgressBar
from ssl_mednet.pretraining.folder import BACKBONE, RECIPE, check_same, run_folder, write_header
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.pictures import Pictures
from ssl_mednet.recipe import Recipe, load_recipe, model_args


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
        before: the weights to compare with, as `evaluate` names them: those it started from, else ``random:``.
    """

    folder: Path
    steps: int
    images: int
    skipped: int
    images_per_second: float
    policies: dict[str, int]
    before: str = "random:"


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
    folder = run_folder(plan, out, resume)
    corpus = recipe_corpus(plan, quiet)
    rows = recipe_rows(plan, corpus)
    plan = with_length(plan, len(rows))
    check_same(plan, folder)
    held_out = _held_out(plan, corpus, rows, quiet)
    with _quiet_libraries(), torch.random.fork_rng():
        return _run(plan, corpus, rows, held_out, folder, quiet)


def _run(
    recipe: Recipe, corpus: Corpus, rows: np.ndarray, held_out: dict[str, Any], folder: Path, quiet: bool
) -> Result:
    steps = recipe.train.steps
    assert steps is not None
    begin = recipe_start(recipe)
    mean, std = corpus.statistics(rows) if begin is None else (begin.mean, begin.std)  # as its weights know images
    batch_size = recipe.optim.batch_size // recipe.optim.accumulate
    stream = BatchStream(corpus, rows, batch_size, recipe.train.seed, sampling=recipe.data.sampling)
    start = last_step(folder)
    if start >= steps and (folder / BACKBONE).is_dir():
        raise UserError(f"{folder}: this run is finished ({start} steps)", "train.steps=N with another --out goes on")
    module = build_module(recipe, steps, mean, std)
    policies = Counter[str]()
    for modality, count in corpus.modalities(rows).items():
        policies[module.views.policy_of(modality)] += count
    write_header(recipe, folder, corpus, policies)
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
    _save(recipe, corpus, rows, held_out, module, folder, mean, std, begin)
    return Result(folder, steps, len(rows), corpus.meta["skipped"], bar.images_per_second, policies, _before(recipe))


def _before(recipe: Recipe) -> str:
    weights = recipe.backbone.weights
    if weights == IMAGENET:
        weights = f"{IMAGENET}:{recipe.backbone.name}"
    return weights or "random:"


def _held_out(recipe: Recipe, corpus: Corpus, rows: np.ndarray, quiet: bool) -> dict[str, Any]:
    """What is known of the test images of the suite that the recipe names; empty where it names none."""
    if not recipe.data.held_out:
        return {}
    from ssl_mednet.auditing.audit import refuse

    return refuse(corpus, recipe.data.held_out, recipe.data.allow_contamination, rows, quiet)


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


def _save(
    recipe: Recipe,
    corpus: Corpus,
    rows: np.ndarray,
    held_out: dict[str, Any],
    module: PretrainModule,
    folder: Path,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    begin: Start | None,
) -> None:
    preprocessing = Preprocessing(recipe.data.channels, recipe.data.image_size, mean, std)
    licences = Counter(corpus.column("licence").take(rows).to_pylist())
    verdict = roll_up(licences + Counter({} if begin is None else begin.licences))
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
        **({} if begin is None else {"parent": begin.record}),
    }
    encoder = module.method.encoder
    save_backbone(encoder, folder / BACKBONE, recipe.backbone.name, model_args(recipe), preprocessing, provenance)


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
