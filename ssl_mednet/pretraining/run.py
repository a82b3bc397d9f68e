"""One pretraining run: what is settled before it, and the processes that do it."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.pretraining.build import (
    device_kind,
    processes_wanted,
    recipe_corpus,
    recipe_rows,
    with_length,
    with_weights,
)
from ssl_mednet.pretraining.changes import began_with, check_data, check_recipe, describe_data, ends_otherwise
from ssl_mednet.pretraining.checkpoints import last_checkpoint, tidy
from ssl_mednet.pretraining.faults import memory_explained
from ssl_mednet.pretraining.fit import Job, Result, fit, quiet_libraries
from ssl_mednet.pretraining.folder import BACKBONE, RECIPE, run_folder
from ssl_mednet.pretraining.launch import launch
from ssl_mednet.pretraining.processes import joined, settled_by_first
from ssl_mednet.pretraining.share import check_given, check_share
from ssl_mednet.pretraining.world import World, given_world, own_worlds
from ssl_mednet.progress import warn
from ssl_mednet.recipe import load_recipe
from ssl_mednet.schema import Recipe


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

    With ``train.devices`` above one the processes are started here, and a script calls this under
    ``if __name__ == "__main__":``. Under torchrun or srun every process calls it and is one of those that train.

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
        recipe = Path(out).expanduser() / RECIPE
        if not recipe.is_file():
            raise RecipeError(f"{out}: there is no run, {RECIPE} is missing", "--recipe NAME starts one")
    plan = load_recipe(recipe, said)
    prepare = functools.partial(_prepare, plan, out, resume, allow_changes, quiet)
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


def _prepare(recipe: Recipe, out: str | Path | None, resume: bool, allow_changes: bool, quiet: bool) -> Job:
    folder = run_folder(recipe, out, resume)
    corpus = recipe_corpus(recipe, quiet)
    rows = recipe_rows(recipe, corpus)
    if recipe.data.leave_out and not quiet:
        whole = recipe.model_copy(update={"data": recipe.data.model_copy(update={"leave_out": []})})
        count, named = len(recipe_rows(whole, corpus)) - len(rows), ", ".join(recipe.data.leave_out)
        print(f"left out {count} images: val or test images of {named}, or near copies", file=sys.stderr, flush=True)
    recipe = with_weights(with_length(recipe, len(rows)), corpus)
    tidy(folder)
    at = last_checkpoint(folder)
    step = at.step if at is not None else 0
    before = began_with(folder, at)
    notes = check_recipe(before, recipe, folder, step, allow_changes)
    notes += check_data(at, describe_data(corpus, rows), folder, allow_changes)
    written = (folder / BACKBONE).is_dir() and not ends_otherwise(before, recipe)
    if step >= (recipe.train.steps or 0) and written:
        hint = "train.steps=N --allow-changes goes on with it"
        raise UserError(f"{folder}: this run is finished ({step} steps)", hint)
    for note in notes:
        warn(f"{folder}: {note}")
    return Job(recipe, folder, corpus, _held_out(recipe, corpus, rows, quiet), at, bool(notes))


def _join(recipe: Recipe, prepare: Callable[[], Job], quiet: bool, world: World) -> Result:
    """Be one process of the run."""
    with joined(world, device_kind(recipe)) as seen:
        job = settled_by_first(prepare)
        with quiet_libraries(), torch.random.fork_rng(), memory_explained(job.recipe, job.folder):
            return fit(job, seen, quiet)


def _held_out(recipe: Recipe, corpus: Corpus, rows: np.ndarray, quiet: bool) -> dict[str, Any]:
    """What is known of the test images of the suite that the recipe names; empty where it names none."""
    if not recipe.data.held_out:
        return {}
    from ssl_mednet.auditing.audit import refuse

    return refuse(corpus, recipe.data.held_out, recipe.data.allow_contamination, rows, quiet)
