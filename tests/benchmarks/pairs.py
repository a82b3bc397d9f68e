"""Paired differences between any two rows of results, whatever folders they lie in: test AUROC (95 %).

    python tests/benchmarks/pairs.py results/gray results/few_brain_mri \\
      --a gray-mednet-tiny few_shot_finetune@10 --b gray-mednet-tiny few_shot_linear@10
    python tests/benchmarks/pairs.py results/gray --a gray-mednet-tiny linear@1.0 \\
      --b imagenet:efficientnet_lite0@96 linear@1.0 --without-copies brain_mri busi_us

A row is named by weights and by a protocol with a share of the labels (``0.1``) or labels a class (``10``). All sets
that have both are shown. Resamples of a set are the same for all rows, so a difference is one of draws, as
``ssl-mednet evaluate`` takes it within one folder. ``--without-copies`` reads the images again and leaves out those
test images that have an equal or nearly equal one in the training split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from evidence import amount, cell, number

from ssl_mednet.auditing.copies import copies
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.evaluation.results import Store
from ssl_mednet.probe import METRICS
from ssl_mednet.probe.intervals import Difference, difference, paired_bootstrap

Found = tuple[Store, dict[str, Any]]


def found(folders: list[Path], weights: str, what: str) -> dict[tuple[str, int], Found]:
    """The rows of these weights that are of this protocol and amount, by set and seed; of two the later."""
    protocol, labels, shots = amount(what)
    rows: dict[tuple[str, int], Found] = {}
    for folder in folders:
        for row in json.loads((folder / "results.json").read_text()):
            of = row["protocol"], row["labels"] if row["shots"] is None else None, row["shots"]
            if row["weights"] == weights and of == (protocol, labels, shots):
                rows[row["task"], row["seed"]] = Store(folder), row
    return rows


def paired(a: Found, b: Found) -> tuple[float, float, Difference]:
    values = [row["metrics"]["auroc"]["value"] for _, row in (a, b)]
    less, of = (store.resampled(row, "auroc") for store, row in (a, b))
    return values[0], values[1], difference(less, of)


def paired_without_copies(a: Found, b: Found) -> tuple[float, float, Difference, int]:
    """As :func:`paired`, over the test images that are no copies of training images; and how many those are."""
    arrays = [np.load(store.folder / row["predictions"]) for store, row in (a, b)]
    row, rows = a[1], arrays[0]["rows"]
    task = open_labelled(row["source"], CorpusSpec(row["channels"], 256), quiet=True)
    pairs = copies(task.corpus, task.corpus, task.splits["train"], task.splits["test"])
    keep = ~np.isin(rows, np.concatenate([p.right for p in pairs.values()]))
    targets, scores = arrays[0]["targets"][keep], [z["scores"][..., keep, :] for z in arrays]
    groups = arrays[0]["groups"][keep] if row["grouped"] else None
    auroc = METRICS["auroc"]
    values = [float(np.mean([auroc(targets, fit) for fit in s.reshape(-1, *s.shape[-2:])])) for s in scores]
    return values[0], values[1], paired_bootstrap(auroc, targets, scores[0], scores[1], groups), int(keep.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULTS")
    for name in ("--a", "--b"):
        parser.add_argument(name, nargs=2, required=True, metavar=("WEIGHTS", "PROTOCOL@AMOUNT"))
    parser.add_argument("--without-copies", nargs="*", default=[], metavar="SET", help="sets to leave copies out of")
    args = parser.parse_args()
    first, second = (found(args.folders, *said) for said in (args.a, args.b))
    print("| set | A | B | A less B |\n| --- | --- | --- | --- |")
    for key in first:
        if key not in second:
            continue
        name = key[0] + (f", draw {key[1]}" if key[1] else "")
        if key[0] in args.without_copies:
            a, b, less, count = paired_without_copies(first[key], second[key])
            name += f", {count:,} images"
        else:
            a, b, less = paired(first[key], second[key])
        told = cell([{"value": less.value, "low": less.low, "high": less.high}], short=False)
        print(f"| {name} | {number(a)} | {number(b)} | {told} |")


if __name__ == "__main__":
    main()
