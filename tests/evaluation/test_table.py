"""The tables of the terminal: a line for each of the weights, and verdicts that are what the column says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ssl_mednet.evaluation.table import show


def row_for_table(weights: str, protocol: str = "linear", value: float = 0.8, **more: Any) -> dict[str, Any]:
    """What the tables of the terminal read of a row."""
    interval = {"value": value, "low": value - 0.1, "high": value + 0.1}
    said = {"task": "set", "weights": weights, "protocol": protocol, "labels": 1.0, "shots": None, "seed": 0}
    about = {"classes": ["a", "b"], "n_train": 9, "n": 9, "grouped": True, "ungrouped": 0, "chosen_on_val": {}}
    about |= {"copies": {}, "splits_made": [], "skipped": 0}
    return said | about | {"metrics": {"auroc": interval, "balanced_accuracy": interval}} | more


def shown(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]], out: Path) -> list[str]:
    with out.open("w") as file:
        console = Console(width=80, record=True, file=file)
        show(rows, comparisons, console)
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_weights_whose_paths_end_alike_have_lines_of_their_own(tmp_path: Path) -> None:
    weights = ["runs/a/backbone", "runs/b/backbone", "x/ct", "y/ct"]
    rows = [row_for_table(name, value=0.61 + 0.1 * i) for i, name in enumerate(weights)]
    rows += [row_for_table(r["weights"], "few_shot_linear", labels=None, shots=5, draws=3) for r in rows]
    lines = shown(rows, [], tmp_path / "out.txt")
    for name, figure in zip(["a", "b", "x/ct", "y/ct"], (".610", ".710", ".810", ".910"), strict=True):
        full, few = [line for line in lines if line.startswith(f"{name} linear ")]
        assert full.startswith(f"{name} linear {figure} ")
        assert few == f"{name} linear .800"


def test_verdicts_are_against_the_first_weights_or_are_not_there(tmp_path: Path) -> None:
    """A histogram has nothing to fine-tune, so that the other nets are compared with each other."""
    nets = ["random:one", "random:two"]
    rows = [row_for_table(name) for name in ["baseline:histogram", *nets]]
    rows += [row_for_table(name, "finetune") for name in nets]
    rows += [row_for_table(name, "few_shot_finetune", labels=None, shots=5) for name in nets]
    same = {"task": "set", "labels": 1.0, "shots": None, "seed": 0, "metric": "auroc", "verdict": "worse"}
    found = [same | {"protocol": "linear", "a": "baseline:histogram", "b": name} for name in nets]
    found.append(same | {"protocol": "finetune", "a": nets[0], "b": nets[1]})
    found.append(same | {"protocol": "few_shot_finetune", "labels": None, "shots": 5, "a": nets[0], "b": nets[1]})
    lines = shown(rows, found, tmp_path / "out.txt")
    assert [line for line in lines if "better" in line or "worse" in line] == [
        f"{name} linear .800 .700-.900 .800 .700-.900 better" for name in nets
    ]
    assert f"{nets[1]} finetune .800" in lines
    without = shown([row for row in rows if row["protocol"] != "linear"], found, tmp_path / "out.txt")
    assert f"{nets[1]} finetune .800 .700-.900 .800 .700-.900 better" in without  # which is against the first there
    assert f"{nets[1]} finetune .800+" in without
