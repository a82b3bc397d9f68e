"""How good backbones are on images that were not trained on, without the test splits: what recipes are chosen by.

    SSL_MEDNET_DATA=FOLDER python tests/benchmarks/val_probe.py --weights RUN random:resnet10t --sizes 64 96

Frozen features of the train and val splits; macro AUROC of the linear probe and, with ten labels a class, of the mean
of ``--draws`` probes. A val split of fewer than ``--few`` images says little, so there the train and val images are
cut into five parts, of which each is scored by a probe on the others. The probe's strength is chosen on a fifth of the
labels that it may use, at ten labels it is fixed. Test splits are not touched. Results are added to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.subsets import few_shot
from ssl_mednet.evaluation.weights import Weights, channels_of, load_weights
from ssl_mednet.probe.linear import fit_linear, fit_path
from ssl_mednet.probe.metrics import auroc

SETS = {"gray": ["brain_mri", "kermany_cxr", "busi_us"], "color": ["pbc_blood", "ham10000_derm"]}
SHOTS, FOLDS, FEW_SHOT_STRENGTH = 10, 5, 1e-3


def probed(x: np.ndarray, y: np.ndarray, train: np.ndarray, scored: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities of the rows ``scored`` by a probe on ``train``, a fifth of which chooses its strength."""
    order = np.random.default_rng(0).permutation(train)
    inner, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return fit_linear(x[rest], y[rest], x[inner], y[inner], num_classes=classes).predict_proba(x[scored])


def scores(weights: Weights, task: LabelledSet, few: int, draws: int) -> dict[str, Any]:
    rows = np.concatenate([task.splits["train"], task.splits["val"]])
    x = extract(weights, task.corpus, rows, torch.device("cpu"), quiet=True)
    y, classes = task.labels[rows], len(task.classes)
    train, val = np.split(np.arange(len(rows)), [len(task.splits["train"])])
    if len(val) < few:
        parts = np.array_split(np.random.default_rng(0).permutation(len(rows)), FOLDS)
        folds = [(np.setdiff1d(np.arange(len(rows)), part), part) for part in parts]
    else:
        folds = [(train, val)]
    everything = [auroc(y[part], probed(x, y, rest, part, classes)) for rest, part in folds]
    shot = []
    for draw in range(draws):
        rest, part = folds[draw % len(folds)]
        chosen = rest[few_shot(y[rest], SHOTS, draw, 0)]
        fit = fit_path(x[chosen], y[chosen], (FEW_SHOT_STRENGTH,), num_classes=classes)
        shot.append(fit.auroc(x[part], y[part])[0])
    return {"linear": float(np.mean(everything)), "ten": float(np.mean(shot))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--channels", choices=list(SETS), help="by default what the first artifact was made for")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="sides of the images, pixels")
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    channels = args.channels or channels_of(args.weights)
    data = Path(os.environ.get("SSL_MEDNET_DATA", "../shared/data"))
    rows = []
    for weights in load_weights(args.weights, channels, None, seed=0):
        for name in SETS[channels]:
            task = open_labelled(data / f"{name}.zip", CorpusSpec(channels, 256), quiet=True)
            for size in args.sizes:
                seen = replace(weights.preprocessing, image_size=size)
                found = scores(replace(weights, preprocessing=seen), task, args.few, args.draws)
                rows.append({"weights": weights.name, "set": name, "size": size} | found)
                print(
                    f"{weights.name:40} {name:14} {size:4} px  linear {found['linear']:.4f}  ten {found['ten']:.4f}",
                    flush=True,
                )
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps({f"{r['weights']}/{r['set']}/{r['size']}": round(r["linear"], 4) for r in rows}))


if __name__ == "__main__":
    main()
