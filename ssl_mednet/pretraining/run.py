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
from safetensors import SafetensorError

from ssl_mednet.backbones.artifact import Preprocessing, save_backbone
from ssl_mednet.catalog.licences import DISCLAIMER, roll_up
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.loader import BatchStream
from ssl_mednet.errors import RecipeError, TrainingError, UserError
from ssl_mednet.pretraining.build import (
    build_module,
    model_args,
    recipe_corpus,
    recipe_rows,
    resolve_precision,
    with_length,
    with_weights,
)
from ssl_mednet.pretraining.changes import amend, began_with, check_data, check_recipe, check_shapes, describe_data
from ssl_mednet.pretraining.checkpoints import Checkpoint, Checkpoints, last_checkpoint
from ssl_mednet.pretraining.curves import Curves, ProgressBar
from ssl_mednet.pretraining.faults import BadSteps, memory_explained
from ssl_mednet.pretraining.folder import BACKBONE, RECIPE, RottenRows, run_folder, write_header
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.pictures import Pictures
from ssl_mednet.pretraining.stopping import Stopped, StopSignals
from ssl_mednet.progress import warn
from ssl_mednet.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Args:
        folder: of the run; ``backbone/`` in it is the artifact.
        skipped: files that could not be read; listed in ``quarantine.csv`` of the run folder.
        policies: how many images got each augmentation policy; those that say no modality get a generic one.
        rotten: rows of the corpus that could not be read any more; they are in ``quarantine.csv`` too.
        skipped_steps: updates skipped because their loss or gradient was not finite.
    """

    folder: Path
    steps: int
    images: int
    skipped: int
    images_per_second: float
    policies: dict[str, int]
    rotten: int = 0
    skipped_steps: int = 0


def pretrain(
    recipe: str | Path | dict[str, Any] | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: list[str] | None = None,
    quiet: bool = False,
    allow_changes: bool = False,
) -> Result:
    """Pretrain a backbone on unlabeled images.

    Args:
        recipe: path or name of a recipe, or a dictionary; may be left out to resume the run in ``out``.
        data: replaces the recipe's ``data.source``.
        out: run folder; by default ``runs/NAME``, with a number where that is taken.
        resume: go on from the last checkpoint in ``out``, or start where there is none.
        overrides: ``key=value`` with dotted keys.
        quiet: no progress bar.
        allow_changes: resume although recipe or images are not those that the run began with.

    Raises:
        UserError: anything a user can mend; nothing is lost.
        ResumeMe: the run was stopped, or its disk does not answer; ``resume`` goes on.
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
    plan = with_weights(with_length(plan, len(rows)), corpus)
    at = last_checkpoint(folder)
    step = at.step if at is not None else 0
    notes = check_recipe(began_with(folder, at), plan, folder, step, allow_changes)
    notes += check_data(at, describe_data(corpus, rows), folder, allow_changes)
    for note in notes:
        warn(f"{folder}: {note}")
    held_out = _held_out(plan, corpus, rows, quiet)
    with _quiet_libraries(), torch.random.fork_rng(), memory_explained(plan, folder):
        return _run(plan, corpus, rows, held_out, folder, at, bool(notes), quiet)


def _run(
    recipe: Recipe,
    corpus: Corpus,
    rows: np.ndarray,
    held_out: dict[str, Any],
    folder: Path,
    at: Checkpoint | None,
    changed: bool,
    quiet: bool,
) -> Result:
    steps, start = recipe.train.steps, at.step if at is not None else 0
    assert steps is not None
    mean, std = corpus.statistics(rows)
    batch_size = recipe.optim.batch_size // recipe.optim.accumulate
    rotten = RottenRows(folder, corpus)
    data = recipe.data
    stream = BatchStream(
        corpus,
        rows,
        batch_size,
        recipe.train.seed,
        sampling=data.sampling,
        weights=data.weights,
        timeout=data.timeout,
        on_rotten=rotten,
    )
    if start >= steps and (folder / BACKBONE).is_dir():
        hint = "train.steps=N --allow-changes goes on with it"
        raise UserError(f"{folder}: this run is finished ({start} steps)", hint)
    module = build_module(recipe, steps, mean, std)
    if at is not None and changed:
        check_shapes(module, at)
    policies = Counter[str]()
    for modality, count in corpus.modalities(rows).items():
        policies[module.views.policy_of(modality)] += count
    write_header(recipe, folder, corpus, policies)
    stream.start = start * recipe.optim.accumulate
    bar = ProgressBar(recipe.name, quiet)
    trained_on = describe_data(corpus, rows)
    callbacks: list[pl.Callback] = [
        BadSteps(folder, recipe.train.max_bad_steps, trained_on),
        Curves(folder, recipe.monitor.every),
        bar,
    ]
    if recipe.monitor.pictures:
        shown = stream.replacements.batch(rows[: recipe.monitor.pictures], None)
        callbacks.append(Pictures(folder, recipe.train.checkpoint_every, shown))
    with StopSignals() as stop:
        section = {"recipe": recipe.model_dump(mode="json"), "corpus": trained_on}
        train = recipe.train
        checkpoints = Checkpoints(
            folder, train.checkpoint_every, train.keep_checkpoints, section, stop, amend if changed else None
        )
        trainer = _trainer(recipe, folder, steps, start, [*callbacks, checkpoints])
        _fit(trainer, module, stream, at, stop)
        if trainer.global_step < steps:
            step, go_on = trainer.global_step, f"go on with `ssl-mednet pretrain --resume --out {folder}`"
            written = checkpoints.failure and f"{checkpoints.failure}; {checkpoints.state}"
            raise Stopped(f"stopped at step {step} of {steps}, {written or 'checkpoint written'}", go_on, stop.received)
        _finish(recipe, corpus, rows, held_out, module, folder, mean, std, checkpoints)
    return Result(
        folder,
        steps,
        len(rows),
        corpus.meta["skipped"],
        bar.images_per_second,
        policies,
        rotten.count,
        module.skipped_steps,
    )


def _fit(
    trainer: pl.Trainer, module: PretrainModule, stream: BatchStream, at: Checkpoint | None, stop: StopSignals
) -> None:
    try:
        trainer.fit(module, train_dataloaders=stream, ckpt_path=at.path if at else None, weights_only=True)
    except SystemExit:  # the trainer's answer to a second Ctrl-C
        if stop.received:
            raise KeyboardInterrupt from None
        raise


def _finish(
    recipe: Recipe,
    corpus: Corpus,
    rows: np.ndarray,
    held_out: dict[str, Any],
    module: PretrainModule,
    folder: Path,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    checkpoints: Checkpoints,
) -> None:
    """The artifact; and an error where the disk did not take it, or not the last checkpoint.

    Raises:
        TrainingError: see above; the message says where the state is.
    """
    failures = [checkpoints.failure] if checkpoints.failure else []
    try:
        _save(recipe, corpus, rows, held_out, module, folder, mean, std)
    except (OSError, SafetensorError) as error:
        failures.append(f"backbone not written: {error}")
    if failures:
        hint = "make room on the disk; --resume goes on from the last good checkpoint"
        raise TrainingError(f"{folder}: {'; '.join(failures)}; {checkpoints.state}", hint)


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
