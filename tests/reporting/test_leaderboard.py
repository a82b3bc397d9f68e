"""The tables of the page: bars to scale, the best marked, no more certainty in words than the comparisons have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results_folder import write_results

from ssl_mednet.reporting.leaderboard import Axis, fewer_labels, leaderboard, overview, per_class
from ssl_mednet.reporting.load import load_study
from ssl_mednet.reporting.rows import Estimate
from ssl_mednet.reporting.tasks import Task, sort_into_tasks

NAN = float("nan")


@pytest.fixture(scope="module")
def tasks(results: Path) -> list[Task]:
    return sort_into_tasks(load_study([results]))


def test_an_axis_holds_every_interval() -> None:
    axis = Axis.over([Estimate(value=0.82, low=0.71, high=0.87), Estimate(value=NAN, low=NAN, high=NAN)])
    assert (axis.low, axis.high) == (0.7, 0.9)
    assert axis.x(0.7) < axis.x(0.71) < axis.x(0.87) < axis.x(0.9)
    assert axis.x(0.8) == pytest.approx((axis.x(0.7) + axis.x(0.9)) / 2)
    assert axis.ticks == [0.7, 0.9]
    assert Axis.over([Estimate(value=0.9, low=0.3, high=1.0)]).ticks == [0.3, 0.5, 1.0]
    assert Axis.over([Estimate(value=0.95)]).high > 0.95
    assert Axis.over([]) == Axis(0.0, 1.0)


def test_the_leaderboard_has_protocols_weights_and_the_majority(tasks: list[Task]) -> None:
    board = leaderboard(tasks[0])
    assert board is not None
    assert [(protocol, len(lines)) for protocol, lines in board.groups] == [("linear", 3), ("knn", 3), ("finetune", 3)]
    lines = [line for _, group in board.groups for line in group]
    best = [line for line in lines if line.best]
    assert len(best) == 1
    assert best[0].main.value == max(line.main.value for line in lines)
    assert [line.first for line in lines] == [True, False, False] * 3
    assert [line.verdict is None for line in lines] == [True, False, False] * 3
    assert board.comparisons == 6
    assert board.majority is not None
    assert board.majority.main.value == pytest.approx(0.5)
    assert "quadratic_kappa" not in board.metrics


def edited(folder: Path, edit: Callable[[Any], Any], name: str) -> list[Task]:
    write_results(folder, ("color",))
    path = folder / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps([edit(one) or one for one in content]))
    return sort_into_tasks(load_study([folder]))


def test_words_are_no_surer_than_the_comparisons(tmp_path: Path) -> None:
    said = edited(tmp_path / "a", lambda one: one.update(verdict="cannot tell"), "comparisons.json")
    sentence = overview(said).sentences[0][1]
    assert "random:resnet10t and imagenet:efficientnet_lite0 are not clearly different" in sentence
    assert "worse" not in sentence
    assert "better" not in sentence
    turned = edited(tmp_path / "b", lambda one: one.update(verdict="worse"), "comparisons.json")
    assert "are better" in overview(turned).sentences[0][1]
    (tmp_path / "b" / "comparisons.json").unlink()
    alone = overview(sort_into_tasks(load_study([tmp_path / "b"]))).sentences[0][1]
    assert "Compared" not in alone


def test_what_is_not_defined_is_never_the_best(tmp_path: Path) -> None:
    def first_is_nan(row: dict[str, Any]) -> None:
        if row["weights"] == "runs/gray":
            row["metrics"]["auroc"] = {"value": NAN, "low": NAN, "high": NAN}

    task = edited(tmp_path / "a", first_is_nan, "results.json")[0]
    board = leaderboard(task)
    assert board is not None
    assert [line.best for line in board.groups[0][1]] == [False, False, True]
    assert "of imagenet:efficientnet_lite0" in overview([task]).sentences[0][1]


def test_overview_has_a_cell_for_all_weights_and_tasks(tasks: list[Task]) -> None:
    found = overview(tasks)
    assert [protocol for _, protocol in found.tasks] == ["linear"] * 3
    assert [series.name for series, _ in found.lines] == ["gray", "random:resnet10t", "imagenet:efficientnet_lite0"]
    for column in range(3):
        assert sum(cells[column][1] for _, cells in found.lines) == 1


def test_fewer_labels_and_classes(tasks: list[Task]) -> None:
    grid = fewer_labels(tasks[0])
    assert grid is not None
    names = [(name, used) for name, used, _ in grid.lines]
    drawn = "mean over 20 draws of the labels"
    assert names[:3] == [("linear probe", s) for s in (f"1\u00a0%, {drawn}", f"10\u00a0%, {drawn}", "all")]
    assert ("few-shot, nearest centroid", f"50 a class, {drawn}") in names
    first = grid.lines[0][2][0]
    assert first is not None
    assert first.quiet == "± 0.020"
    recall = per_class(tasks[2], "linear", "auroc")
    assert recall is not None
    assert [name for name, _ in recall.lines] == tasks[2].one.classes
    assert per_class(tasks[0], "linear", "nothing") is None
