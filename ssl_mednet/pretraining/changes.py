"""A run goes on with the recipe and the data that it began with, or says what differs."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_mednet.backbones.artifact import read_config
from ssl_mednet.backbones.optim import cosine_with_warmup
from ssl_mednet.backbones.start import Start
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import DataError, RecipeError
from ssl_mednet.pretraining.checkpoints import Checkpoint
from ssl_mednet.pretraining.folder import BACKBONE
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.recipe import load_recipe, with_all_settings
from ssl_mednet.schema import OptimSection, Recipe

# Where and how safely a run computes, not what it computes.
FREE = (
    "data.timeout",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.devices",
    "train.nodes",
)
SCHEDULE = ("train.steps", "optim.lr", "optim.lr_scaling", "optim.base_batch", "optim.warmup", "optim.min_lr")
# Another one of these has weights or moments of another kind: nothing of the checkpoint would be left.
# (ddp and fsdp number the states of the optimizer differently.)
FIXED = ("backbone.", "data.channels", "method.name", "optim.name", "train.strategy")
AT_THE_END = ("backbone.keep_start", "backbone.last_layer")  # only what is written of the finished net depends on it
BATCHES = ("data.", "augment.", "optim.batch_size", "optim.accumulate", "train.seed")
CHOICE = ("train.choose", "monitor.probe", "monitor.probe_kind", "monitor.probe_images")


def began_with(folder: Path, at: Checkpoint | None) -> Recipe | None:
    """The recipe of the run in a folder: that of its checkpoint, else the one written when it started.

    How a finished run was written is what its artifact says, as it may have been written anew since.
    """
    if at is None:
        path = folder / "recipe.yaml"
        return load_recipe(path) if path.is_file() else None
    recipe = Recipe.model_validate(at.recipe)
    with suppress(RecipeError):  # a method, or a setting of it, that is no more: told as a difference
        recipe = with_all_settings(recipe)  # also those that are younger than the run
    if at.step < (recipe.train.steps or 0) or not (folder / BACKBONE).is_dir():
        return recipe
    said = read_config(folder / BACKBONE)["ssl_mednet"].get("recipe", {}).get("backbone", {})
    ends = {name: said[name] for name in (key.partition(".")[2] for key in AT_THE_END) if name in said}
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update=ends)})


def differences(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    one, other = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return {k: (one.get(k), other.get(k)) for k in sorted(one | other) if one.get(k) != other.get(k)}


def ends_otherwise(before: Recipe | None, now: Recipe) -> bool:
    """Whether all that differs is how a finished run is written: it can be written anew without a step more."""
    changed = set(differences(before or now, now)) - set(FREE)
    return bool(changed) and changed <= set(AT_THE_END)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_recipe(before: Recipe | None, now: Recipe, folder: Path, step: int, allow: bool) -> list[str]:
    """What it means to go on with another recipe, a sentence each; nothing where it is the same.

    Raises:
        RecipeError: another recipe, and nobody said that it may be; or one whose checkpoint would not fit.
    """
    changed = {k: v for k, v in differences(before or now, now).items() if k not in FREE}
    if before is None or not changed:
        return []
    told = "; ".join(f"{key}: {old} -> {new}" for key, (old, new) in changed.items())
    fixed = [key for key in changed if key.startswith(FIXED) and key not in AT_THE_END]
    if fixed and step:
        raise RecipeError(
            f"{folder}: a run cannot go on with another {fixed[0]} ({told})",
            "choose another --out",
        )
    if not allow:
        raise RecipeError(
            f"{folder}: the run began with another recipe ({told})",
            f"leave --recipe and overrides out to go on with {folder / 'recipe.yaml'}; "
            "--allow-changes goes on with the new one; or choose another --out",
        )
    return [f"goes on at step {step} with another recipe: {told}", *_meaning(changed, before, now, step)]


def _meaning(changed: dict[str, tuple[Any, Any]], before: Recipe, now: Recipe, step: int) -> list[str]:
    said = []
    if any(key.startswith(SCHEDULE) for key in changed):
        old, new = (_rate(recipe, step) for recipe in (before, now))
        said.append(f"the learning rate follows the new schedule from here: {old:.3g} -> {new:.3g} at step {step}")
    if any(key.startswith(BATCHES) for key in changed):
        said.append("the batches from here on are not those of the old recipe: neither recipe alone repeats this run")
    if before.train.choose != "last" and changed.keys() & set(CHOICE):
        said.append("the best weights until here were the best by another measure, and are forgotten")
    return said


def _rate(recipe: Recipe, step: int) -> float:
    steps = recipe.train.steps
    assert steps is not None
    optim: OptimSection = recipe.optim
    return optim.peak_lr * cosine_with_warmup(step, steps, round(optim.warmup * steps), optim.min_lr)


def describe_data(corpus: Corpus, rows: np.ndarray) -> dict[str, Any]:
    """What a run remembers of the images it trains on: which corpus, how many rows, and which."""
    digest = hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()[:16]
    return {"fingerprint": corpus.meta["fingerprint"], "images": len(rows), "rows": digest}


def check_data(at: Checkpoint | None, now: dict[str, Any], folder: Path, allow: bool) -> list[str]:
    """What it means to go on with other images; nothing where they are the same.

    Raises:
        DataError: other images, and nobody said that they may be.
    """
    if at is None or at.corpus == now:
        return []
    told = " -> ".join(
        f"{d['images']} images, fingerprint {d['fingerprint']}, rows {d['rows']}" for d in (at.corpus, now)
    )
    if not allow:
        hint = "--data with the images it began with; or --allow-changes goes on with these"
        raise DataError(f"{folder}: the run began with other images ({told})", hint)
    return [f"goes on at step {at.step} with other images: {told}"]


def check_weights(at: Checkpoint | None, start: Start | None, folder: Path) -> None:
    """Raise :class:`RecipeError` where other weights lie at the place of those that the run began with.

    What it says of its parent, and how images come in, would be those of the other ones.
    """
    if at is None or start is None or at.weights in ("", start.file):
        return
    raise RecipeError(
        f"{folder}: the run began with other weights than those at {start.weights} "
        f"(sha256 {at.weights[:16]}, now {start.file[:16]})",
        "put those it began with back there; or choose another --out",
    )


def amend(module: PretrainModule, checkpoint: dict[str, Any]) -> None:
    """Put the settings of the module's recipe into a checkpoint of another one, before it is restored.

    An optimizer and its schedule bring their own rates, decays and betas along with their state, and Lightning counts
    passes, by which it knows the last one of an update: after as many updates of the new recipe there are others.

    Raises:
        RecipeError: the moments do not fit.
    """
    fresh: dict[str, Any] = module.configure_optimizers()
    schedule = fresh["lr_scheduler"]["scheduler"]
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    saved = checkpoint["lr_schedulers"][0]
    if len(groups) != len(fresh["optimizer"].param_groups):
        raise RecipeError("the optimizer of the new recipe has other groups of parameters", "choose another --out")
    factor = schedule.lr_lambdas[0](saved["last_epoch"])
    for old, new in zip(groups, fresh["optimizer"].param_groups, strict=True):
        old.update({k: v for k, v in new.items() if k != "params"} | {"lr": new["initial_lr"] * factor})
    saved["base_lrs"] = schedule.base_lrs
    saved["_last_lr"] = [group["lr"] for group in groups]
    passes = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    more = checkpoint["global_step"] * module.recipe.optim.accumulate - passes["current"]["ready"]
    for counts in (passes["total"], passes["current"]):
        counts.update({name: count + more for name, count in counts.items()})


def check_shapes(module: torch.nn.Module, at: Checkpoint) -> None:
    """Raise :class:`RecipeError` where the weights of a checkpoint do not fit the module of another recipe."""
    saved = torch.load(at.path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        told = f"{name} is {found.get(name, 'absent')}, {wanted.get(name, 'absent')} is wanted"
        raise RecipeError(f"{at.path}: does not fit the new recipe: {told}", "choose another --out")
