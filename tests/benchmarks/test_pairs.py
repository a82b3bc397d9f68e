"""Differences between rows of any folders: of one set and the same resamples, or refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pairs
import pytest

from ssl_mednet import evaluate

SOURCE, ONE, TWO = "phantoms:gray?n=120&size=64", "baseline:histogram", "baseline:pixels"
Measure = Callable[..., Path]


@pytest.fixture
def measured(tmp_path: Path) -> Measure:
    def measure(folder: str, weights: list[str], *overrides: str, source: str = SOURCE) -> Path:
        options = ["device=cpu", "gallery=0", "protocols=[linear]", "resamples=50", *overrides]
        return evaluate(weights, data=source, out=tmp_path / folder, overrides=options, quiet=True).path.parent

    return measure


def said(capsys: pytest.CaptureFixture[str], *folders: Path, without_copies: bool = False) -> str:
    names = ["--a", ONE, "linear@1.0", "--b", TWO, "linear@1.0", *(["--without-copies", "phantoms:gray"])]
    sys.argv = ["pairs.py", *map(str, folders), *names[: None if without_copies else -2]]
    pairs.main()
    return capsys.readouterr().out.splitlines()[-1]


def test_a_difference_over_two_folders_is_that_within_one(
    measured: Measure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = said(capsys, measured("a", [ONE], "seed=3"), measured("b", [TWO], "seed=3"))
    both = measured("both", [ONE, TWO], "seed=3")
    assert said(capsys, both) == apart
    (found,) = (c for c in json.loads((both / "comparisons.json").read_text()) if c["metric"] == "auroc")
    told = pairs.cell([found], short=False)
    assert apart.endswith(f"| {told} |")
    # Where no image is a copy the figures are the same, if they rest on the same 50 resamples of seed 3.
    monkeypatch.setattr(pairs, "copies", lambda *_: {"exact": SimpleNamespace(right=np.empty(0, np.int64))})
    without = said(capsys, both, without_copies=True)
    assert without.split(" | ")[1:] == apart.split(" | ")[1:]
    assert "20 images" in without


def test_rows_of_other_sets_of_the_same_name_are_no_pair(measured: Measure, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"phantoms:gray: the rows in .*a and .*b are no pair: .*\(data_fingerprint\)"):
        said(capsys, measured("a", [ONE]), measured("b", [TWO], source="phantoms:gray?n=160&size=64"))


@pytest.mark.parametrize("name", ["rows", "targets", "groups"])
def test_rows_of_other_test_images_are_no_pair(
    name: str, measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [measured("a", [ONE]), measured("b", [TWO])]
    path = folders[1] / json.loads((folders[1] / "results.json").read_text())[1]["predictions"]
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {name: arrays[name][::-1] - np.arange(len(arrays[name]))})
    with pytest.raises(SystemExit, match=f"no pair: the {name} of their test images differ"):
        said(capsys, *folders)


def test_other_resamples_are_no_pair(measured: Measure, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [measured("a", [ONE]), measured("b", [TWO], "seed=5"), measured("c", [TWO], "resamples=40")]
    for other in folders[1:]:
        with pytest.raises(SystemExit, match="no pair: they rest on other resamples"):
            said(capsys, folders[0], other)
    (folders[2] / "run.json").unlink()
    with pytest.raises(SystemExit, match="no pair: they rest on other numbers of resamples"):
        said(capsys, folders[0], folders[2])


def test_copies_are_not_looked_for_in_another_set(
    measured: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = measured("small", [ONE, TWO], "store_size=32", source="phantoms:gray?n=120&size=96")
    with pytest.raises(SystemExit, match="read at 256 px as it is, is not the set that the rows are of"):
        said(capsys, small, without_copies=True)
    assert said(capsys, shutil.copytree(small, tmp_path / "moved"))  # the rows themselves are a pair


def test_differences_without_an_interval_are_told(measured: Measure, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, measured("a", [ONE, TWO], "resamples=0")).endswith("(no interval) |")


def test_rows_of_one_draw_each_are_compared_as_the_mean_over_draws(
    measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    def over_draws(weights: str, what: str, *folders: Path) -> list[str]:
        sys.argv = [
            "pairs.py",
            *map(str, folders),
            "--a",
            weights,
            what,
            "--b",
            ONE,
            "few_shot_linear@5",
            "--over-draws",
        ]
        pairs.main()
        return capsys.readouterr().out.splitlines()[-1].split(" | ")

    protocols = "protocols=[few_shot_finetune,few_shot_linear]", "shots=[5]", "draws=2", "seeds=[0,1]"
    steps = "finetune.max_steps=2", "finetune.batch_size=8", "finetune.precision=float32"
    both = measured("both", ["random:resnet10t@32", ONE, TWO], *protocols, *steps, source="phantoms:gray?n=400&size=32")
    rows = json.loads((both / "results.json").read_text())
    tuned = [r["metrics"]["auroc"]["value"] for r in rows if r["protocol"] == "few_shot_finetune"]
    (frozen,) = (r["metrics"]["auroc"]["value"] for r in rows if r["weights"] == ONE)
    told = over_draws("random:resnet10t@32", "few_shot_finetune@5", both)
    assert told[:3] == ["| phantoms:gray, 2 draws", pairs.number(np.mean(tuned)), pairs.number(frozen)]
    # Of rows that hold all draws the difference is the one that evaluate made.
    told = over_draws(TWO, "few_shot_linear@5", both)
    one, two = (pairs.found([both], weights, "few_shot_linear@5")["phantoms:gray", 0] for weights in (TWO, ONE))
    less = pairs.paired(one, two)[2]
    assert told[3] == pairs.cell([{"value": less.value, "low": less.low, "high": less.high}], short=False) + " |"

    fewer = measured(
        "fewer", [ONE], "protocols=[few_shot_linear]", "shots=[5]", "draws=3", source="phantoms:gray?n=400&size=32"
    )
    with pytest.raises(SystemExit, match=r"they are of the draws \[0, 1\] and \[0, 1, 2\]"):
        over_draws("random:resnet10t@32", "few_shot_finetune@5", both, fewer)
