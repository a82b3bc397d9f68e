"""A step that went wrong, kept so that it can be seen again: its batches, its seed, the weights before it."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from ssl_mednet.errors import DataError, RecipeError
from ssl_mednet.files import replacing, write_json
from ssl_mednet.pretraining.build import build_module, recipe_corpus, recipe_rows, recipe_start, view_statistics
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.recipe import load_recipe

WEIGHTS, STEP, RECIPE = "weights.pt", "step.json", "recipe.yaml"
_SHOWN = 5  # names of parameters


@dataclass(frozen=True)
class Replayed:
    """What a step gave when it went wrong, and what it gives now.

    Args:
        then, now: losses of the update's batches, in their order.
        layer: the first part of the method whose output was not finite; empty where all were.
        gradients: parameters whose gradient is not finite, in the method's order.
    """

    step: int
    then: tuple[float, ...]
    now: tuple[float, ...]
    layer: str
    gradients: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every loss is the same number, or no number again."""
        return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(self.then, self.now, strict=True))

    def __str__(self) -> str:
        lines = [f"step {self.step}: loss then {list(self.then)}, now {list(self.now)}"]
        lines.append(f"first output that is not finite: {self.layer or 'none'}")
        more = "" if len(self.gradients) <= _SHOWN else f" and {len(self.gradients) - _SHOWN} more"
        lines.append(f"gradients that are not finite: {', '.join(self.gradients[:_SHOWN]) or 'none'}{more}")
        return "\n".join(lines)


def bundle_path(folder: Path, step: int) -> Path:
    return folder / "replay" / f"step_{step}"


def write_bundle(
    folder: Path, step: int, trainer: pl.Trainer, module: PretrainModule, first: dict[str, Any], data: dict[str, Any]
) -> None:
    """Keep a bad update; called in every process.

    Args:
        step: number of the update, from 1.
        first: its ``batches`` (number and rows of each) and their ``losses`` in this process.
        data: what the run trains on.
    """
    device = trainer.strategy.root_device
    rows = [
        trainer.strategy.all_gather(torch.tensor(rows, device=device)).flatten().tolist()
        for _, rows in first["batches"]
    ]
    losses = torch.tensor(first["losses"], device=device)
    if trainer.world_size > 1:
        losses = trainer.strategy.reduce(losses, reduce_op="mean")
    weights = trainer.strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return
    bundle = bundle_path(folder, step)
    with replacing(bundle / WEIGHTS) as temporary:
        torch.save({name: tensor.cpu() for name, tensor in weights.items()}, temporary)
    with replacing(bundle / RECIPE) as temporary:
        temporary.write_text(module.recipe.to_yaml())
    about = {"step": step, "seed": module.recipe.train.seed, "total_steps": module.total_steps, "data": data}
    about |= {"precision": str(trainer.precision), "device": device.type, "processes": trainer.world_size}
    batches = [{"number": n, "rows": r} for (n, _), r in zip(first["batches"], rows, strict=True)]
    write_json(bundle / STEP, about | {"batches": batches, "losses": losses.tolist()})


def replay(bundle: str | Path, quiet: bool = False) -> Replayed:
    """Do a kept step again: forward and backward, no update.

    On the same kind of machine the losses are the same numbers. What several processes did is done in one, with the
    whole batch: equal within float error where the method's loss is.

    Raises:
        UserError: no bundle, or its images have changed.
    """
    bundle = Path(bundle).expanduser()
    if not (bundle / STEP).is_file():
        raise RecipeError(f"{bundle}: holds no {STEP}", "--replay takes a folder RUN/replay/step_N")
    about = json.loads((bundle / STEP).read_text())
    recipe = load_recipe(bundle / RECIPE)
    corpus = recipe_corpus(recipe, quiet)
    if corpus.meta["fingerprint"] != about["data"]["fingerprint"]:
        told = f"fingerprint {about['data']['fingerprint']} -> {corpus.meta['fingerprint']}"
        raise DataError(f"{bundle}: the images have changed since ({told})")
    with torch.random.fork_rng():
        statistics = view_statistics(corpus, recipe_rows(recipe, corpus), recipe_start(recipe))
        module = build_module(recipe, about["total_steps"], *statistics)
        weights = torch.load(bundle / WEIGHTS, map_location="cpu", weights_only=True)
        module.load_state_dict(weights)
        module.to(about["device"]).train()
        seen = _first_not_finite(module.method)
        losses = []
        for batch in about["batches"]:
            images = corpus.batch(np.array(batch["rows"])).to(about["device"])
            with _precision(about["precision"], about["device"]):
                loss = module.training_step((batch["number"], images), 0)
            losses.append(float(loss.detach()))
            (loss / len(about["batches"])).backward()
    named = module.method.named_parameters()
    wrong = tuple(name for name, p in named if p.grad is not None and not p.grad.isfinite().all())
    return Replayed(about["step"], tuple(about["losses"]), tuple(losses), (seen or [""])[0], wrong)


def _precision(name: str, device: str) -> contextlib.AbstractContextManager[Any]:
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device, kinds[name]) if name in kinds else contextlib.nullcontext()


def _first_not_finite(method: nn.Module) -> list[str]:
    """A list that the method's parts put their names into, the first that gives a number that is none first."""
    seen: list[str] = []

    def look(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point() and not output.isfinite().all():
            seen.append(name)

    for name, part in method.named_modules():
        part.register_forward_hook(lambda _part, _inputs, output, name=name: look(name, output))
    return seen
