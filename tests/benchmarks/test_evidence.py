"""The tables of the evidence say what the folders of results hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evidence import collected, table


def row(weights: str, protocol: str, value: float, **more: object) -> dict[str, object]:
    found = {"value": value, "low": value - 0.01, "high": value + 0.01}
    amount: dict[str, object] = {"labels": 1.0, "shots": None, "seed": 0}
    return {"task": "set", "weights": weights, "protocol": protocol, "metrics": {"auroc": found}} | amount | more


def test_values_intervals_seeds_and_differences(tmp_path: Path) -> None:
    rows = [row("net", "linear", 0.9514), row("baseline:majority", "majority", 0.5)]
    rows += [row("net", "tuned", value, labels=None, shots=10, seed=seed) for seed, value in enumerate((0.8, 0.9))]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    columns = ["linear@1.0", "tuned@10", "linear@0.1"]
    assert table(collected([tmp_path], ""), columns, short=False).splitlines()[2:] == [
        "| set | net | .951 (.941 to .961) | .850 (.800 to .900) |  |"
    ]
    assert table(collected([tmp_path], ""), columns, short=True).splitlines()[2:] == ["| set | net | .951 | .850 |  |"]
    pair = {"task": "set", "protocol": "linear", "labels": 1.0, "shots": None, "seed": 0, "metric": "auroc"}
    pair |= {"a": "net", "b": "x"}
    found = [pair | {"value": -0.0004, "low": -0.0201, "high": 1.0}, pair | {"metric": "ece", "value": 9.0}]
    (tmp_path / "comparisons.json").write_text(json.dumps(found))
    differences = table(collected([tmp_path], "x"), ["linear@1.0"], short=False).splitlines()
    assert differences[2:] == ["| set | net | -.0004 (-.020 to 1.000) |"]


def test_figures_without_an_interval_and_such_as_are_not_defined_are_told(tmp_path: Path) -> None:
    """One test group, or resamples=0: in the file null."""
    alone = {"value": 0.9, "low": None, "high": None}
    rows = [row("net", "linear", 0.9, metrics={"auroc": alone})]
    rows += [row("net", "knn", 0.9, metrics={"auroc": alone | {"value": None}})]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(rows))
    found = table(collected([tmp_path / "a", tmp_path / "b"], ""), ["linear@1.0", "knn@1.0"], short=False)
    assert found.endswith("| set | net | .900 (no interval) | n/a (no interval) |")


def test_what_lies_in_two_folders_counts_once_and_must_agree(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, value in zip(folders, (0.9, 0.9, 0.91), strict=True):
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps([row("net", "linear", value)]))
    assert table(collected(folders[:2], ""), ["linear@1.0"], short=False).endswith(".900 (.890 to .910) |")
    with pytest.raises(SystemExit, match="another figure"):
        collected(folders, "")
