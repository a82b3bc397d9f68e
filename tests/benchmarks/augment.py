"""What augmentation costs: against kornia's chain and lightly's transform, by policy, by op, and as a share of a step.

    python tests/benchmarks/augment.py [--alternations 7] [--batch 256] [--quick]

All pairs alternate in one process; a figure is the median of the ratios. The last line is JSON: ``vs_kornia_chain`` and
``vs_lightly`` (views per second of the generic gray policy over theirs, at 64 px from 128 px sources; the latter on one
core), ``share_of_step`` (augmentation in a SimCLR step of a ResNet-18), ``mixed_over_pure`` (time of mixed batches over
the same rows in pure ones), ``dearest_policy`` (the most expensive modality over the generic policy of its kind).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import kornia.augmentation as K
import torch
from lightly.transforms import SimCLRTransform
from torchvision.transforms.functional import to_pil_image

from ssl_mednet.augment.ops import RowOp, create_op
from ssl_mednet.augment.policy import POLICIES, policy_name
from ssl_mednet.augment.views import ViewMaker
from ssl_mednet.data.corpus import CorpusSpec, open_corpus
from ssl_mednet.draws import Draws
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import MODALITIES
from ssl_mednet.methods import View
from ssl_mednet.pretraining.build import build_module
from ssl_mednet.recipe import load_recipe

SIZE, SOURCE = 64, 128
TWO = (View(), View())


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(ours: Callable[[], object], other: Callable[[], object], times: int) -> tuple[float, str]:
    """Median of other / ours, and its spread."""
    ours(), other()
    ratios = [seconds(other) / seconds(ours) for _ in range(times)]
    return statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"


def stored(modality: str, count: int) -> ImageBatch:
    """Phantoms where there are some of this modality, else their generic kin; ``SOURCE`` px."""
    kind = MODALITIES[modality].channels
    corpus = open_corpus(f"phantoms:{kind}?n=640&size={SOURCE}", CorpusSpec(kind, SOURCE), quiet=True)
    rows = corpus.rows("all")
    codes = corpus.batch(rows).modality
    own = rows[(codes == MODALITIES[modality].code).numpy()]
    chosen = own if len(own) else rows
    batch = corpus.batch(chosen[torch.arange(count).remainder(len(chosen)).numpy()])
    return ImageBatch(
        batch.pixels, batch.sizes, batch.window, torch.full((count,), MODALITIES[modality].code), torch.arange(count)
    )


def maker(policy: str, channels: int) -> ViewMaker:
    return ViewMaker(TWO, policy, 1.0, SIZE, [0.5] * channels, [0.25] * channels)


def kornia_chain() -> K.AugmentationSequential:
    """The ops of the generic gray policy, one by one, each geometry sampled on its own."""
    return K.AugmentationSequential(
        K.RandomResizedCrop((SIZE, SIZE), scale=(0.2, 1.0), cropping_mode="resample", p=1.0),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(15.0, translate=(0.05, 0.05), scale=(0.9, 1.1), p=0.5),
        K.RandomBrightness((0.6, 1.4), p=0.8),
        K.RandomContrast((0.6, 1.4), p=0.8),
        K.RandomGamma((0.67, 1.5), p=0.3),
        K.RandomGaussianBlur((7, 7), (0.01, 0.8), p=0.3),
        K.RandomGaussianNoise(std=0.08, p=0.3),
        K.Normalize(torch.tensor([0.5]), torch.tensor([0.25])),
    )


def against_kornia(batch: ImageBatch, times: int) -> float:
    ours, chain = maker("generic_gray", 1), kornia_chain()

    def theirs() -> None:
        images = batch.pixels.float() / 255.0
        for _ in TWO:
            chain(images)

    ratio, spread = alternate(lambda: ours(batch, Draws(0, 0, batch.rows)), theirs, times)
    print(f"views per second against kornia's chain       {ratio:6.2f}  ({spread})")
    return ratio


def against_lightly(batch: ImageBatch, times: int) -> float:
    ours = maker("generic_gray", 1)
    transform = SimCLRTransform(input_size=SIZE, normalize={"mean": [0.5], "std": [0.25]})
    pictures = [to_pil_image(p) for p in batch.pixels]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratio, spread = alternate(
            lambda: ours(batch, Draws(0, 0, batch.rows)), lambda: [transform(p) for p in pictures], times
        )
    finally:
        torch.set_num_threads(threads)
    print(f"views per second against lightly, one core    {ratio:6.2f}  ({spread})")
    return ratio


def share_of_step(times: int, size: int) -> float:
    """Time of the views over the time of the whole step, in a real SimCLR module."""
    recipe = load_recipe("simclr_gray.yaml", ["backbone.name=resnet18", "augment.policy=generic_gray"])
    module = build_module(recipe, 100, (0.3,), (0.25,))
    optimizer = torch.optim.AdamW(module.method.parameters(), lr=1e-4)
    batch = stored("generic_gray", size)

    def step() -> float:
        began = time.perf_counter()
        views, info = module.prepare(0, batch)
        made = time.perf_counter()
        loss = module.method.training_step(views, info).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return (made - began) / (time.perf_counter() - began)

    step()
    shares = [step() for _ in range(times)]
    share = statistics.median(shares)
    print(f"share of a SimCLR ResNet-18 step              {share:6.3f}  ({min(shares):.3f} to {max(shares):.3f})")
    return share


def mixed_over_pure(times: int, size: int) -> float:
    names = ("xray", "ct", "mri", "ultrasound", "pet")
    pure = [stored(name, size) for name in names]
    sixteen = [
        ImageBatch(p.pixels.to(torch.uint16), *(getattr(p, f) for f in list(p.__dataclass_fields__)[1:])) for p in pure
    ]
    every = ImageBatch(*(torch.cat([getattr(p, f) for p in sixteen]) for f in sixteen[0].__dataclass_fields__))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    mixed = [every.take(part) for part in order.split(size)]
    views = maker("by_modality", 1)

    def run(batches: list[ImageBatch]) -> None:
        for batch in batches:
            views(batch, Draws(0, 0, batch.rows))

    ratio, spread = alternate(lambda: run(sixteen), lambda: run(mixed), times)
    print(f"mixed batches over pure ones, five modalities {ratio:6.2f}  ({spread})")
    return ratio


def by_policy(times: int, size: int) -> float:
    print("\npolicy           over its generic one")
    worst = 0.0
    for name in MODALITIES:
        kind = MODALITIES[name].channels
        channels = 1 if kind == "gray" else 3
        own, generic = maker(policy_name("by_modality", name), channels), maker(f"generic_{kind}", channels)
        batch = stored(name, size)
        ratio, spread = alternate(
            lambda g=generic, b=batch: g(b, Draws(0, 0, b.rows)),
            lambda o=own, b=batch: o(b, Draws(0, 0, b.rows)),
            times,
        )
        worst = max(worst, ratio)
        print(f"{name:<16} {ratio:6.2f}  ({spread})")
    return worst


def by_op(times: int, size: int) -> None:
    """Every op of every policy on all rows, milliseconds for a batch."""
    print(f"\nop                       ms for {size} rows of {SIZE} px (every row changed)")
    seen = set()
    for policy in POLICIES:
        spec = POLICIES.get(policy)
        images = torch.rand(size, 1 if spec.channels == "gray" else 3, SIZE, SIZE)
        for name, settings in spec.ops.items():
            op = create_op(name, settings, 1.0)
            assert isinstance(op, RowOp)
            if (name, spec.channels) in seen:
                continue
            seen.add((name, spec.channels))
            params = op.parameters_from(torch.rand(size, op.numbers))
            op.change(images, params)
            cost = statistics.median(seconds(lambda o=op, p=params, x=images: o.change(x, p)) for _ in range(times))
            print(f"{name:<24} {1000 * cost:7.1f}  {spec.channels}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="the headline figures only")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batch {args.batch}, {SOURCE} to {SIZE} px\n")
    generic = stored("generic_gray", args.batch)
    generic = ImageBatch(  # 8-bit pictures, as lightly and kornia want them
        generic.unit().mul(255).round().byte(), generic.sizes, torch.tensor([[0.0, 255.0]]).repeat(args.batch, 1),
        generic.modality, generic.rows,
    )  # fmt: skip
    figures = {
        "vs_kornia_chain": against_kornia(generic, args.alternations),
        "vs_lightly": against_lightly(generic, args.alternations),
        "share_of_step": share_of_step(args.alternations, args.batch),
        "mixed_over_pure": mixed_over_pure(args.alternations, args.batch),
    }
    if not args.quick:
        figures["dearest_policy"] = by_policy(args.alternations, args.batch)
        by_op(args.alternations, args.batch)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
