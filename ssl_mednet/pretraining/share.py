"""What one update is made of: how the images are shared by processes and passes, and what that means for the loss."""

from __future__ import annotations

from typing import Any

from ssl_mednet.backbones.norm import has_batch_norm
from ssl_mednet.errors import RecipeError
from ssl_mednet.methods import Method
from ssl_mednet.pretraining.world import World
from ssl_mednet.schema import Recipe


def check_given(recipe: Recipe, world: World) -> None:
    """Raise :class:`RecipeError` where the recipe wants other processes than a launcher has started."""
    wanted = recipe.train.devices
    if wanted != "auto" and wanted * recipe.train.nodes != world.size:
        raise RecipeError(
            f"train.devices={wanted} on {recipe.train.nodes} nodes, but {world.size} processes have been started",
            "train.devices=auto takes what there is",
        )


def check_share(recipe: Recipe, world: World) -> None:
    """Raise :class:`RecipeError` where the images of a pass, or the weights, cannot be shared."""
    optim = recipe.optim
    if recipe.train.strategy == "fsdp" and world.size == 1:
        raise RecipeError("train.strategy=fsdp shares weights, but there is one process", "train.devices=N starts N")
    if recipe.train.strategy == "fsdp" and (recipe.monitor.probe or recipe.train.choose != "last"):
        raise RecipeError("looks at the encoder want all its weights in one process", "use train.strategy=ddp")
    if optim.batch_size % (optim.accumulate * world.size):
        passes = f" in {optim.accumulate} passes" if optim.accumulate > 1 else ""
        fits = max(1, optim.batch_size // (optim.accumulate * world.size)) * optim.accumulate * world.size
        raise RecipeError(
            f"optim.batch_size {optim.batch_size} cannot be shared{passes} by {world.size} processes evenly",
            f"optim.batch_size={fits} can",
        )
    _check_alone(recipe, world)


def _check_alone(recipe: Recipe, world: World) -> None:
    """Raise :class:`RecipeError` where an image would be alone, without others to compare it with."""
    optim = recipe.optim
    each = optim.batch_size // (optim.accumulate * world.size)
    together = world.size if recipe.train.sync_batchnorm else 1
    if each * together < 2:
        per = "a pass" if optim.accumulate > 1 else "a process"
        least = 2 * optim.accumulate * (world.size // together)
        hint = f"optim.batch_size={least} is the least" + (", or a smaller optim.accumulate" if per == "a pass" else "")
        raise RecipeError(f"optim.batch_size {optim.batch_size} is one image {per}, at least 2 are wanted", hint)
    if not optim.cache_chunk:
        return

    def last(chunk: int) -> int:
        return (each - 1) % chunk + 1

    if last(optim.cache_chunk) * together < 2:
        fits = next(size for size in range(optim.cache_chunk + 1, each + 1) if last(size) > 1)
        raise RecipeError(
            f"optim.cache_chunk {optim.cache_chunk}: the last chunk of {each} images has one, at least 2 are wanted",
            f"optim.cache_chunk={fits} can",
        )


def describe_update(recipe: Recipe, world: World) -> dict[str, Any]:
    """One update in numbers, for the record."""
    optim = recipe.optim
    return {
        "images": optim.batch_size,
        "images_per_pass_and_process": optim.batch_size // (optim.accumulate * world.size),
        "processes": world.size,
        "nodes": world.nodes,
        "passes": optim.accumulate,
        "cache_chunk": optim.cache_chunk,
        "strategy": "one process" if world.size == 1 else {"auto": "ddp"}.get(s := recipe.train.strategy, s),
        "lr": optim.peak_lr,
        "lr_scaling": optim.lr_scaling,
    }


def words(recipe: Recipe, method: Method, update: dict[str, Any]) -> list[str]:
    """The same for a person, with what this way of sharing does not do."""
    optim, processes = recipe.optim, update["processes"]
    each = update["images_per_pass_and_process"]
    shared = f"{each} x {processes} processes x {optim.accumulate} passes"
    lines = [f"{recipe.name}: {optim.batch_size} images an update = {shared}; learning rate {optim.peak_lr:.3g}"]
    if optim.lr_scaling != "none":
        lines[0] += f" ({optim.lr_scaling}: {optim.lr:.3g} is for {optim.base_batch} images)"
    normalised = has_batch_norm(method)
    if optim.accumulate > 1 and method.sees_batch:
        hint = "; optim.cache_chunk has those of all" if method.can_split() else ""
        lines.append(f"accumulate: {method.sees_batch} come from one pass, {each * processes} images{hint}")
    if optim.accumulate > 1 and normalised:
        lines.append(f"accumulate: BatchNorm sees one pass, {each * processes} images")
    together = processes if recipe.train.sync_batchnorm else 1
    if 0 < optim.cache_chunk < each and normalised:
        lines.append(f"cache_chunk: BatchNorm sees one chunk, {optim.cache_chunk * together} images; the loss sees all")
    if processes > 1 and normalised and together == 1:
        lines.append(f"sync_batchnorm is off: BatchNorm sees the {each} images of one process")
    if processes > 1 and method.across_processes:
        lines.append(f"{method.name}, several processes: {method.across_processes}")
    return lines
