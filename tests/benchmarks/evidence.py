"""The tables of ``eval/README.md`` from folders of results: AUROC, or with ``--against`` paired differences.

    python tests/benchmarks/evidence.py results/gray results/color --columns linear@1.0 knn@1.0 few_shot_linear@10
    python tests/benchmarks/evidence.py results/gray --columns linear@1.0 --against imagenet:efficientnet_lite0@96

A column is a protocol with a share of the labels (``0.1``) or labels a class (``10``). A cell is the value on the test
split with its 95 % interval (without with ``--short``), of several seeds the mean (lowest to highest). Differences are
those of the first weights of each folder to others, as ``ssl-mednet evaluate`` compared them. What lies in two folders
counts once, and must be the same in both.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from ssl_mednet.files import with_nan

Amount = tuple[str, float | None, int | None]
Key = tuple[str, str]


def amount(text: str) -> Amount:
    """``"linear@0.1"`` -> protocol, share of the labels, labels a class."""
    protocol, _, number = text.rpartition("@")
    return (protocol, float(number), None) if "." in number else (protocol, None, int(number))


def collected(folders: list[Path], against: str) -> dict[Key, dict[Amount, list[dict[str, float]]]]:
    """``value``, ``low`` and ``high`` of every seed, by set and weights (or pair of weights), then by amount."""
    found: dict[Key, dict[Amount, dict[int, dict[str, float]]]] = {}
    for folder in folders:
        entries: list[dict[str, Any]] = json.loads(
            (folder / ("comparisons.json" if against else "results.json")).read_text()
        )
        for entry in entries:
            if against and (entry["metric"] != "auroc" or entry["b"] != against):
                continue
            name = entry["a"] if against else entry["weights"]
            what = entry["protocol"], entry["labels"] if entry["shots"] is None else None, entry["shots"]
            value = with_nan(entry if against else entry["metrics"].get("auroc", {}))
            if not value or name == "baseline:majority":
                continue
            seeds = found.setdefault((entry["task"], name), {}).setdefault(what, {})
            same = seeds.setdefault(entry["seed"], value)["value"], value["value"]
            if same[0] != same[1] and not all(map(math.isnan, same)):
                raise SystemExit(f"{folder}: {entry['task']}, {name}, {what} is another figure in a folder before it")
    return {key: {what: list(seeds.values()) for what, seeds in row.items()} for key, row in found.items()}


def number(value: float) -> str:
    """``.951``, ``-.009``, ``1.000``; a fourth digit where three would be zero, for that is what readers look for.

    What is not defined is ``n/a``.
    """
    if math.isnan(value):
        return "n/a"
    text = f"{abs(value):.3f}" if abs(value) >= 0.0005 or value == 0 else f"{abs(value):.4f}"
    return ("-" if value < 0 else "") + (text.removeprefix("0") if abs(value) < 0.9995 else text)


def cell(values: list[dict[str, float]], short: bool) -> str:
    mean = number(statistics.mean(v["value"] for v in values)) if values else ""
    if not values or short:
        return mean
    low, high = values[0]["low"], values[0]["high"]
    if len(values) > 1:
        low, high = min(v["value"] for v in values), max(v["value"] for v in values)
    return f"{mean} ({number(low)} to {number(high)})" if not math.isnan(low) else f"{mean} (no interval)"


def table(found: dict[Key, dict[Amount, list[dict[str, float]]]], columns: list[str], short: bool) -> str:
    lines = [f"| set | weights | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    for (task, weights), values in found.items():
        cells = [cell(values.get(amount(column), []), short) for column in columns]
        if any(cells):
            lines.append(f"| {task} | {weights} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULTS")
    parser.add_argument("--columns", nargs="+", default=["linear@1.0", "knn@1.0", "few_shot_linear@10"])
    parser.add_argument("--against", default="", metavar="WEIGHTS", help="differences to these in place of values")
    parser.add_argument("--short", action="store_true", help="no intervals")
    args = parser.parse_args()
    print(table(collected(args.folders, args.against), args.columns, args.short))


if __name__ == "__main__":
    main()
