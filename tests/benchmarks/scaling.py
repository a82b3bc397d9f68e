"""What a large pretraining costs on H100s, on paper: FLOPs counted, the loader measured, the rest stated as assumed.

    python tests/benchmarks/scaling.py [--images 3000000] [--epochs 400] [--loader 5]

For each flagship recipe of ``recipes/mednet`` and two variants one real training step (all views, forward, teacher,
backward) of two images is counted by torch's FLOP counter (a multiplication and an addition are two). ``--loader``
seconds of reading a corpus of 256 px JPEGs through the batch stream give the images a core can deliver; 0 takes the
figure of eval/scaling.md. A small simulation then runs steps of loader, compute and ring all-reduce on 1, 8 and 64
GPUs. Prints Markdown tables; the last line is JSON. Sources of the constants are in eval/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

PEAK = 989e12  # FLOP/s, dense bf16 of one H100 SXM
# Share of the peak that training reaches. Transformers: around the 38 to 43 % of Llama 3 on H100s. Convolutional nets:
# MLPerf 3.0's ResNet-50 with fused kernels is the upper end (see mlperf_utilisation), plain PyTorch about half of it.
UTILISATION = {"vit": (0.30, 0.45), "cnn": (0.08, 0.17)}
NODE = 8  # GPUs
NVLINK, INFINIBAND = 450e9, 50e9  # bytes/s a GPU sends at most: inside a node, and out of it (400 Gb/s each)
LINK_SHARE = 0.8  # of that, what a ring reaches
LATENCY = 20e-6  # seconds to start one all-reduce
CORES = 14  # of the CPUs for each GPU: 112 on a DGX H100
BUCKET = 25e6  # bytes that DDP reduces at a time
PRICE = (2.0, 5.0)  # dollars an H100 hour: list prices of 2026, long-tail clouds to hyperscalers
LOADER = 2098.0  # images/s and core, as measured for eval/scaling.md
JITTER, AHEAD, SIMULATED = 0.15, 2, 300
GPUS = (1, 8, 64)
SIDE, STORED = 224, 256
PASS = 512  # images that one GPU of 80 GB holds at once; a larger share is accumulated


@dataclass(frozen=True)
class Flagship:
    """A recipe to be priced.

    Args:
        batch: images of a step over all GPUs.
        chunk: images that go through the net at a time where a GPU's share is larger, embedded twice; 0: accumulated.
        settings: of the method.
    """

    method: str
    backbone: str
    kind: str
    batch: int
    chunk: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def of_recipe(name: str) -> Flagship:
    """What a shipped recipe costs depends on."""
    from ssl_mednet.backbones.factory import backbone_kind
    from ssl_mednet.recipe import load_recipe

    recipe = load_recipe(name)
    assert recipe.data.image_size == SIDE
    net, optim = recipe.backbone.name, recipe.optim
    settings = recipe.method.settings
    return Flagship(recipe.method.name, net, backbone_kind(net), optim.batch_size, optim.cache_chunk, settings)


def flagships() -> dict[str, Flagship]:
    """The color recipes (the gray CNN costs 1 % less) and what was not chosen for them."""
    cnn = of_recipe("mednet/color.yaml")
    return {
        "SimCLR ResNet-50": cnn,
        "BYOL ResNet-50": replace(cnn, method="byol", chunk=0, settings={}),
        "SimCLR ConvNeXt-Tiny": replace(cnn, backbone="convnext_tiny"),
        "MAE ViT-S/16, color": of_recipe("mednet/color_vit.yaml"),
        "MAE ViT-S/16, gray": of_recipe("mednet/gray_vit.yaml"),
    }


@dataclass(frozen=True)
class Counted:
    """Of one training step: FLOPs an image, and bytes of gradients (float32) to be reduced."""

    flops: float
    gradients: float


@dataclass(frozen=True)
class Step:
    """Mean seconds of a step: all of it, computing, waiting for the loader, and all-reduce that nothing hides."""

    whole: float
    compute: float
    loader: float
    exposed: float


def count(flagship: Flagship, images: int = 2) -> Counted:
    """One real step on the CPU under torch's FLOP counter."""
    import torch
    from timm.layers import set_fused_attn
    from torch.utils.flop_counter import FlopCounterMode

    from ssl_mednet.backbones import backbone_args, create_backbone
    from ssl_mednet.draws import Draws
    from ssl_mednet.methods import METHODS, Batch

    set_fused_attn(False)  # the counter does not know the CPU's fused kernel
    cls = METHODS.get(flagship.method)
    backbone = create_backbone(flagship.backbone, backbone_args(flagship.backbone, 3, SIDE))
    method = cls(backbone, cls.Config(**flagship.settings))
    rows = torch.arange(images)
    batch = Batch(rows, torch.zeros(images, dtype=torch.int64), Draws(0, 0, rows), step=0, progress=0.0)
    views = [torch.randn(images, 3, round(SIDE * v.size), round(SIDE * v.size)) for v in method.views]
    own: Any = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        method.training_step(views, batch).loss.backward()
    set_fused_attn(True)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return Counted(counter.get_total_flops() / images, 4.0 * trained)


def convolution_backward_flops(gradient: Any, images: Any, weight: Any, *more: Any, out_shape: Any = None) -> int:
    """As many as forward for each of the two gradients that are wanted; torch's own count forgets that a grouped
    convolution sees only its group, which makes ConvNeXt three times as dear as it is.

    Args:
        gradient, images, weight: shapes ``[B, O, ...]``, ``[B, I, ...]``, ``[O, I / groups, ...]``.
        more: the further arguments of ``aten.convolution_backward``; the last says which gradients are wanted.
    """
    wanted = more[-1]
    forward = 2 * math.prod(weight) * gradient[0] * math.prod(gradient[2:])
    return forward * (int(wanted[0]) + int(wanted[1]))


def measure_loader(seconds: float) -> float:
    """Decoded 256 px color JPEGs a second and core, in random order through the batch stream."""
    import os
    import time

    from PIL import Image

    from ssl_mednet.data.corpus import Corpus
    from ssl_mednet.data.loader import BatchStream
    from ssl_mednet.imaging import phantoms
    from ssl_mednet.ingesting.run import ingest

    with tempfile.TemporaryDirectory() as work:
        pictures = Path(work) / "pictures"
        pictures.mkdir()
        for i in range(256):
            shown = np.rint(phantoms.phantom("color", i, STORED, 0).image.unit() * 255).astype(np.uint8)
            Image.fromarray(shown).save(pictures / f"{i:04d}.jpg", quality=90)
        corpus = Corpus(
            ingest(pictures, Path(work) / "corpus", channels="color", store_size=STORED, quality=90, quiet=True).folder
        )
        batches = iter(BatchStream(corpus, corpus.rows(), 128, seed=0))
        next(batches)
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            images += len(next(batches)[1])
        rate = images / (time.perf_counter() - began)
        batches.close()  # type: ignore[attr-defined]
    return rate / (os.cpu_count() or 1)


def mlperf_utilisation(flops: float, minutes: float = 13.466, gpus: int = 8, epochs: float = 36) -> float:
    """Share of the peak behind MLPerf Training 3.0's ResNet-50 on eight H100s (entry 3.0-2053).

    Args:
        flops: of one image, forward and backward.
        epochs: of ImageNet until 75.9 %; not in the table of results, about this for its batch sizes.
    """
    return epochs * 1_281_167 * flops / (60 * minutes * gpus * PEAK)


def gpu_hours(images: float, epochs: float, flops: float, utilisation: float) -> float:
    """Hours of one H100 for ``images * epochs`` training images, when nothing else holds it up."""
    return images * epochs * flops / (PEAK * utilisation) / 3600


def all_reduce_seconds(size: float, gpus: int) -> float:
    """A ring: ``2 (n - 1) / n`` of the bytes pass the slowest link once (Patarasuk and Yuan 2009, section 3)."""
    if gpus == 1:
        return 0.0
    bandwidth = LINK_SHARE * (NVLINK if gpus <= NODE else INFINIBAND)
    return LATENCY + 2 * (gpus - 1) / gpus * size / bandwidth


def exposed_seconds(compute: float, gradients: float, gpus: int) -> float:
    """What of the all-reduce is left when the backward pass, two thirds of ``compute``, is over.

    Buckets become ready one after the other, evenly over the backward pass, and are reduced in turn.
    """
    if gpus == 1:
        return 0.0
    buckets = max(1, math.ceil(gradients / BUCKET))
    done, forward = 0.0, compute / 3
    for i in range(1, buckets + 1):
        ready = forward + (compute - forward) * i / buckets
        done = max(done, ready) + all_reduce_seconds(gradients / buckets, gpus)
    return max(0.0, done - compute)


def simulate(flagship: Flagship, counted: Counted, gpus: int, utilisation: float, rate: float) -> Step:
    """Mean of ``SIMULATED`` steps: a loader that works ``AHEAD`` batches ahead with uneven speed feeds one GPU of many.

    Args:
        rate: images/s and core that the loader delivers.
    """
    images = flagship.batch / gpus
    compute = images * counted.flops / (PEAK * utilisation)
    if 0 < flagship.chunk < images:
        compute *= 4 / 3  # forward, forward again, and backward, which takes as long as two
    exposed = exposed_seconds(min(compute, (flagship.chunk or PASS) / images * compute), counted.gradients, gpus)
    load = images / (CORES * rate)
    noise = np.random.default_rng(0).lognormal(-(JITTER**2) / 2, JITTER, (2, SIMULATED))
    ends: list[float] = []
    fetched = waited = 0.0
    for k in range(SIMULATED):
        room = ends[k - AHEAD] if k >= AHEAD else 0.0  # a slot is free when the batch before it was taken
        fetched = max(fetched, room) + load * noise[0, k]
        free = ends[-1] if ends else 0.0
        waited += max(0.0, fetched - free) if k else 0.0
        ends.append(max(free, fetched) + compute * noise[1, k] + exposed)
    whole = (ends[-1] - ends[0]) / (SIMULATED - 1)
    return Step(whole, compute, waited / (SIMULATED - 1), exposed)


def price(flagship: Flagship, counted: Counted, images: float, epochs: float, rate: float) -> list[dict[str, Any]]:
    """One row a number of GPUs; pairs are (best, worst) over the range of utilisation, money (least, most)."""
    low, high = UTILISATION[flagship.kind]
    rows = []
    for gpus in GPUS:
        steps = [simulate(flagship, counted, gpus, u, rate) for u in (high, low)]
        days = [images * epochs / flagship.batch * step.whole / 86_400 for step in steps]
        hours = [24 * gpus * d for d in days]
        rows.append(
            {
                "gpus": gpus,
                "days": days,
                "gpu_hours": hours,
                "dollars": [hours[0] * PRICE[0], hours[1] * PRICE[1]],
                "images_per_second": [flagship.batch / step.whole for step in steps],
                "cores": [flagship.batch / gpus / (step.compute + step.exposed) / rate for step in steps],
                "waiting": [step.loader / step.whole for step in steps],
                "exposed": [step.exposed / step.whole for step in steps],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=float, default=3e6)
    parser.add_argument("--epochs", type=float, default=400)
    parser.add_argument("--loader", type=float, default=5.0, help="seconds to measure the loader for")
    given = parser.parse_args()
    rate = measure_loader(given.loader) if given.loader else LOADER
    figures: dict[str, Any] = {"loader_per_core": rate, "images": given.images, "epochs": given.epochs, "recipes": {}}
    priced = flagships()
    counted = {name: count(flagship) for name, flagship in priced.items()}
    figures["mlperf_utilisation"] = mlperf_utilisation(counted["SimCLR ResNet-50"].flops / 2)
    print(
        f"loader: {rate:,.0f} images/s and core; MLPerf's ResNet-50: {figures['mlperf_utilisation']:.1%} of the peak\n"
    )
    names = (
        "recipe, GFLOP an image, gradients, H100s, days, GPU hours, dollars, img/s, cores a GPU, waiting, all-reduce"
    )
    print("| " + " | ".join(names.split(", ")) + " |")
    print("| --- " * 11 + "|")
    for name, flagship in priced.items():
        one = counted[name]
        rows = price(flagship, one, given.images, given.epochs, rate)
        figures["recipes"][name] = {"gflop": one.flops / 1e9, "gradient_mb": one.gradients / 1e6, "rows": rows}
        for row in rows:
            cells = [name, f"{one.flops / 1e9:.1f}", f"{one.gradients / 1e6:.0f} MB", str(row["gpus"])]
            cells += [_span(row[key], "{:,.2f}") for key in ("days",)]
            cells += [_span(row[key], "{:,.0f}") for key in ("gpu_hours", "dollars", "images_per_second", "cores")]
            cells += [_span(row[key], "{:.1%}") for key in ("waiting", "exposed")]
            print("| " + " | ".join(cells) + " |")
    print(json.dumps(figures))


def _span(pair: list[float], form: str) -> str:
    first, second = (form.format(value) for value in pair)
    return first if first == second else f"{first} to {second}"


if __name__ == "__main__":
    main()
