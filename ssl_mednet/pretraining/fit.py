"""One process of a pretraining run: what it trains with, the training, and the backbone artifact it leaves."""

from __future__ import annotations

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
from pytorch_lightning.loggers import TensorBoardLogger
from safetensors import SafetensorError
from torch import nn

from ssl_mednet.backbones.artifact import Preprocessing, save_backbone
from ssl_mednet.backbones.factory import create_backbone
from ssl_mednet.backbones.start import IMAGENET, used_size
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.loader import BatchStream
from ssl_mednet.errors import TrainingError
from ssl_mednet.pretraining.build import (
    ALONE,
    build_module,
    device_kind,
    recipe_rows,
    recipe_start,
    resolve_precision,
    view_statistics,
)
from ssl_mednet.pretraining.changes import amend, check_shapes, check_weights, describe_data
from ssl_mednet.pretraining.checkpoints import Checkpoint, Checkpoints
from ssl_mednet.pretraining.curves import ProgressBar
from ssl_mednet.pretraining.faults import BadSteps
from ssl_mednet.pretraining.finished import finished, provenance
from ssl_mednet.pretraining.folder import BACKBONE, RottenRows, write_header
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.monitor import Monitor, build_monitor
from ssl_mednet.pretraining.pictures import Pictures
from ssl_mednet.pretraining.processes import Environment
from ssl_mednet.pretraining.share import describe_update, words
from ssl_mednet.pretraining.stopping import Stopped, StopSignals
from ssl_mednet.pretraining.strategy import spread, whole_state
from ssl_mednet.pretraining.world import World
from ssl_mednet.recipe import model_args
from ssl_mednet.schema import Recipe


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Args:
        folder: of the run; ``backbone/`` in it is the artifact.
        skipped: files that could not be read; listed in ``quarantine.csv`` of the run folder.
        policies: how many images got each augmentation policy; those that say no modality get a generic one.
        rotten: rows of the corpus that could not be read any more; they are in ``quarantine.csv`` too.
        skipped_steps: updates skipped because their loss or gradient was not finite.
        before: the weights to compare with, as `evaluate` names them: those it started from, else ``random:``.
    """

    folder: Path
    steps: int
    images: int
    skipped: int
    images_per_second: float
    policies: dict[str, int]
    rotten: int = 0
    skipped_steps: int = 0
    before: str = "random:"


@dataclass(frozen=True)
class Job:
    """What process 0 settles for all before training; the corpus opens itself again in each of them.

    Args:
        held_out: what is known of the test images of the suite that the recipe names.
        at: where the run goes on; None at its beginning.
        changed: it goes on with another recipe or other images.
    """

    recipe: Recipe
    folder: Path
    corpus: Corpus
    held_out: dict[str, Any]
    at: Checkpoint | None
    changed: bool


def fit(job: Job, world: World, quiet: bool) -> Result:
    """Train to the end, and leave the artifact.

    Raises:
        Stopped: asked to stop; the checkpoint is written.
        TrainingError: it cannot go on; the message says where the state is.
    """
    recipe, folder, corpus = job.recipe, job.folder, job.corpus
    rows = recipe_rows(recipe, corpus)
    steps, start = recipe.train.steps, job.at.step if job.at is not None else 0
    assert steps is not None
    begin = recipe_start(recipe)
    check_weights(job.at, begin, folder)
    mean, std = view_statistics(corpus, rows, begin)
    rotten = RottenRows(folder, corpus)
    stream = _stream(recipe, corpus, rows, world, rotten)
    stream.start = start * recipe.optim.accumulate
    module = build_module(recipe, steps, mean, std, world)
    # Random crops enlarge what they show, so the whole image is best seen at a larger size than that of the views
    # (Touvron et al. 2019, arXiv 1906.06423).
    size = recipe.data.used_size or recipe.data.image_size
    preprocessing = Preprocessing(recipe.data.channels, size, mean, std)
    monitor = build_monitor(recipe, folder, corpus, rows, preprocessing, stream, quiet)
    if job.at is not None and job.changed:
        check_shapes(module, job.at)
    policies = Counter[str]()
    for modality, count in corpus.modalities(rows).items():
        policies[module.views.policy_of(modality)] += count
    if world.first:
        update = describe_update(recipe, world)
        write_header(recipe, folder, corpus, policies, update)
        if not quiet:
            print(*words(recipe, module.method, update), *_used_otherwise(recipe), sep="\n", file=sys.stderr)
    trained_on, train = describe_data(corpus, rows), recipe.train
    bar = ProgressBar(recipe.name, quiet)
    bad_steps = BadSteps(folder, train.max_bad_steps, trained_on)
    callbacks: list[pl.Callback] = [bad_steps, *monitor.callbacks, bar]
    if recipe.monitor.pictures and not module.sharded:  # they are drawn by one process, which needs all weights
        shown = stream.replacements.batch(rows[: recipe.monitor.pictures], None)
        callbacks.append(Pictures(folder, train.checkpoint_every, shown))
    with StopSignals() as stop:
        section = {
            "recipe": recipe.model_dump(mode="json"),
            "corpus": trained_on,
            "weights": begin.file if begin else "",
        }
        amended = amend if job.changed else None
        checkpoints = Checkpoints(folder, train.checkpoint_every, train.keep_checkpoints, section, stop, amended)
        trainer = build_trainer(recipe, folder, steps, start, [*callbacks, checkpoints], world)
        _train(trainer, module, monitor, job.at, stop)
        monitor.alarm.raise_if_stopped()
        if trainer.global_step < steps:
            step, go_on = trainer.global_step, f"go on with `ssl-mednet pretrain --resume --out {folder}`"
            written = checkpoints.failure and f"{checkpoints.failure}; {checkpoints.state}"
            raise Stopped(f"stopped at step {step} of {steps}, {written or 'checkpoint written'}", go_on, stop.received)
        encoder = _whole_encoder(module)
        if world.first:
            chosen = monitor.chosen(encoder, steps)  # which may put other weights into it
            told = provenance(recipe, corpus, rows, job.held_out, begin, chosen)
            encoder = finished(encoder, recipe, begin, preprocessing, stream.replacements, rows, quiet)
            _write(job, encoder, preprocessing, told, checkpoints)
    done = corpus.meta["skipped"], bar.images_per_second, policies, rotten.count, module.skipped_steps
    return Result(folder, steps, len(rows), *done, before=_before(recipe))


def _used_otherwise(recipe: Recipe) -> list[str]:
    """What a person should know where the finished backbone is not what is trained: its images, its last layer."""
    data, backbone, said = recipe.data, recipe.backbone, []
    weights = backbone.weights
    if data.used_size not in (0, data.image_size):
        why = f", as {weights} does" if weights and data.used_size == used_size(weights) else ""
        size = f"views have {data.image_size} px, the finished backbone sees {data.used_size} px{why}"
        said.append(f"data.used_size: {size}")
    if backbone.last_layer == "whitened":
        said.append("backbone.last_layer: the finished backbone's is made from the images")
    return said


def _before(recipe: Recipe) -> str:
    weights = recipe.backbone.weights
    if weights == IMAGENET:
        weights = f"{IMAGENET}:{recipe.backbone.name}"
    return weights or "random:"


def _stream(recipe: Recipe, corpus: Corpus, rows: np.ndarray, world: World, rotten: RottenRows) -> BatchStream:
    data, optim = recipe.data, recipe.optim
    return BatchStream(
        corpus,
        rows,
        optim.batch_size // optim.accumulate,
        recipe.train.seed,
        world.rank,
        world.size,
        sampling=data.sampling,
        weights=data.weights,
        timeout=data.timeout,
        on_rotten=rotten,
        pin=device_kind(recipe) == "cuda",
    )


def _train(
    trainer: pl.Trainer, module: PretrainModule, monitor: Monitor, at: Checkpoint | None, stop: StopSignals
) -> None:
    try:
        trainer.fit(module, train_dataloaders=monitor.stream, ckpt_path=at.path if at else None, weights_only=True)
    except SystemExit:  # the trainer's answer to a second Ctrl-C
        if stop.received:
            raise KeyboardInterrupt from None
        raise


def _write(
    job: Job, encoder: nn.Module, preprocessing: Preprocessing, told: dict[str, Any], checkpoints: Checkpoints
) -> None:
    """The artifact; and an error where the disk did not take it, or not the last checkpoint.

    Raises:
        TrainingError: see above; the message says where the state is.
    """
    recipe, failures = job.recipe, [checkpoints.failure] if checkpoints.failure else []
    try:
        save_backbone(encoder, job.folder / BACKBONE, recipe.backbone.name, model_args(recipe), preprocessing, told)
    except (OSError, SafetensorError) as error:
        failures.append(f"backbone not written: {error}")
    if failures:
        hint = "make room on the disk; --resume goes on from the last good checkpoint"
        raise TrainingError(f"{job.folder}: {'; '.join(failures)}; {checkpoints.state}", hint)


def build_trainer(
    recipe: Recipe, folder: Path, steps: int, start: int, callbacks: list[pl.Callback], world: World = ALONE
) -> pl.Trainer:
    """Lightning's trainer: the loop, and nothing that this package has of its own."""
    logger = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=start + 1 if start else None)
    return pl.Trainer(
        accelerator=device_kind(recipe),
        devices=world.local_size,
        num_nodes=world.nodes,
        strategy=spread(recipe, world, device_kind(recipe)),
        plugins=[Environment(world)],
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


def _whole_encoder(module: PretrainModule) -> nn.Module:
    """The backbone to keep, with all its weights in process 0."""
    if not module.sharded:
        return module.method.encoder
    recipe, state = module.recipe, whole_state(module.method.encoder)
    encoder = create_backbone(recipe.backbone.name, model_args(recipe))
    if state:  # only process 0 has it
        encoder.load_state_dict(state)
    return encoder


@contextmanager
def quiet_libraries() -> Iterator[None]:
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
