"""How the start of fine-tuning matters with a few labels a class; scored on half of val, test images are not touched.

    SSL_MEDNET_DATA=FOLDER python tests/benchmarks/starts.py --set pbc_blood --weights color-mednet-tiny head=none

One draw of ``--shots`` training images a class and at most 600 of val: one half chooses the epoch (and the strength of
the probe), the other is scored. A setting is ``key=value,key=value`` of ``finetune.*``; ``head`` is ``probe`` (the
start of the protocol ``linear_then_finetune``), ``calibrated`` (logits over its temperature on val) or ``none`` (zero).
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.finetune import FinetuneSection, finetune
from ssl_mednet.evaluation.weights import load_weights
from ssl_mednet.probe import fit_temperature
from ssl_mednet.probe.linear import fit_linear
from ssl_mednet.probe.metrics import auroc

CPU = torch.device("cpu")
COLOR = ("pbc_blood", "ham10000_derm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["head=probe", "head=none"])
    parser.add_argument("--set", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    channels = "color" if args.set in COLOR else "gray"
    source = Path(os.environ.get("SSL_MEDNET_DATA", "../shared/data")) / f"{args.set}.zip"
    task = open_labelled(source, CorpusSpec(channels, 256), quiet=True)
    (weights,) = load_weights([args.weights], channels, None, 0)
    rng, train = np.random.default_rng(123), task.splits["train"]
    classes = range(len(task.classes))
    drawn = np.concatenate([rng.permutation(train[task.labels[train] == c])[: args.shots] for c in classes])
    val = rng.permutation(task.splits["val"])[:600]
    rows = {
        "train": drawn,
        "val": val[: len(val) // 2],
        "test": val[len(val) // 2 :],
    }
    features = {part: extract(weights, task.corpus, r, CPU, True) for part, r in rows.items()}
    labels = {part: task.labels[r] for part, r in rows.items()}
    data = features["train"], labels["train"], features["val"], labels["val"]
    probe = fit_linear(*data, num_classes=len(classes))
    said = {"set": args.set, "weights": args.weights, "shots": args.shots}
    frozen = auroc(labels["test"], probe.predict_proba(features["test"]))
    print(json.dumps({**said, "how": "frozen", "auroc": round(frozen, 4)}), flush=True)
    heat = fit_temperature(labels["val"], probe.predict_proba(features["val"]))
    cooled = replace(probe, weight=probe.weight / heat, bias=probe.bias / heat)
    heads = {"probe": probe, "calibrated": cooled, "none": None}
    for setting in args.settings:
        given = dict(pair.split("=") for pair in setting.split(","))
        head = heads[given.pop("head", "probe")]
        options = FinetuneSection.model_validate({"max_steps": args.steps, **given})
        made = finetune(weights, task, rows, options, seed=0, device=CPU, quiet=True, head=head)
        value = auroc(labels["test"], made.scores["test"])
        print(json.dumps({**said, "how": setting, "epoch": made.best_epoch, "auroc": round(value, 4)}), flush=True)


if __name__ == "__main__":
    main()
