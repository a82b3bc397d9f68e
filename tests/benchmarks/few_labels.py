"""Which way to make a classifier from few labelled images: frozen, fine-tuned, and how; scored on val.

    SSL_MEDNET_DATA=FOLDER python tests/benchmarks/few_labels.py --out tests/benchmarks/few_labels.jsonl

From each set ``--shots`` training images of a class are drawn, and its val split stands in for test images: official
test splits are not touched. ``ssl-mednet finetune`` makes the classifier, so it splits or cross-validates as for a user
who brings these images alone. Runs that ``--out`` holds already are not repeated; the table is printed from it.

    SSL_MEDNET_DATA=FOLDER python tests/benchmarks/few_labels.py --write few

writes ``few/SET_50.zip`` instead, for ``ssl-mednet finetune``: the images of the first draw and the official test ones.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ssl_mednet.classifying.fit import finetune

SETS = {
    "brain_mri": "gray-mednet-tiny",
    "kermany_cxr": "gray-mednet-tiny",
    "busi_us": "gray-mednet-tiny",
    "pbc_blood": "color-mednet-tiny",
    "ham10000_derm": "color-mednet-tiny",
}
WAYS = {"frozen": "linear", "fine-tuned": "linear_then_finetune"}


def draw(source: Path, shots: int, seed: int, out: Path, tested: str = "val") -> None:
    """A zip with so many training images of each class, and with the split ``tested`` as its test split."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(out, "w") as made:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode("utf-8-sig"))))
        generator = np.random.default_rng(seed)
        kept = [row | {"split": "test"} for row in rows if row["split"] == tested]
        for name in sorted({row["label"] for row in rows}):
            of_class = [row for row in rows if row["split"] == "train" and row["label"] == name]
            chosen = generator.permutation(len(of_class))[:shots]
            kept += [of_class[i] | {"split": "train"} for i in sorted(chosen)]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
        made.writestr("labels.csv", table.getvalue())
        for row in kept:
            made.writestr(row["path"], archive.read(row["path"]))


def source(name: str) -> Path:
    return Path(os.environ.get("SSL_MEDNET_DATA", "../shared/data")) / f"{name}.zip"


def run(name: str, shots: int, seed: int, way: str) -> dict[str, Any]:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / f"{name}.zip"
        draw(source(name), shots, seed, data)
        said = ["gallery=0", "resamples=100"]
        made = finetune(SETS[name], data, Path(folder) / "model", WAYS[way], overrides=said, quiet=True)
    metrics = {key: made.row["metrics"][key]["value"] for key in ("auroc", "balanced_accuracy", "ece_calibrated")}
    seconds = round(time.perf_counter() - began, 1)
    return {
        "set": name,
        "shots": shots,
        "seed": seed,
        "way": way,
        **metrics,
        "chosen": made.row["chosen_on_val"],
        "s": seconds,
    }


def table(done: list[dict[str, Any]]) -> str:
    """AUROC on val, mean (lowest to highest) over the draws."""
    lines = [f"| set | images a class | {' | '.join(WAYS)} |", "| --- " * (2 + len(WAYS)) + "|"]
    for name, shots in dict.fromkeys((one["set"], one["shots"]) for one in done):
        cells = []
        for way in WAYS:
            values = [o["auroc"] for o in done if (o["set"], o["shots"], o["way"]) == (name, shots, way)]
            spread = f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""
            cells.append(spread)
        lines.append(f"| {name} | {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="few_labels.jsonl")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--shots", nargs="+", type=int, default=[50])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write sets of few labels instead")
    args = parser.parse_args()
    if args.write:
        args.write.mkdir(parents=True, exist_ok=True)
        for name, shots in ((name, shots) for name in args.sets for shots in args.shots):
            draw(source(name), shots, args.seeds[0], args.write / f"{name}_{shots}.zip", "test")
        return
    out = Path(args.out)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    known = {(one["set"], one["shots"], one["seed"], one["way"]) for one in done}
    wanted = [(n, s, d, w) for d in args.seeds for s in args.shots for n in args.sets for w in args.ways]
    for number, what in enumerate(wanted, 1):
        if what in known:
            continue
        done.append(run(*what))
        with out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(f"{number}/{len(wanted)} {done[-1]}", flush=True)
    print(table(done))


if __name__ == "__main__":
    main()
