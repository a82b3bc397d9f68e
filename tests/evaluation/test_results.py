"""Rows that can be trusted later: kept one by one, taken up again, compared in pairs, each metric what it says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

from ssl_mednet import evaluate
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.errors import ArtifactError, DataError
from ssl_mednet.evaluation import features as features_module
from ssl_mednet.evaluation import protocols as protocols_module
from ssl_mednet.evaluation import results as results_module
from ssl_mednet.evaluation import run as run_module
from ssl_mednet.evaluation.bench import PROTOCOLS
from ssl_mednet.evaluation.names import file_stem
from ssl_mednet.evaluation.results import Store
from ssl_mednet.evaluation.run import Results
from ssl_mednet.evaluation.suite import SetSection
from ssl_mednet.evaluation.table import show
from ssl_mednet.files import write_json
from ssl_mednet.probe import METRICS, paired_bootstrap
from ssl_mednet.reporting.load import load_study

TASK = "phantoms:gray?n=400"  # is there a lesion: hard, so that nothing is 1
SAID = ["draws=3", "resamples=200", "shots=[5]", "protocols=[knn,linear,few_shot_linear]"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("results") / "out"
    return evaluate(["baseline:pixels", "baseline:histogram"], data=TASK, out=out, overrides=SAID, quiet=True)


def arrays_of(results: Results, row: dict) -> dict[str, np.ndarray]:
    with np.load(results.path.parent / row["predictions"]) as arrays:
        return dict(arrays)


def row_of(results: Results, protocol: str, weights: str = "baseline:pixels") -> dict:
    return next(r for r in results.rows if (r["protocol"], r["weights"]) == (protocol, weights))


def test_the_figures_are_those_of_scikit_learn_on_the_kept_scores(results: Results) -> None:
    row = row_of(results, "linear")
    kept = arrays_of(results, row)
    said = kept["scores"].argmax(axis=1)
    assert row["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(kept["targets"], kept["scores"][:, 1]))
    assert kept["scores"].dtype == np.float64  # as they were: what rounds to 1 would tie
    balanced = balanced_accuracy_score(kept["targets"], said)
    assert row["metrics"]["balanced_accuracy"]["value"] == pytest.approx(balanced)
    recall = np.diag(confusion_matrix(kept["targets"], said, normalize="true"))
    assert list(row["per_class"]["recall"].values()) == pytest.approx(list(recall))
    assert len(kept["rows"]) == row["n"] == 80


def test_the_operating_point_is_that_of_its_threshold(results: Results) -> None:
    row = row_of(results, "linear")
    kept, point = arrays_of(results, row), row["operating_point"]
    said = kept["scores"][:, 1] >= point["threshold"]
    assert point["sensitivity"] == pytest.approx(said[kept["targets"] == 1].mean(), abs=0.03)
    assert point["specificity"] == pytest.approx(1 - said[kept["targets"] == 0].mean(), abs=0.03)


def test_few_shot_rows_are_means_over_draws_with_their_spread(results: Results) -> None:
    row = row_of(results, "few_shot_linear")
    kept = arrays_of(results, row)
    values = [METRICS["auroc"](kept["targets"], fit) for fit in kept["scores"].astype(float)]
    assert (row["draws"], row["shots"], row["labels"], row["n_train"]) == (3, 5, None, 10)
    assert row["metrics"]["auroc"]["value"] == pytest.approx(np.mean(values))
    assert row["spread"]["auroc"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert row["metrics"]["auroc"]["low"] < np.mean(values) < row["metrics"]["auroc"]["high"]


def test_pairs_are_compared_on_the_same_resamples(results: Results) -> None:
    assert {(c["a"], c["b"]) for c in results.comparisons} == {("baseline:pixels", "baseline:histogram")}
    assert len(results.comparisons) == 3 * 2  # protocols by metrics
    a, b = (arrays_of(results, row_of(results, "knn", w)) for w in ("baseline:pixels", "baseline:histogram"))
    expected = paired_bootstrap(METRICS["auroc"], a["targets"], a["scores"], b["scores"], n=200)
    found = next(c for c in results.comparisons if c["protocol"] == "knn" and c["metric"] == "auroc")
    assert found["value"] == pytest.approx(expected.value, abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert found["verdict"] == expected.verdict
    assert json.loads((results.path.parent / "comparisons.json").read_text()) == results.comparisons


def test_what_is_not_defined_is_null_in_the_file_and_nan_in_the_row(tmp_path: Path) -> None:
    """One patient in the test split: no interval; bare NaN in the file would stop every reader but Python's."""
    nan, store = float("nan"), Store(tmp_path)
    row = {"key": "one", "labels": None, "metrics": {"auroc": {"value": 0.5, "low": nan, "high": nan}}}
    store.put(row, {"resampled_auroc": np.full(3, nan)})
    kept = json.loads((tmp_path / "rows" / "one.json").read_text(), parse_constant=pytest.fail)
    assert kept["metrics"]["auroc"] == {"value": 0.5, "low": None, "high": None}
    again = store.get("one")
    assert again is not None
    assert again["labels"] is None
    np.testing.assert_equal(again["metrics"], row["metrics"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": 1'])
def test_what_holds_no_metrics_is_no_row(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put({"key": "one", "metrics": {}}, {})
    assert store.get("one") is not None
    (tmp_path / "rows" / "one.json").write_text(text)
    assert store.get("one") is None


def test_sets_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    sources = [f"phantoms:gray?n=200&seed={seed}" for seed in (1, 2)]
    said = ["protocols=[linear]", "resamples=20", "gallery=0"]
    found = evaluate(["baseline:pixels", "baseline:histogram"], None, sources, tmp_path, said, quiet=True)
    assert [r["task"] for r in found.rows] == [source for source in sources for _ in range(3)]
    pairs = [(c["task"], c["a"], c["b"]) for c in found.comparisons if c["metric"] == "auroc"]
    assert pairs == [(source, "baseline:pixels", "baseline:histogram") for source in sources]
    command = json.loads((tmp_path / "run.json").read_text())["command"]
    weights, data = "--weights baseline:pixels baseline:histogram", "--data 'phantoms:gray?n=200&seed=1'"
    assert command.startswith(f"ssl-mednet evaluate {weights} {data}")
    assert command.endswith("'protocols=[linear]' resamples=20 gallery=0")


def test_fewer_labels_are_shown_whatever_is_done_with_them(tmp_path: Path) -> None:
    said = ["protocols=[linear,few_shot_finetune]", "shots=[5]", "finetune.max_steps=2", "image_size=32", "gallery=0"]
    found = evaluate(["random:resnet10t", "random:regnetx_002"], None, TASK, tmp_path, said, quiet=True)
    verdict = {"task": "phantoms:gray", "protocol": "few_shot_finetune", "labels": None, "shots": 5, "seed": 0}
    verdict |= {"metric": "auroc", "a": "random:resnet10t", "b": "random:regnetx_002", "verdict": "worse"}
    console = Console(width=80, record=True, file=(tmp_path / "out.txt").open("w"))
    show(found.rows, [verdict], console)
    said_there = " ".join(console.export_text().split())
    value = next(r for r in found.rows if r["shots"] and r["weights"] == verdict["b"])["metrics"]["auroc"]["value"]
    assert f"{value:.3f}+".removeprefix("0") in said_there
    assert "fine-tuned: one draw of the labels; + better, - worse than the first weights" in said_there
    assert "probe, then finetune" not in said_there  # untrained nets start from a new head
    trained = [row | {"chosen_on_val": row["chosen_on_val"] | {"head_strength": 1.0}} for row in found.rows]
    show(trained, [verdict], console)
    assert "probe, then finetune" in " ".join(console.export_text().split())


def test_what_was_done_is_not_done_again(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(protocols_module, "fit_path", never)
    monkeypatch.setattr(features_module, "_compute", never)
    weights = ["baseline:pixels", "baseline:histogram"]
    again = evaluate(weights, data=TASK, out=results.path.parent, overrides=SAID, quiet=True)
    assert again.rows == results.rows
    with pytest.raises(AssertionError, match="made again"):  # but what depends on something else is
        evaluate(weights, data=TASK, out=results.path.parent, overrides=[*SAID, "draws=4"], quiet=True)


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, made = protocols_module.select_k, []

    def killed(*args: object, **more: object) -> object:
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return original(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(protocols_module, "select_k", killed)
    weights = ["baseline:pixels@20", "baseline:pixels@24"]
    said = ["protocols=[linear,knn]", "resamples=20"]
    with pytest.raises(KeyboardInterrupt):
        evaluate(weights, data=TASK, out=tmp_path, overrides=said, quiet=True)
    assert len(list((tmp_path / "rows").glob("*.json"))) == 4  # majority, both of the first, linear of the second
    rows = evaluate(weights, data=TASK, out=tmp_path, overrides=said, quiet=True).rows
    assert len(made) == 3
    assert len(rows) == 5
    assert not list(tmp_path.rglob("*.partial"))


def test_a_damaged_row_is_made_again(tmp_path: Path) -> None:
    said = ["protocols=[knn]", "resamples=20", "gallery=0"]
    first = evaluate(["baseline:pixels"], data=TASK, out=tmp_path, overrides=said, quiet=True).rows
    (tmp_path / "rows" / f"{first[1]['key']}.json").write_text("{")
    second = evaluate(["baseline:pixels"], data=TASK, out=tmp_path, overrides=said, quiet=True).rows
    assert second[1]["metrics"] == first[1]["metrics"]


def test_a_set_that_cannot_be_opened_costs_that_set_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    suite = {"sets": [{"source": "nowhere.zip"}, {"source": TASK}], "protocols": ["knn"], "resamples": 0, "gallery": 0}
    results = evaluate(["baseline:pixels"], suite=suite, out=tmp_path, quiet=True)
    assert {r["task"] for r in results.rows} == {"phantoms:gray"}
    assert results.failed["nowhere.zip"].startswith("no such file")
    assert caplog.messages == [f"nowhere.zip is left out: {results.failed['nowhere.zip']}"]
    with pytest.raises(DataError, match="no such file"):
        evaluate(["baseline:pixels"], data="nowhere.zip", out=tmp_path, quiet=True)
    assert len(caplog.messages) == 1  # where nothing goes on, nothing is left out
    with pytest.raises(ArtifactError, match=r"^nowhere: "):  # no set is to blame
        evaluate(["baseline:pixels", "nowhere"], suite=suite | {"channels": "gray"}, out=tmp_path, quiet=True)
    assert len(caplog.messages) == 1


def one_class_to_learn_from(folder: Path) -> Path:
    """A set whose official train split has one class, all of val and test both."""
    folder.mkdir()
    lines = ["path,label,split"]
    for number in range(24):
        picture = np.random.default_rng(number).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
        split = ("train", "val", "test")[number % 3]
        lines.append(f"{number}.png,{'a' if split == 'train' else 'ab'[number % 2]},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_set_that_cannot_be_evaluated_costs_that_set_only(tmp_path: Path) -> None:
    bad = str(one_class_to_learn_from(tmp_path / "bad"))
    said = ["protocols=[knn,linear]", "resamples=20", "gallery=0"]
    found = evaluate(["baseline:pixels"], None, [bad, TASK], tmp_path / "out", said, quiet=True)
    assert {r["task"] for r in found.rows} == {"phantoms:gray"}
    assert json.loads(found.path.read_text()) == json.loads(json.dumps(found.rows))
    assert list(found.failed) == [bad]
    assert found.failed[bad].startswith("linear, 100 % of the labels: a linear probe has nothing to learn from train")
    with pytest.raises(DataError, match=r"bad: linear, 100 % of the labels: .*all rows are of class 0"):
        evaluate(["baseline:pixels"], data=bad, out=tmp_path / "out", overrides=said, quiet=True)


def test_a_net_that_diverges_costs_its_own_row_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["finetune.optimizer=momentum", "finetune.lr=1e20", "finetune.clip=0", "finetune.epochs=1"]
    weights, protocols = ["random:test_vit", "random:test_resnet"], ["protocols=[finetune,linear]", "gallery=0"]
    found = evaluate(weights, data="phantoms:gray?n=60&label=modality", out=tmp_path, overrides=[*said, *protocols])
    assert [(r["weights"], r["protocol"]) for r in found.rows][1:] == [(w, "linear") for w in weights]
    assert len(found.failed) == 2
    reason = found.failed["phantoms:gray?n=60&label=modality: random:test_vit, finetune, 100 % of the labels"]
    assert reason.startswith("fine-tuning diverged, ")  # the key says which
    said_once = "phantoms:gray: random:test_resnet, finetune, 100 % of the labels: fine-tuning diverged, "
    assert said_once in capsys.readouterr().err
    assert {c["protocol"] for c in found.comparisons} == {"linear"}


def test_a_run_that_ends_early_leaves_no_verdicts_on_earlier_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [f"phantoms:gray?n=200&seed={seed}" for seed in (1, 2)]
    weights = ["baseline:pixels", "baseline:histogram"]

    def run(*said: str) -> Results:
        said = ("protocols=[knn]", "resamples=20", "gallery=0", *said)
        return evaluate(weights, None, sources, tmp_path, list(said), quiet=True)

    def check(tasks: int) -> None:
        study = load_study([tmp_path])
        assert len(study.rows) == 3 * tasks
        values = {row.key: row.metric("auroc").value for row in study.rows}
        pairs = {key: one.value for key, one in study.differences.items() if key[2] == "auroc"}
        assert len(pairs) == len(json.loads((tmp_path / "comparisons.json").read_text())) / 2 == tasks
        assert list(pairs.values()) == pytest.approx([values[a] - values[b] for a, b, _ in pairs])

    run()
    check(2)
    with monkeypatch.context() as patched:

        def killed(section: SetSection, *rest: Any) -> LabelledSet:
            if section.source == sources[1]:
                raise KeyboardInterrupt
            return original(section, *rest)

        original = run_module.open_set
        patched.setattr(run_module, "open_set", killed)
        with pytest.raises(KeyboardInterrupt):
            run("knn_k=[1]")
    check(1)
    assert "knn_k=[1]" in json.loads((tmp_path / "run.json").read_text())["command"]
    with monkeypatch.context() as patched:

        def torn(path: Path, *rest: Any, **more: Any) -> None:
            if path.name == "comparisons.json":
                raise KeyboardInterrupt
            write_json(path, *rest, **more)

        patched.setattr(run_module, "write_json", torn)
        with pytest.raises(KeyboardInterrupt):
            run("knn_k=[3]")
    assert not load_study([tmp_path]).differences


def test_classes_that_have_an_order_after_all_are_measured_as_such(tmp_path: Path) -> None:
    def kinds(**said: bool) -> list[tuple[str, bool]]:
        suite = {"sets": [{"source": TASK, **said}], "protocols": ["knn"], "resamples": 20, "gallery": 0}
        rows = evaluate(["baseline:pixels"], suite=suite, out=tmp_path, quiet=True).rows
        return [(row["kind"], "quadratic_kappa" in row["metrics"]) for row in rows]

    assert kinds() == [("multi-class", False)] * 2
    assert kinds(ordinal=True) == [("ordinal", True)] * 2
    assert kinds() == [("multi-class", False)] * 2


def test_seeds_repeat_what_is_random_only(tmp_path: Path) -> None:
    said = ["protocols=[linear]", "resamples=20", "gallery=0", "seeds=[0,1]"]
    weights = ["random:test_resnet@32", "baseline:pixels"]
    rows = evaluate(weights, data="phantoms:gray?n=100&size=32", out=tmp_path, overrides=said, quiet=True).rows
    assert [(r["weights"], r["seed"]) for r in rows[1:]] == [(weights[0], 0), (weights[0], 1), (weights[1], 0)]
    assert rows[1]["weights_sha256"] != rows[2]["weights_sha256"]


def test_files_can_be_read_by_others_and_say_where_they_come_from(results: Results) -> None:
    assert results.path.stat().st_mode & 0o044
    said = json.loads((results.path.parent / "run.json").read_text())
    assert said["command"].startswith("ssl-mednet evaluate --weights baseline:pixels baseline:histogram")
    assert said["suite"]["draws"] == 3
    assert said["packages"]["torch"]


def test_the_gallery_shows_test_images_their_neighbours_and_the_mistakes(results: Results) -> None:
    row = row_of(results, "knn")
    with (
        np.load(results.path.parent / row["gallery"]) as shown,
        np.load(results.path.parent / "gallery" / f"{file_stem(row['task'])}.npz") as pictures,
    ):
        known = set(pictures["rows"].tolist())
        assert set(shown["sample"].tolist()) <= known
        assert set(shown["neighbours"].ravel().tolist()) <= known
        assert shown["xy"].shape == (len(shown["sample"]), 2)
        assert 0 < shown["explained"].sum() <= 1
        assert (np.diff(shown["similarity"], axis=1) <= 1e-6).all()
        assert not set(shown["neighbours"].ravel().tolist()) & set(shown["sample"].tolist())  # train, not test
        assert pictures["thumbnails"].shape == (len(known), 56, 56, 1)
    kept = arrays_of(results, row)
    wrong = kept["scores"].argmax(axis=1) != kept["targets"]
    worst = kept["rows"][wrong][np.argsort(-kept["scores"][wrong].max(axis=1), kind="stable")][:24]
    assert set(worst.tolist()) <= known


def test_a_row_of_a_protocol_of_someone_is_made_anew_when_its_code_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "protocol_of_a_test.py"
    file.write_text("def run(bench, job): ...\n")
    run = importlib.import_module(file.stem).run
    before = results_module._foreign_code(run)
    file.write_text("def run(bench, job): return 1\n")
    assert before != results_module._foreign_code(run) != ""
    assert {results_module._foreign_code(PROTOCOLS.get(name).run) for name in PROTOCOLS} == {""}
