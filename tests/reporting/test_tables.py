"""Markdown, CSV and LaTeX: every row, the same figures, and in every table how its intervals were made."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from ssl_mednet.reporting.load import Study, load_study
from ssl_mednet.reporting.references import beside, load_references
from ssl_mednet.reporting.rows import Estimate, Row
from ssl_mednet.reporting.tables import as_csv, interval, latex, markdown, tables
from ssl_mednet.reporting.tasks import Task, sort_into_tasks

NAN = float("nan")


@pytest.fixture(scope="module")
def tasks(results: Path) -> list[Task]:
    return sort_into_tasks(load_study([results]))


def test_every_row_is_in_every_table(results: Path, tasks: list[Task]) -> None:
    rows = load_study([results]).rows
    assert sum(len(table.lines) for table in tables(tasks)) == len(rows)
    found = list(csv.DictReader(io.StringIO(as_csv(tasks))))
    assert len(found) == len(rows)
    text = markdown("t", tasks, {}, [])
    body = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    assert len(body) == len(rows) + len(tables(tasks))
    tex = latex(tasks)
    assert tex.count(r" \\") == len(rows) + tex.count(r"\begin{tabular}") + tex.count(r"\multicolumn")


def test_csv_has_the_figures_in_full(results: Path, tasks: list[Task]) -> None:
    by_key = {(r.task, r.protocol, r.labels, r.shots, r.weights): r for r in load_study([results]).rows}
    for line in csv.DictReader(io.StringIO(as_csv(tasks))):
        weights = {"gray": "runs/gray"}.get(line["weights"], line["weights"])
        labels, shots = (float(line["labels"]) if line["labels"] else None), line["shots"]
        row = by_key[line["task"], line["protocol"], labels, int(shots) if shots else None, weights]
        for name in row.metrics:
            assert float(line[name]) == row.metric(name).value
            assert float(line[f"{name}_high"]) == row.metric(name).high
        assert line["intervals_by"] == ("group" if row.grouped else "image: no groups")
        assert line["splits_made"] == ("val" if row.task == "brain_mri" else "")
        assert "someone" not in line["source"]
        assert line["weights_sha256"] == row.weights_sha256
        assert line["auroc_spread"] == ("0.02" if row.draws else "")
        assert line["draws"] == ("20" if row.draws else "")


def test_verdicts_are_the_same_everywhere(tasks: list[Task]) -> None:
    for line in csv.DictReader(io.StringIO(as_csv(tasks))):
        if line["verdict"]:
            assert line["compared_with"] == "gray"
            assert line["verdict"] in ("better", "worse", "cannot tell")
            clear = float(line["difference_high"]) < 0 and float(line["p"]) < 0.05
            assert clear == (line["verdict"] == "worse")
    table = tables(tasks)[0]
    said = {line[0]: line[-1] for line in table.lines if line[1:3] == ["linear probe", "all"]}
    assert said["gray"] == ""
    assert said["random:resnet10t"].startswith("worse, p")


def test_every_table_says_how_its_intervals_were_made(tasks: list[Task]) -> None:
    text, tex = markdown("t", tasks, {}, []), latex(tasks)
    assert len(tables(tasks)) == 6
    assert text.count("no groups: 95 % intervals by image") == 4
    assert text.count("by group") == 2
    assert tex.count(r"no groups: 95~\% intervals by image") == 6
    assert text.count("val split made here") == 2
    assert tex.count("val split made here") == 3
    assert "not corrected for the number of comparisons" in text
    assert tex.count("not corrected for the number of comparisons") == 9
    assert "spread between seeds" in text


def test_intervals_and_what_is_not_defined() -> None:
    assert interval(Estimate(value=0.9123, low=0.9, high=1.0)) == "0.912 [0.900, 1.000]"
    assert interval(Estimate(value=0.5, low=NAN, high=NAN)) == "0.500"
    assert interval(Estimate(value=NAN, low=NAN, high=NAN)) == "n/a"


def odd_task() -> Task:
    row = Row.model_validate(
        {"folder": Path(), "key": "k", "weights": "runs/a_b|c$", "task": "50% & {x}_#~^\\", "protocol": "my_own"}
        | {"n": 10, "n_train": 5, "classes": ["x"], "grouped": False, "image_size": 28, "labels": 1.0}
        | {"metrics": {"auroc": {"value": None}}}
    )
    return sort_into_tasks(Study(rows=[row]))[0]


def test_odd_names_break_neither_markdown_nor_latex() -> None:
    text = markdown("t", [odd_task()], {}, ["a | note"])
    line = next(x for x in text.splitlines() if "my own" in x)
    assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert "n/a" in line
    tex = latex([odd_task()])
    assert r"50\% \& \{x\}\_\#\textasciitilde{}\textasciicircum{}\textbackslash{}" in tex
    assert r"a\_b|c\$" in tex


def test_latex_is_balanced(tasks: list[Task]) -> None:
    tex = latex(tasks)
    assert len(re.findall(r"(?<!\\)\{", tex)) == len(re.findall(r"(?<!\\)\}", tex))
    for body in re.findall(r"\\begin\{tabular\}\{(l+)\}(.*?)\\end\{tabular\}", tex, flags=re.S):
        lines = [line for line in body[1].splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert set(re.findall(r"\\multicolumn\{(\d)\}", body[1])) == {str(len(body[0]))}
        assert len(body[0]) == 4  # what a page has room for in a readable size
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(body[0]) - 1}
    assert not re.search(r"(?<!\\)%", tex.partition("\n")[2])


def test_how_many_draws_stand_behind_a_figure(results: Path) -> None:
    study = load_study([results])
    for row in [r for r in study.rows if r.protocol == "few_shot_linear"]:
        one_draw: dict[str, Any] = {"key": row.key + "f", "protocol": "few_shot_finetune", "draws": None, "spread": {}}
        study.rows.append(row.model_copy(update=one_draw))
    tasks = sort_into_tasks(study)
    found = csv.DictReader(io.StringIO(as_csv(tasks)))
    draws = {(line["protocol"], line["draws"], bool(line["auroc_spread"])) for line in found}
    assert {("few_shot_linear", "20", True), ("few_shot_finetune", "1", False), ("finetune", "", False)} <= draws
    table = tables(tasks)[0]
    at = table.head.index("draws")
    assert {line[at] for line in table.lines if line[1] == "few-shot, linear"} == {"20"}
    assert {line[at] for line in table.lines if line[1] == "few-shot, linear probe, then fine-tuning"} == {"1"}
    assert all("] ± 0.020" in line[at + 1] for line in table.lines if line[at] == "20")
    assert table.caption.endswith("after ± the deviation between draws of labels")
    tex = latex(tasks)
    assert "few-shot, linear; labels: 5 a class; draws: 20" in tex
    assert "few-shot, linear probe, then fine-tuning; labels: 5 a class; draws: 1" in tex


def test_published_results_come_with_their_answers() -> None:
    task = odd_task()
    ours = task.rows[0].model_copy(update={"task": "pbc_blood", "source": "pbc_blood.zip"})
    pairs = beside(load_references(), [ours])
    text = markdown("t", [task], {"pbc_blood": pairs}, [])
    assert len(pairs) == 4
    assert text.count("source of BloodMNIST, but with other splits") == 4
    assert "Scientific Data" in text
