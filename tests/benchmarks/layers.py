"""Where in a CNN the information is a probe finds: its last two stages and its output, scored as val_probe.py does.

    SSL_MEDNET_DATA=FOLDER python tests/benchmarks/layers.py --weights RUN gray-mednet-tiny --sets brain_mri

``head`` is what the net gives, ``last`` and ``previous`` are the means of the maps of its last two stages, ``all`` is
the three side by side. Also the effective rank of ``head`` (Roy and Vetterli 2007) on 3,000 images at most. Test splits
are not touched.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from val_probe import CPU, scores

from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.weights import channels_of, load_weights

PARTS = {"head": [2], "last": [1], "previous": [0], "all": [0, 1, 2]}


class Parts(nn.Module):
    """Images ``[B, C, H, W]`` to features ``[B, D]`` of some parts of a net."""

    def __init__(self, net: nn.Module, parts: list[int]) -> None:
        super().__init__()
        self.net, self.parts = net, parts

    def forward(self, images: Tensor) -> Tensor:
        maps = self.net.forward_intermediates(images, indices=2, intermediates_only=True)  # type: ignore[operator]
        found = [*(m.mean((2, 3)) for m in maps), self.net(images)]
        return torch.cat([found[i] for i in self.parts], 1)


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of centred features ``[N, D]``."""
    values = np.linalg.svd(x.astype(np.float64) - x.mean(0), compute_uv=False)
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share + 1e-12)).sum()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--sets", nargs="+", required=True, help="names of zips in $SSL_MEDNET_DATA")
    args = parser.parse_args()
    channels = channels_of(args.weights) or "gray"
    data = Path(os.environ.get("SSL_MEDNET_DATA", "../shared/data"))
    for weights in load_weights(args.weights, channels, None, seed=0):
        for name in args.sets:
            task = open_labelled(data / f"{name}.zip", CorpusSpec(channels, 256), quiet=True)
            x = extract(weights, task.corpus, task.splits["train"][:3000], CPU, quiet=True)
            print(f"{weights.name} {name}: {x.shape[1]} features, effective rank {effective_rank(x):.0f}", flush=True)
            for part, which in PARTS.items():
                other = replace(weights, model=Parts(weights.model, which), digest=f"{weights.digest} {part}")
                found = scores(other, task, few=200, draws=20, corrupted=False)
                print(f"  {part:9} linear {found['linear']:.4f}  ten {found['ten']:.4f}", flush=True)


if __name__ == "__main__":
    main()
