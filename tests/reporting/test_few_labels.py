"""Fewer labels on the page: verdicts, draws and seeds, protocols of others, and folders that hold nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from results_folder import write_results

from ssl_mednet.reporting import figures, plots
from ssl_mednet.reporting.build import report
from ssl_mednet.reporting.leaderboard import fewer_labels
from ssl_mednet.reporting.load import load_study
from ssl_mednet.reporting.plots import label_curves
from ssl_mednet.reporting.tables import as_csv
from ssl_mednet.reporting.tasks import Task, sort_into_tasks

PROTOCOL = "few_shot_finetune"
FIRST, SECOND = "runs/gray", "random:resnet10t"
Json = dict[str, Any]


def write_few(folder: Path, seeds: int = 1, protocol: str = PROTOCOL, shots: tuple[int, ...] = (10,)) -> Path:
    """The majority and two weights, one draw of labels a seed: 0.9, 0.91 and so on, less 0.1 for the second."""
    write_results(folder, ("gray",))
    rows = json.loads((folder / "results.json").read_text())
    kept = [next(r for r in rows if r["protocol"] == "majority")]
    few = [next(r for r in rows if r["weights"] == name and r["shots"] == 5) for name in (FIRST, SECOND)]
    comparisons = []
    for n in shots:
        for seed in range(seeds):
            for i, row in enumerate(few):
                value = 0.9 + seed / 100 - i / 10
                more: Json = {"protocol": protocol, "seed": seed, "shots": n, "n_train": 3 * n, "draws": None}
                more |= {"key": f"{protocol}{n}-{seed}-{i}", "spread": {}}
                more["metrics"] = {"auroc": {"value": value, "low": value - 0.05, "high": value + 0.05}}
                kept.append(row | more)
            said: Json = {"task": "brain_mri", "protocol": protocol, "labels": None, "shots": n, "seed": seed}
            said |= {"metric": "auroc", "a": FIRST, "b": SECOND, "value": 0.1 + seed / 50, "low": 0.02, "high": 0.18}
            comparisons.append(said | {"p": 0.004, "verdict": "better" if seed < 2 else "cannot tell"})
    (folder / "results.json").write_text(json.dumps(kept))
    (folder / "comparisons.json").write_text(json.dumps(comparisons))
    return folder


def task_of(*folders: Path) -> Task:
    return sort_into_tasks(load_study(folders))[0]


def test_a_folder_of_few_labels_alone_has_a_reference_a_verdict_and_its_own_counts(tmp_path: Path) -> None:
    folder = write_few(tmp_path / "few")
    rows = folder / "results.json"
    rows.write_text(rows.read_text().replace('"brain_mri"', '"kermany_cxr"'))
    comparisons = folder / "comparisons.json"
    comparisons.write_text(comparisons.read_text().replace("brain_mri", "kermany_cxr"))
    page, text, table, tex = (p.read_text() for p in report([folder], tmp_path / "r.html"))
    assert "baseline:majority" not in page
    assert "▼</span> worse" in page
    assert "−0.100" in page
    assert "−0.180 to −0.020" in page
    assert "30 training, 60 validation and 150 test images" in page
    assert "400" not in re.sub(r"data:[^)]*|<svg.*?</svg>|<style.*?</style>", "", page, flags=re.S)
    assert "compared with gray" in text
    assert "compared with gray" in tex
    assert ",gray,auroc,-0.1," in table
    published = re.findall(r"^\| ResNet.*$", text, flags=re.M)
    assert len(published) == 4
    assert all("few-shot, linear probe, then fine-tuning, 64 px |" in line for line in published)


def test_several_amounts_of_labels_are_counted_from_fewest_to_most(tmp_path: Path) -> None:
    assert task_of(write_few(tmp_path / "few", shots=(5, 10))).caption.startswith("15 to 30 training, ")


def test_seeds_are_one_point_from_the_lowest_to_the_highest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(write_few(tmp_path / "few", seeds=3, shots=(5, 10)))
    table = fewer_labels(task)
    assert table is not None
    assert table.comparisons == 6
    assert table.several_seeds
    name, used, (first, second) = table.lines[0]
    assert name == "few-shot, linear probe, then fine-tuning"
    assert used == "5 a class, one draw of the labels a seed, mean over 3 seeds"
    assert first is not None
    assert second is not None
    assert first.reference
    assert [first.estimate.value, first.estimate.low, first.estimate.high] == pytest.approx([0.91, 0.9, 0.92])
    assert second.verdict is not None
    assert second.verdict.words == "worse at 2, cannot tell at 1 of 3 seeds"
    assert second.verdict.kind == "cannot-tell"
    assert second.verdict.difference == ("−0.120", "−0.140 to −0.100")
    drawn = {}
    monkeypatch.setattr(figures, "lines", lambda name, said, curves, **_: drawn.update({name: curves}))
    (panel,) = label_curves(task)
    (curves,) = drawn.values()
    assert [*curves[0].y, *curves[0].low, *curves[0].high] == pytest.approx([0.91, 0.91, 0.9, 0.9, 0.92, 0.92])
    assert panel.caption.startswith("Points: one draw of the labels a seed, mean over 3 seeds.")
    assert panel.caption.endswith("Bands: from the lowest to the highest seed.")


def test_draws_are_told_panel_by_panel(results: Path, tmp_path: Path) -> None:
    task = task_of(results, write_few(tmp_path / "few", shots=(5, 10)))
    captions = {panel.caption for panel in label_curves(task)}
    assert captions == {
        "Points: mean over 20 draws of the labels. Bands: 95\u00a0% interval.",
        "Points: one draw of the labels. Bands: 95\u00a0% interval.",
    }


def test_a_registered_protocol_is_on_the_page_too(tmp_path: Path) -> None:
    task = task_of(write_few(tmp_path / "few", protocol="few_shot_mine", shots=(5, 10)))
    table = fewer_labels(task)
    assert table is not None
    assert [name for name, *_ in table.lines] == ["few shot mine"] * 2
    assert len(label_curves(task)) == 1


def test_a_verdict_names_its_reference_where_that_is_not_the_first(results: Path, tmp_path: Path) -> None:
    few = write_few(tmp_path / "few")
    path = few / "results.json"
    path.write_text(path.read_text().replace(f"{FIRST:0>64}", "b" * 64))  # other weights of the same name
    task = task_of(results, few)
    first, second = sorted(task.cells(PROTOCOL, None, 10), key=lambda c: c.compared is not None)
    assert first.series.name == f"gray [{tmp_path.name}/few]"
    assert second.reference == first.series
    page, text, *_ = (p.read_text() for p in report([results, few], tmp_path / "r.html"))
    assert f"with gray [{tmp_path.name}/few]</span>" in page
    assert f"worse, p = 0.004 (with gray [{tmp_path.name}/few])" in text.replace("\\_", "_")
    assert f",{first.series.name},auroc,-0.1," in as_csv([task])


# --- and other things that the page says of rows ----------------------------------------------------------------------


def edited(folder: Path, **facts: Any) -> Path:
    """The color task, all rows with other facts."""
    write_results(folder, ("color",))
    path = folder / "results.json"
    path.write_text(json.dumps([r | facts for r in json.loads(path.read_text())]))
    return folder


def test_the_lead_claims_nothing_that_copies_belie(tmp_path: Path) -> None:
    clean, copied = (
        report([edited(tmp_path / str(n), copies={"exact": n, "near": 2 * n})], tmp_path / "r.html")[0].read_text()
        for n in (0, 3)
    )
    assert "120 test images that took no part in training or in any choice." in clean
    assert "took no part in training" not in copied
    assert "took no part in any choice; 9 of them are among the training images too, exactly or nearly." in copied


def test_a_chosen_value_of_one_is_shown(tmp_path: Path) -> None:
    chosen = {"strength": 1.0, "k": 1, "converged": True, "note": ""}
    page = report([edited(tmp_path / "r", chosen_on_val=chosen)], tmp_path / "r.html")[0].read_text()
    assert "<td>strength 1, k 1</td>" in page


@pytest.mark.parametrize("n_val", [60, None])
def test_what_was_chosen_is_said_to_be_from_where_it_was(tmp_path: Path, n_val: int | None) -> None:
    write_results(tmp_path / "r")
    path = tmp_path / "r" / "results.json"
    facts = {"n_val": n_val, "chosen_on_val": {"k": 3}}
    path.write_text(json.dumps([row | facts for row in json.loads(path.read_text())]))
    page = report([tmp_path / "r"], tmp_path / "r.html")[0].read_text()
    of_val, of_folds = ("chosen on the validation images", "chosen on training images that were left out in turn")
    for start in ("a threshold ", "What was ", "whose threshold was "):
        assert (start + of_val in page, start + of_folds in page) == (n_val is not None, n_val is None)
    assert ("fitted on training images that were left out" in page) == (n_val is None)


def test_the_majority_is_not_bold(tmp_path: Path) -> None:
    page = report([edited(tmp_path / "r")], tmp_path / "r.html")[0].read_text()
    assert page.count('<tr class="majority"><th scope="row">always the largest class') == 1
    bold = re.findall(r"^([^{]*)\{[^}]*font-weight: [67]00", page, flags=re.M)
    assert any(".board .best" in rule for rule in bold)
    assert not any("majority" in rule or ".board td" in rule for rule in bold)


def test_histories_are_named_by_protocol_and_their_legend_by_what_is_drawn(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study([results])
    long = [
        r.model_copy(update={"key": r.key + "l", "protocol": "linear_then_finetune"}) for r in study.rows if r.history
    ]
    of_second = [r.model_copy(update={"labels": 0.1, "key": r.key + "m"}) for r in long if r.weights == SECOND]
    study.rows += [r for r in long if r.weights == FIRST] + of_second
    study.rows = [r for r in study.rows if r.protocol != "finetune"]
    said = []
    monkeypatch.setattr(figures, "lines", lambda name, text, curves, **_: said.append(text))
    panels = plots.histories(sort_into_tasks(study)[0])
    assert [text.title for text in said] == ["linear probe, then fine-tuning"] * 2
    assert [text.y for text in said] == ["training loss", "AUROC on val"]
    assert [[s.name for s in panel.shown] for panel in panels] == [["gray"]] * 2
