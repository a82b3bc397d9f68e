"""How much of the bare training rate survives when images are read, augmented and logged: SimCLR and MAE at 64 px.

Inside one real run of the trainer, blocks of ordinary steps (read, augment, forward, backward, optimizer, logging)
alternate with blocks of the bare loop (forward, backward, optimizer on one fixed batch of views, a copy of the same
model). The figure is the median over the alternations of bare time / ordinary time.

    python tests/benchmarks/step.py [--alternations 5] [--steps 3] [--batch 128]

The last line is JSON: {"simclr_of_bare": ..., "mae_of_bare": ...}.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ssl_mednet.data.loader import BatchStream
from ssl_mednet.pretraining.build import build_module, recipe_corpus
from ssl_mednet.pretraining.curves import Curves
from ssl_mednet.pretraining.fit import build_trainer, quiet_libraries
from ssl_mednet.pretraining.module import PretrainModule
from ssl_mednet.recipe import load_recipe
from ssl_mednet.schema import Recipe

SETUPS = {
    "simclr": ["backbone.name=resnet18"],
    "mae": ["backbone.name=vit_tiny_patch16_224", "backbone.patch_size=8", "backbone.args={}"],
}


class Alternate(pl.Callback):
    """Times ``block`` ordinary steps, then ``block`` bare ones, again and again; the first of each are warm-up."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.ordinary: list[float] = []
        self.bare: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.block:
            return
        now = time.perf_counter()
        if trainer.global_step > self.block:
            self.ordinary.append(now - self._began)
        self.bare.append(self._run_bare(trainer, pl_module, batch))
        self._began = time.perf_counter()

    def _run_bare(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> float:
        assert isinstance(module, PretrainModule)
        if not hasattr(self, "_method"):
            self._method = copy.deepcopy(module.method)
            self._views, self._info = module.prepare(*batch)
            self._optimizer = copy.deepcopy(trainer.optimizers[0])
            for group, source in zip(self._optimizer.param_groups, trainer.optimizers[0].param_groups, strict=True):
                twins = dict(zip(map(id, module.method.parameters()), self._method.parameters(), strict=True))
                group["params"] = [twins[id(p)] for p in source["params"]]
            self._optimizer.state.clear()
            self._steps(trainer, 1)  # warm-up
        began = time.perf_counter()
        self._steps(trainer, self.block)
        return time.perf_counter() - began

    def _steps(self, trainer: pl.Trainer, count: int) -> None:
        for _ in range(count):
            with trainer.precision_plugin.forward_context():
                loss = self._method.training_step(self._views, self._info).loss
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()


def measure(name: str, alternations: int, block: int, batch: int) -> float:
    """Median of bare time / ordinary time."""
    steps = block * (alternations + 1)
    extra = [f"optim.batch_size={batch}", f"train.steps={steps}", "data.source=phantoms:gray?n=2000", "data.split=all"]
    recipe: Recipe = load_recipe(f"{name}_gray.yaml", SETUPS[name] + extra)
    corpus = recipe_corpus(recipe, quiet=True)
    rows = corpus.rows("all")
    module = build_module(recipe, steps, *corpus.statistics(rows))
    timer = Alternate(block)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        callbacks: list[pl.Callback] = [Curves(Path(folder), recipe.monitor.every), timer]
        trainer = build_trainer(recipe, Path(folder), steps, 0, callbacks)
        trainer.fit(module, BatchStream(corpus, rows, batch, recipe.train.seed))
    ratios = [b / o for b, o in zip(timer.bare, timer.ordinary, strict=False)]
    rate = block * batch / statistics.median(timer.ordinary)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(
        f"{name:<8} {rate:7.1f} img/s end to end, {statistics.median(ratios):.3f} of bare ({spread}, n={len(ratios)})"
    )
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of a block")
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    figures = {f"{n}_of_bare": round(measure(n, args.alternations, args.steps, args.batch), 3) for n in SETUPS}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
