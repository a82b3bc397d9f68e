"""How long forward and backward take with depthwise convolutions quickened, of the time without: EfficientNet-Lite0.

    OMP_NUM_THREADS=1 python tests/benchmarks/depthwise.py [--net efficientnet_lite0] [--size 64] [--batch 256]

Both nets are the same but for that, and their steps alternate; the last line is JSON with medians and the median ratio.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time

import timm
import torch
from torch import nn

from ssl_mednet.backbones.depthwise import quicken


def seconds(net: nn.Module, images: torch.Tensor) -> float:
    """Of one forward and backward pass in training mode."""
    began = time.perf_counter()
    net.zero_grad()
    net(images).square().mean().backward()
    return time.perf_counter() - began


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--alternations", type=int, default=5)
    args = parser.parse_args()
    stock = timm.create_model(args.net, num_classes=0, in_chans=1).to(memory_format=torch.channels_last).train()
    quick = copy.deepcopy(stock)
    quicken(quick)
    images = torch.randn(args.batch, 1, args.size, args.size).to(memory_format=torch.channels_last)
    for net in (stock, quick):
        seconds(net, images)
    pairs = [(seconds(stock, images), seconds(quick, images)) for _ in range(args.alternations)]
    before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(json.dumps({"before_s": round(before, 3), "after_s": round(after, 3), "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
