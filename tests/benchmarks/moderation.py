"""How far the linear probe should draw variances over a few labelled images towards their typical value, on val splits.

    python tests/benchmarks/moderation.py --data $SSL_MEDNET_DATA

For every set of both suites, the tiny net, the untrained one and ImageNet's at 96 px: macro AUROC on at most 600 val
images of probes on 1, 5, 10 and 50 labels a class and on 10 %, mean of three draws of the labels, at the best strength,
for so many prior rows (``ssl_mednet.probe.linear.PRIOR_ROWS``; 0: plain standardisation). Test images are not touched.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from ssl_mednet.evaluation.bench import Bench
from ssl_mednet.evaluation.run import open_set
from ssl_mednet.evaluation.subsets import few_shot, fraction
from ssl_mednet.evaluation.suite import load_suite
from ssl_mednet.evaluation.weights import load_weights
from ssl_mednet.probe import linear

SETS = {"brain_mri": "gray", "kermany_cxr": "gray", "busi_us": "gray", "pbc_blood": "color", "ham10000_derm": "color"}
PRIORS = (0, 10, 30, 100, 300)
STRENGTHS = tuple(np.logspace(-6, 3, 10).tolist())
AMOUNTS = (1, 5, 10, 50, 0.1)
DRAWS, SCORED = 3, 600


def values(bench: Bench, amount: float) -> list[float]:
    """The best mean AUROC on val for each prior."""
    x, y = bench.features("train"), bench.labels("train")
    some = np.random.default_rng(0).permutation(len(bench.labels("val")))[:SCORED]
    val, val_labels = bench.features("val")[some], bench.labels("val")[some]
    best = []
    for prior in PRIORS:
        linear.PRIOR_ROWS, curves = prior, []
        for draw in range(DRAWS):
            rows = few_shot(y, int(amount), draw, 0) if amount >= 1 else fraction(y, amount, draw, 0)
            path = linear.fit_path(x[rows], y[rows], STRENGTHS, len(bench.task.classes))
            curves.append(path.auroc(val, val_labels))
        best.append(float(np.mean(curves, axis=0).max()))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the zips")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    args = parser.parse_args()
    print(f"| set | weights | labels | {' | '.join(map(str, PRIORS))} |\n{'| --- ' * (3 + len(PRIORS))}|", flush=True)
    found: list[list[float]] = []
    for name in args.sets:
        channels = SETS[name]
        plan = load_suite(None, str(args.data / f"{name}.zip"), None)
        for weights in load_weights(
            [f"{channels}-mednet-tiny", "random:", "imagenet:efficientnet_lite0@96"], channels, None, 0
        ):
            task = open_set(plan.sets[0], channels, plan, True, weights.preprocessing.image_size)
            bench = Bench(weights, task, plan, torch.device("cpu"), True)
            for amount in AMOUNTS:
                found.append(values(bench, amount))
                cells = " | ".join(f"{v:.3f}" for v in found[-1])
                print(f"| {name} | {weights.name} | {amount} | {cells} |", flush=True)
    means = np.mean(found, axis=0).round(4).tolist()
    print(json.dumps({"cells": len(found), "mean": dict(zip(map(str, PRIORS), means, strict=True))}))


if __name__ == "__main__":
    main()
