"""Paired differences between any two rows of results, whatever folders they lie in: test AUROC (95 %).

    python tests/benchmarks/pairs.py results/gray results/few_brain_mri \\
      --a gray-mednet-tiny few_shot_finetune@10 --b gray-mednet-tiny few_shot_linear@10
    python tests/benchmarks/pairs.py results/gray --a gray-mednet-tiny linear@1.0 \\
      --b imagenet:efficientnet_lite0@96 linear@1.0 --without-copies brain_mri busi_us
    python tests/benchmarks/pairs.py results/ft_brain_mri results/frozen_brain_mri --over-draws \\
      --a gray-mednet-tiny few_shot_finetune@10 --b gray-mednet-tiny few_shot_linear@10

A row is named by weights and by a protocol with a share of the labels (``0.1``) or labels a class (``10``). All sets
that have both are shown. Rows of the same test images that rest on the same resamples are a pair, others are refused: a
difference is one of draws, as ``ssl-mednet evaluate`` takes it within one folder. ``--without-copies`` reads the images
again and leaves out those test images that have an equal or nearly equal one in the training split. ``--over-draws``
takes the mean over draws of the labels, each of which is a row where nets are fine-tuned (one a seed), and its interval
is over test images and draws, as that of a frozen net's row, which has all draws in one.
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
from ssl_mednet.evaluation.run import RUN
from ssl_mednet.files import with_nan
from ssl_mednet.probe import METRICS
from ssl_mednet.probe.intervals import Difference, difference, paired_bootstrap

Found = tuple[Store, dict[str, Any]]
STORED = 256  # longest side, pixels, at which evaluate keeps the images of nets that see no more


def found(folders: list[Path], weights: str, what: str) -> dict[tuple[str, int], Found]:
    """The rows of these weights that are of this protocol and amount, by set and seed; of two the later."""
    protocol, labels, shots = amount(what)
    rows: dict[tuple[str, int], Found] = {}
    for folder in folders:
        for row in json.loads((folder / "results.json").read_text()):
            of = row["protocol"], row["labels"] if row["shots"] is None else None, row["shots"]
            if row["weights"] == weights and of == (protocol, labels, shots):
                rows[row["task"], row["seed"]] = Store(folder), row | {"metrics": with_nan(row["metrics"])}
    return rows


def common_resamples(a: Found, b: Found) -> dict[str, int]:
    """How many resamples the rows rest on, and their seed: as ``run.json`` of their folders says, else the defaults.

    Raises:
        SystemExit: the rows are not of the same test images, or not of the same resamples, so that they are no pair.
    """
    (one, row), (two, other) = a, b
    no_pair = f"{row['task']}: the rows in {one.folder} and {two.folder} are no pair: "
    if row["data_fingerprint"] != other["data_fingerprint"]:
        raise SystemExit(f"{no_pair}they are of other images, labels, splits or groups (data_fingerprint)")
    first, second = predictions(a), predictions(b)
    for name in ("rows", "targets", "groups"):
        if not np.array_equal(first[name], second[name]):
            raise SystemExit(f"{no_pair}the {name} of their test images differ")
    said = [resamples_of(store.folder / RUN) for store in (one, two) if (store.folder / RUN).is_file()]
    if said[1:] and said[0] != said[1]:
        raise SystemExit(f"{no_pair}they rest on other resamples ({said[0]} and {said[1]})")
    if len(first["resampled_auroc"]) != len(second["resampled_auroc"]):
        raise SystemExit(f"{no_pair}they rest on other numbers of resamples")
    return said[0] if said else {"n": 1000, "seed": 0}


def resamples_of(run: Path) -> dict[str, int]:
    suite = json.loads(run.read_text())["suite"]
    return {"n": suite["resamples"], "seed": suite["seed"]}


def predictions(one: Found) -> dict[str, np.ndarray]:
    store, row = one
    with np.load(store.folder / row["predictions"], allow_pickle=False) as arrays:
        return dict(arrays)


def paired(a: Found, b: Found) -> tuple[float, float, Difference]:
    common_resamples(a, b)
    values = [row["metrics"]["auroc"]["value"] for _, row in (a, b)]
    less, of = (store.resampled(row, "auroc") for store, row in (a, b))
    return values[0], values[1], difference(less, of)


def paired_over_draws(a: list[Found], b: list[Found]) -> tuple[float, float, Difference, int]:
    """Means over the same draws of the labels, their difference, and how many draws those are.

    Raises:
        SystemExit: the rows are of other draws, or no pairs.
    """
    drawn = [sorted(draw for one in rows for draw in draws_of(one)) for rows in (a, b)]
    if drawn[0] != drawn[1]:
        raise SystemExit(f"{a[0][1]['task']}: the rows are no pair: they are of the draws {drawn[0]} and {drawn[1]}")
    common = [common_resamples(one, other) for one in a for other in b]
    arrays, scores = predictions(a[0]), []
    for rows in (a, b):
        in_order = sorted(rows, key=lambda one: draws_of(one)[0])
        fits = [predictions(one)["scores"] for one in in_order]
        scores.append(np.concatenate([s.reshape(-1, *s.shape[-2:]) for s in fits]))
    groups = arrays["groups"] if a[0][1]["grouped"] else None
    return *_compared(arrays["targets"], scores, groups, common[0]), len(drawn[0])


def draws_of(one: Found) -> list[int]:
    """Which draws of the labels a row is of: all that it is a mean over, or the one of its seed."""
    row = one[1]
    return list(range(row["draws"])) if "draws" in row else [row["seed"]]


def paired_without_copies(a: Found, b: Found) -> tuple[float, float, Difference, int]:
    """As :func:`paired`, over the test images that are no copies of training images; and how many those are.

    Raises:
        SystemExit: the set, opened again, is not the one that the rows are of.
    """
    resamples, arrays, row = common_resamples(a, b), [predictions(a), predictions(b)], a[1]
    task = open_labelled(row["source"], CorpusSpec(row["channels"], STORED), quiet=True)
    if task.fingerprint != row["data_fingerprint"]:
        raise SystemExit(
            f"{row['task']}: {row['source']}, read at {STORED} px as it is, is not the set that the rows are of: "
            "it was changed, or they are of images that were converted, given a modality, or stored at another size"
        )
    pairs = copies(task.corpus, task.corpus, task.splits["train"], task.splits["test"])
    keep = ~np.isin(arrays[0]["rows"], np.concatenate([p.right for p in pairs.values()]))
    targets, scores = arrays[0]["targets"][keep], [z["scores"][..., keep, :] for z in arrays]
    groups = arrays[0]["groups"][keep] if row["grouped"] else None
    return *_compared(targets, scores, groups, resamples), int(keep.sum())


def _compared(
    targets: np.ndarray, scores: list[np.ndarray], groups: np.ndarray | None, resamples: dict[str, int]
) -> tuple[float, float, Difference]:
    auroc = METRICS["auroc"]
    a, b = (float(np.mean([auroc(targets, fit) for fit in s.reshape(-1, *s.shape[-2:])])) for s in scores)
    return a, b, paired_bootstrap(auroc, targets, scores[0], scores[1], groups, **resamples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULTS")
    for name in ("--a", "--b"):
        parser.add_argument(name, nargs=2, required=True, metavar=("WEIGHTS", "PROTOCOL@AMOUNT"))
    parser.add_argument("--without-copies", nargs="*", default=[], metavar="SET", help="sets to leave copies out of")
    parser.add_argument("--over-draws", action="store_true", help="the mean over all seeds of a set, as one row")
    args = parser.parse_args()
    first, second = (found(args.folders, *said) for said in (args.a, args.b))
    print("| set | A | B | A less B |\n| --- | --- | --- | --- |")
    if args.over_draws:
        for task in dict.fromkeys(task for task, _ in first if any(task == other for other, _ in second)):
            rows = [[one for (name, _), one in found_rows.items() if name == task] for found_rows in (first, second)]
            a, b, less, count = paired_over_draws(*rows)
            say(f"{task}, {count} draws", a, b, less)
        return
    for key in first:
        if key not in second:
            continue
        name = key[0] + (f", draw {key[1]}" if key[1] else "")
        if key[0] in args.without_copies:
            a, b, less, count = paired_without_copies(first[key], second[key])
            name += f", {count:,} images"
        else:
            a, b, less = paired(first[key], second[key])
        say(name, a, b, less)


def say(name: str, a: float, b: float, less: Difference) -> None:
    told = cell([{"value": less.value, "low": less.low, "high": less.high}], short=False)
    print(f"| {name} | {number(a)} | {number(b)} | {told} |")


if __name__ == "__main__":
    main()
