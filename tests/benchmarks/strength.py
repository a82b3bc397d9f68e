"""How strong augmentation should be: short SimCLR runs at several strengths on real sets, probed on their val splits.

    SSL_MEDNET_DATA=FOLDER python tests/benchmarks/strength.py --out tests/benchmarks/strength.jsonl

Each set is pretrained on its own training images (ResNet-10t) with its modality's policy at strength 0 (crop only), 0.5
and 1, and with the common SimCLR set (``natural``); then a linear probe is fitted on at most ``--labelled`` training
images, its strength chosen on a fifth of them that is held out, and scored by macro AUROC on val. Test splits are not
touched. Runs that ``--out`` holds already are not repeated; the table is printed from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.weights import load_weights
from ssl_mednet.pretraining.run import pretrain
from ssl_mednet.probe.linear import fit_linear
from ssl_mednet.probe.metrics import auroc

SETS = {
    "xray": ("kermany_cxr.zip", "gray"),
    "ultrasound": ("busi_us.zip", "gray"),
    "blood": ("pbc_blood.zip", "color"),
    "dermatology": ("ham10000_derm.zip", "color"),
}
SETTINGS = {
    "untrained": None,
    "crop only": ["augment.strength=0"],
    "half": ["augment.strength=0.5"],
    "full": ["augment.strength=1"],
    "natural": ["augment.policy=natural"],
}


def val_auroc(weights: str, source: Path, channels: str, size: int, labelled: int, seed: int) -> float:
    task = open_labelled(source, CorpusSpec(channels, 2 * size), quiet=True)
    (one,) = load_weights([weights], channels, size, seed)
    generator = np.random.default_rng(0)  # the same images for every run
    train = generator.permutation(task.splits["train"])[:labelled]
    cut = len(train) // 5
    rows = {"inner": train[:cut], "train": train[cut:], "val": task.splits["val"]}
    x = {name: extract(one, task.corpus, np.sort(r), torch.device("cpu"), True) for name, r in rows.items()}
    y = {name: task.labels[np.sort(r)] for name, r in rows.items()}
    probe = fit_linear(x["train"], y["train"], x["inner"], y["inner"], num_classes=len(task.classes))
    return float(auroc(y["val"], probe.predict_proba(x["val"])))


def run(name: str, setting: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    file, channels = SETS[name]
    source = Path(os.environ.get("SSL_MEDNET_DATA", "../shared/data")) / file
    began = time.perf_counter()
    if SETTINGS[setting] is None:
        value = val_auroc("random:resnet10t", source, channels, args.size, args.labelled, seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            said = [
                *SETTINGS[setting], f"train.seed={seed}", f"train.steps={args.steps}", f"data.image_size={args.size}",
                f"optim.batch_size={args.batch}", f"data.modality={name}",
            ]  # fmt: skip
            pretrain(f"simclr_{channels}.yaml", source, Path(folder) / "run", overrides=said, quiet=True)
            value = val_auroc(str(Path(folder) / "run"), source, channels, args.size, args.labelled, seed)
    return {
        "set": name, "setting": setting, "seed": seed, "auroc": value, "size": args.size, "steps": args.steps,
        "batch": args.batch, "labelled": args.labelled, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and range over seeds, as Markdown."""
    lines = [f"| set | {' | '.join(SETTINGS)} |", "| --- |" + " --- |" * len(SETTINGS)]
    for name in SETS:
        cells = []
        for setting in SETTINGS:
            values = [r["auroc"] for r in rows if (r["set"], r["setting"]) == (name, setting)]
            low_high = f"{min(values):.3f} to {max(values):.3f}" if values else ""
            cells.append(f"{statistics.mean(values):.3f} ({low_high}, n={len(values)})" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--labelled", type=int, default=2000)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(r["set"], r["setting"], r["seed"]) for r in rows}
    for seed in range(args.seeds):
        for name in SETS:
            for setting in SETTINGS:
                if (name, setting, seed) in done:
                    continue
                rows.append(run(name, setting, seed, args))
                with args.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    print(table(rows))
    print(json.dumps({f"{r['set']}/{r['setting']}/{r['seed']}": round(r["auroc"], 4) for r in rows}))


if __name__ == "__main__":
    main()
