"""Gradients of every method on several processes, real ones that talk through gloo; run by test_processes.py.

    python many_processes.py FILE [MODULE...]

imports the modules (their methods register themselves), then writes one JSON object a line to FILE: method, kind of
backbone, precision, number of the random batch, number of processes, and the errors of gradients, buffers and loss
against one process with the whole batch.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_mednet.backbones import backbone_args, create_backbone
from ssl_mednet.backbones.norm import synchronise
from ssl_mednet.draws import Draws
from ssl_mednet.methods import METHODS, Batch, Method

NETS = {"cnn": ("test_resnet", None), "vit": ("test_vit", 8)}
SIZE, IMAGES, WORLDS = 32, 16, (2, 4)
GOOD = 1e-5
Case = tuple[str, str, str, int]


class Step(nn.Module):
    """A method whose forward pass is its training step, as DDP wants it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, views: list[Tensor], batch: Batch) -> Tensor:
        return self.method.training_step(views, batch).loss


def build(name: str, kind: str, dtype: str, seed: int) -> tuple[Method, list[Tensor], Batch]:
    torch.manual_seed(seed)
    net, patch = NETS[kind]
    cls = METHODS.get(name)
    precise = getattr(torch, dtype)
    method = cls(create_backbone(net, backbone_args(net, 1, SIZE, patch)), cls.Config()).to(precise)
    views = [torch.randn(IMAGES, 1, round(SIZE * v.size), round(SIZE * v.size)).to(precise) for v in method.views]
    rows = torch.arange(IMAGES)
    return method, views, Batch(rows, torch.zeros(IMAGES, dtype=torch.int64), Draws(0, 0, rows), 0, 0.0)


def of_process(rank: int, world: int, views: list[Tensor], batch: Batch) -> tuple[list[Tensor], Batch]:
    part = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    rows = batch.rows[part]
    return [v[part] for v in views], Batch(rows, batch.modality[part], Draws(0, 0, rows), 0, 0.0)


def cases() -> list[Case]:
    batches = [("float64", 1), *(("float32", seed) for seed in (1, 2, 3))]
    nets = [(name, kind) for name in METHODS for kind in sorted(METHODS.get(name).backbone_kinds)]
    return [(*net, *batch) for net in nets for batch in batches]


def results(method: Method, loss: Tensor) -> dict[str, Any]:
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    return {
        "gradients": gradients,
        "buffers": {n: b.clone().float() for n, b in method.named_buffers() if "running_" in n},
        "loss": loss,
    }


def alone() -> dict[Case, dict[str, Any]]:
    """Every case with the whole batch in this process."""
    found = {}
    for case in cases():
        method, views, batch = build(*case)
        loss = method.training_step(views, batch).loss
        loss.backward()
        found[case] = results(method, loss.detach())
    return found


def together(rank: int, world: int, port: int, references: dict[Case, dict[str, Any]], out: Path) -> None:
    """One process of ``world``: every case with its share of the batch.

    Where the input of a ReLU lies within rounding of zero, float32 may take either side and the batch says nothing:
    then there is another one, and another.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    settled: set[tuple[str, str, str]] = set()
    for case in cases():
        if case[:3] in settled:
            continue
        method, views, batch = build(*case)
        synchronise(method, "cpu")
        model = DistributedDataParallel(Step(method), forward_sync_buffers=False)
        loss = model(*of_process(rank, world, views, batch))
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        errors = compared(results(method, mean / world), references[case])
        if errors["gradients"] < GOOD:  # the same in every process: all hold the averaged gradients
            settled.add(case[:3])
        if rank == 0:
            names = ("method", "kind", "dtype", "seed")
            with out.open("a") as file:
                file.write(json.dumps(dict(zip(names, case, strict=True)) | {"world": world} | errors) + "\n")
    dist.destroy_process_group()


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Relative errors of all gradients as one vector, of the worst single one, of buffers and of the loss.

    A single gradient's error is relative to itself, or to a tenth of the mean one where that is larger: the gradient of
    a bias before BatchNorm is nothing but rounding.
    """
    names, reference = list(theirs["gradients"]), theirs["gradients"]
    assert names == list(ours["gradients"])
    norm = torch.cat([reference[n].flatten() for n in names]).norm()
    apart = torch.cat([(ours["gradients"][n] - reference[n]).flatten() for n in names]).norm()
    floor = 0.1 * norm / len(names) ** 0.5
    single = max(
        float((ours["gradients"][n] - reference[n]).norm() / reference[n].norm().clamp(min=floor)) for n in names
    )
    buffers = max([float((ours["buffers"][n] - b).abs().max()) for n, b in theirs["buffers"].items()] or [0.0])
    loss = float(abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"]))
    return {"gradients": float(apart / norm), "parameter": single, "buffers": buffers, "loss": loss}


def main(out: Path, modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    torch.set_num_threads(1)
    # Forked from a process that holds no threads: torch is imported once, not once a process.
    context = multiprocessing.get_context("fork")
    references = alone()
    for world in WORLDS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = [context.Process(target=together, args=(r, world, port, references, out)) for r in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
