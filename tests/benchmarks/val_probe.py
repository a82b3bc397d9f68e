"""How good backbones are on images that were not trained on, without the test splits: what recipes are chosen by.

    SSL_MEDNET_DATA=FOLDER python tests/benchmarks/val_probe.py --weights RUN random:resnet10t --sizes 64 96

Frozen features of the train and val splits; macro AUROC of the linear probe and, with ten labels a class, of the mean
of ``--draws`` probes. A val split of fewer than ``--few`` images says little, so there the train and val images are
cut into five parts, of which each is scored by a probe on the others. The probe's strength is chosen on a fifth of the
labels that it may use, at ten labels it is fixed. With ``--corrupted`` the probe of clean images is also scored on
corrupted ones, at most 400 of each part: mean over the corruptions of the modality at two severities. Test splits are
not touched. Results are added to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_mednet.augment.corruptions import corruptions_of
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.subsets import balanced, few_shot
from ssl_mednet.evaluation.weights import Weights, channels_of, load_weights
from ssl_mednet.probe.linear import LinearProbe, fit_linear, fit_path
from ssl_mednet.probe.metrics import auroc

SETS = {"gray": ["brain_mri", "kermany_cxr", "busi_us"], "color": ["pbc_blood", "ham10000_derm"]}
SHOTS, FOLDS, FEW_SHOT_STRENGTH = 10, 5, 1e-3
SEVERITIES, MOST_CORRUPTED = (2, 4), 400
CPU = torch.device("cpu")


def probe_on(x: np.ndarray, y: np.ndarray, train: np.ndarray, classes: int) -> LinearProbe:
    """The linear probe of these rows, a fifth of which chooses its strength."""
    order = np.random.default_rng(0).permutation(train)
    inner, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return fit_linear(x[rest], y[rest], x[inner], y[inner], num_classes=classes)


def scores(weights: Weights, task: LabelledSet, few: int, draws: int, corrupted: bool) -> dict[str, Any]:
    rows = np.concatenate([task.splits["train"], task.splits["val"]])
    x = extract(weights, task.corpus, rows, CPU, quiet=True)
    y, classes = task.labels[rows], len(task.classes)
    train, val = np.split(np.arange(len(rows)), [len(task.splits["train"])])
    if len(val) < few:
        parts = np.array_split(np.random.default_rng(0).permutation(len(rows)), FOLDS)
        folds = [(np.setdiff1d(np.arange(len(rows)), part), part) for part in parts]
    else:
        folds = [(train, val)]
    probes = [probe_on(x, y, rest, classes) for rest, _ in folds]
    everything = [auroc(y[part], p.predict_proba(x[part])) for p, (_, part) in zip(probes, folds, strict=True)]
    shot = []
    for draw in range(draws):
        rest, part = folds[draw % len(folds)]
        chosen = rest[few_shot(y[rest], SHOTS, draw, 0)]
        fit = fit_path(x[chosen], y[chosen], (FEW_SHOT_STRENGTH,), num_classes=classes)
        shot.append(fit.auroc(x[part], y[part])[0])
    found: dict[str, Any] = {"linear": float(np.mean(everything)), "ten": float(np.mean(shot))}
    if corrupted:
        parts = [part[balanced(y[part], MOST_CORRUPTED)] for _, part in folds]
        found["corrupted"] = on_corrupted(weights, task, rows, probes, parts)
    return found


def on_corrupted(
    weights: Weights, task: LabelledSet, rows: np.ndarray, probes: list[LinearProbe], parts: list[np.ndarray]
) -> dict[str, float]:
    """AUROC of each probe on its part, corrupted, by corruption; of them all as ``"mean"``."""
    found: dict[str, list[float]] = {name: [] for name in corruptions_of(next(iter(task.corpus.modalities(rows))))}
    for probe, part in zip(probes, parts, strict=True):
        for name, severity in product(found, SEVERITIES):
            x = extract(weights, task.corpus, rows[part], CPU, True, (name, severity))
            found[name].append(auroc(task.labels[rows[part]], probe.predict_proba(x)))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {"mean": float(np.mean(list(means.values())))} | means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--channels", choices=list(SETS), help="by default what the first artifact was made for")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="sides of the images, pixels")
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--corrupted", action="store_true")
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
                found = scores(replace(weights, preprocessing=seen), task, args.few, args.draws, args.corrupted)
                rows.append({"weights": weights.name, "set": name, "size": size} | found)
                print(
                    f"{weights.name:40} {name:14} {size:4} px  linear {found['linear']:.4f}  ten {found['ten']:.4f}"
                    + (f"  corrupted {found['corrupted']['mean']:.4f}" if args.corrupted else ""),
                    flush=True,
                )
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps({f"{r['weights']}/{r['set']}/{r['size']}": round(r["linear"], 4) for r in rows}))


if __name__ == "__main__":
    main()
