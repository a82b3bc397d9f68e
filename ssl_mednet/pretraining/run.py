"""One pretraining run, from the recipe to the backbone artifact."""

from __future__ import annotations

import functools
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from ssl_mednet.backbones.artifact import Preprocessing, save_backbone
from ssl_mednet.backbones.factory import create_backbone
from ssl_mednet.catalog.licences import DISCLAIMER, roll_up
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.loader import BatchStream
from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.pretraining.build import (
    ALONE,
    build_module,
    device_kind,
    model_args,
    processes_wanted,
    recipe_corpus,
    recipe_rows,
    resolve_precision,
    with_length,
)
from ssl_mednet.pretraining.checkpoints import CHECKPOINT, Checkpoints, last_step
from ssl_mednet.pretraining.curves import Curves, ProgressBar
from ssl_mednet.pretraining.folder import BACKBONE, RECIPE, check_same, run_folder, write_header
from ssl_mednet.pretraining.launch import launch
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.pretraining.pictures import Pictures
from ssl_mednet.pretraining.processes import Environment, joined, settled_by_first
from ssl_mednet.pretraining.share import check_given, check_share, describe_update, words
from ssl_mednet.pretraining.strategy import spread, whole_state
from ssl_mednet.pretraining.world import World, given_world, own_worlds
from ssl_mednet.recipe import Recipe, load_recipe


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

    With ``train.devices`` above one the processes are started here, and a script calls this under
    ``if __name__ == "__main__":``. Under torchrun or srun every process calls it and is one of those that train.

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
    prepare = functools.partial(_prepare, plan, out, resume, quiet)
    world = given_world()
    if world is not None:
        check_given(plan, world)
        check_share(plan, world)
        return _join(plan, prepare, quiet, world)
    worlds = own_worlds(processes_wanted(plan), plan.train.nodes)
    check_share(plan, worlds[0])
    if worlds[0].size > 1:
        return launch(functools.partial(_join, plan, prepare, quiet), worlds)
    return _join(plan, prepare, quiet, worlds[0])


@dataclass(frozen=True)
class _Job:
    """What process 0 settles for all before training; the corpus opens itself again in each of them."""

    recipe: Recipe
    folder: Path
    corpus: Corpus
    held_out: dict[str, Any]
    start: int


def _prepare(recipe: Recipe, out: str | Path | None, resume: bool, quiet: bool) -> _Job:
    folder = run_folder(recipe, out, resume)
    corpus = recipe_corpus(recipe, quiet)
    rows = recipe_rows(recipe, corpus)
    recipe = with_length(recipe, len(rows))
    check_same(recipe, folder)
    held_out = _held_out(recipe, corpus, rows, quiet)
    start = last_step(folder)
    if start >= (recipe.train.steps or 0) and (folder / BACKBONE).is_dir():
        raise UserError(f"{folder}: this run is finished ({start} steps)", "train.steps=N with another --out goes on")
    return _Job(recipe, folder, corpus, held_out, start)


def _join(recipe: Recipe, prepare: Callable[[], _Job], quiet: bool, world: World) -> Result:
    """Be one process of the run."""
    with joined(world, device_kind(recipe)):
        job = settled_by_first(prepare)
        with _quiet_libraries(), torch.random.fork_rng():
            return _run(job, world, quiet)


def _run(job: _Job, world: World, quiet: bool) -> Result:
    recipe, folder, corpus, start = job.recipe, job.folder, job.corpus, job.start
    rows = recipe_rows(recipe, corpus)
    steps = recipe.train.steps
    assert steps is not None
    mean, std = corpus.statistics(rows)
    batch_size = recipe.optim.batch_size // recipe.optim.accumulate
    stream = BatchStream(
        corpus, rows, batch_size, recipe.train.seed, world.rank, world.size, sampling=recipe.data.sampling
    )
    module = build_module(recipe, steps, mean, std, world)
    policies = Counter[str]()
    for modality, count in corpus.modalities(rows).items():
        policies[module.views.policy_of(modality)] += count
    if world.first:
        update = describe_update(recipe, world)
        write_header(recipe, folder, corpus, policies, update)
        if not quiet:
            print(*words(recipe, module.method, update), sep="\n", file=sys.stderr)
    stream.start = start * recipe.optim.accumulate
    checkpoints = Checkpoints(folder, recipe.train.checkpoint_every)
    bar = ProgressBar(recipe.name, quiet)
    callbacks: list[pl.Callback] = [Curves(folder, recipe.monitor.every, start), checkpoints, bar]
    if recipe.monitor.pictures and not module.sharded:  # they are drawn by one process, which needs all weights
        shown = corpus.batch(rows[: recipe.monitor.pictures])
        callbacks.append(Pictures(folder, recipe.train.checkpoint_every, shown))
    trainer = _trainer(recipe, folder, steps, start, callbacks, world)
    checkpoint = folder / CHECKPOINT if start else None
    trainer.fit(module, train_dataloaders=stream, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step < steps:
        step = trainer.global_step
        hint = f"go on with `ssl-mednet pretrain --resume --out {folder}`"
        raise Stopped(f"stopped at step {step} of {steps}, checkpoint written", hint)
    encoder = _whole_encoder(module)
    if world.first:
        _save(recipe, corpus, rows, job.held_out, encoder, folder, mean, std)
    return Result(folder, steps, len(rows), corpus.meta["skipped"], bar.images_per_second, policies)


def _held_out(recipe: Recipe, corpus: Corpus, rows: np.ndarray, quiet: bool) -> dict[str, Any]:
    """What is known of the test images of the suite that the recipe names; empty where it names none."""
    if not recipe.data.held_out:
        return {}
    from ssl_mednet.auditing.audit import refuse

    return refuse(corpus, recipe.data.held_out, recipe.data.allow_contamination, rows, quiet)


def _trainer(
    recipe: Recipe, folder: Path, steps: int, start: int, callbacks: list[pl.Callback], world: World = ALONE
) -> pl.Trainer:
    logger = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=start + 1 if start else None)
    return pl.Trainer(
        accelerator=recipe.train.device,
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


def _save(
    recipe: Recipe,
    corpus: Corpus,
    rows: np.ndarray,
    held_out: dict[str, Any],
    encoder: nn.Module,
    folder: Path,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    preprocessing = Preprocessing(recipe.data.channels, recipe.data.image_size, mean, std)
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
    save_backbone(encoder, folder / BACKBONE, recipe.backbone.name, model_args(recipe), preprocessing, provenance)


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
