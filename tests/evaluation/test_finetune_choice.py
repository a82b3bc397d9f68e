"""Fine-tuning: the best epoch and rate are kept, rows are read in their order, and losses are the textbook's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetuning import SHORT, probe_of, run, seen, weights_of

from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.errors import ArtifactError
from ssl_mednet.evaluation import finetune as module
from ssl_mednet.evaluation.classifier import build_loss, class_weights, probabilities
from ssl_mednet.evaluation.finetune import FinetuneSection
from ssl_mednet.evaluation.schedule import Schedule
from ssl_mednet.evaluation.weights import state_hash

# --- which epoch ----------------------------------------------------------------------------------------------------


def test_scores_and_state_are_those_of_the_best_epoch(task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    values, shown = iter([0.6, 0.9, 0.9, 0.5]), []

    def auroc(targets: np.ndarray, scores: np.ndarray) -> float:
        shown.append(scores.copy())
        return next(values)

    monkeypatch.setattr(module, "auroc", auroc)
    weights = weights_of("random:test_resnet")
    result = run(weights, task, epochs=4, lr=1e-2)
    equal = {epoch: result.history[epoch - 1]["val_loss"] for epoch in (2, 3)}
    assert result.best_epoch == min(equal, key=equal.__getitem__)
    assert result.note == ""
    np.testing.assert_array_equal(result.scores["val"], shown[result.best_epoch - 1])
    assert np.abs(result.scores["val"] - shown[3]).max() > 0.01  # or the check would show nothing
    for split in ("val", "test"):
        with torch.no_grad():
            logits = result.classifier(seen(weights, task, task.splits[split]))
        np.testing.assert_allclose(probabilities(logits, multilabel=False), result.scores[split], atol=1e-6)
    assert not result.classifier.training


def test_the_start_is_kept_where_no_epoch_is_better_and_left_where_one_is(
    task: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of("random:test_resnet")
    probe, expected = probe_of(weights, task)
    for first, best in ((0.9, 0), (0.4, 2)):
        values = iter([first, 0.5, 0.6])
        monkeypatch.setattr(module, "auroc", lambda *_, values=values: next(values))
        result = run(weights, task, head=probe, lr=1e-2, or_start=True)
        assert result.best_epoch == best
        assert [line["epoch"] for line in result.history] == [0, 1, 2]
        assert sorted(result.history[0]) == ["epoch", "val_auroc", "val_loss"]  # nothing was trained: no loss, no rate
        same = state_hash(result.classifier.backbone) == state_hash(weights.model)  # type: ignore[arg-type]
        assert same == (best == 0)
        assert (np.abs(result.scores["test"] - expected).max() < 1e-4) == (best == 0)


def test_of_several_rates_the_best_on_val_is_taken_and_nothing_else_changes(
    task: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, scored = weights_of("random:test_resnet"), []
    logits = module.Run._logits
    monkeypatch.setattr(module.Run, "_logits", lambda run, rows: scored.append(len(rows)) or logits(run, rows))
    alone = {lr: run(weights, task, lr=lr) for lr in (1e-9, 1e-2)}
    best = {lr: max(line["val_auroc"] for line in result.history) for lr, result in alone.items()}
    assert best[1e-2] > best[1e-9]
    del scored[:]
    for rates in ([1e-9, 1e-2], [1e-2, 1e-9]):
        result = run(weights, task, lr=rates)
        assert result.lr == result.chosen["lr"] == 1e-2
        assert result.history == alone[1e-2].history
        np.testing.assert_array_equal(result.scores["test"], alone[1e-2].scores["test"])
    assert scored.count(len(task.splits["test"])) == 2  # by the winner of each


def test_a_rate_that_diverges_does_not_end_the_others(task: LabelledSet, capsys: pytest.CaptureFixture[str]) -> None:
    said: dict[str, Any] = {"optimizer": "momentum", "clip": 0.0}
    assert run(weights_of("random:test_vit"), task, lr=[1e20, 1e-4], **said).lr == 1e-4
    assert "random:test_vit on phantoms:gray, rate 1e+20: fine-tuning diverged, the" in capsys.readouterr().err
    assert run(weights_of("random:test_vit"), task, lr=[1e-4, 1e20], **said).lr == 1e-4
    with pytest.raises(ArtifactError, match="fine-tuning diverged"):
        run(weights_of("random:test_vit"), task, lr=[1e19, 1e20], **said)


def test_val_of_one_class_chooses_by_its_loss_and_says_so(task: LabelledSet) -> None:
    val = task.splits["val"]
    rows = {**task.splits, "val": val[task.labels[val] == 0]}
    result = run(weights_of("random:test_resnet"), task, rows=rows, epochs=4, lr=1e-2)
    losses = [h["val_loss"] for h in result.history]
    assert np.isnan(result.history[0]["val_auroc"])
    assert result.best_epoch == 1 + int(np.argmin(losses))
    assert "no AUROC" in result.note
    assert min(losses) == pytest.approx(-np.log(result.scores["val"][:, 0]).mean(), rel=1e-3)


def test_test_rows_are_read_once_after_everything_else(task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[np.ndarray] = []
    batch = task.corpus.batch
    monkeypatch.setattr(task.corpus, "batch", lambda rows: read.append(rows) or batch(rows))
    run(weights_of("random:test_resnet"), task, epochs=3)
    rows = np.concatenate(read)
    test, val, train = (task.splits[s] for s in ("test", "val", "train"))
    np.testing.assert_array_equal(rows[-len(test) :], test)
    assert not np.isin(rows[: -len(test)], test).any()
    assert (np.isin(rows, val).sum(), np.isin(rows, train).sum()) == (3 * len(val), 3 * len(train) + 1)


# --- which rows -----------------------------------------------------------------------------------------------------


def test_a_single_row_left_over_does_not_break_batch_norm(task: LabelledSet) -> None:
    rows = {**task.splits, "train": task.splits["train"][:17]}
    assert run(weights_of("random:test_resnet"), task, rows=rows, batch_size=16).scores["test"].shape == (40, 5)


def test_augmentation_is_drawn_from_seed_step_and_row(task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int, tuple[int, ...]]] = []
    made: list[tuple[Any, ...]] = []
    draws, views = module.Draws, module.ViewMaker

    def spy(seed: int, step: int, rows: torch.Tensor, **more: Any) -> Any:
        drawn.append((seed, step, tuple(rows.tolist())))
        return draws(seed, step, rows, **more)

    monkeypatch.setattr(module, "Draws", spy)
    monkeypatch.setattr(module, "ViewMaker", lambda *a: made.append(a) or views(*a))
    weights = weights_of("random:test_vit")
    run(weights, task, seed=7, strength=0.3, min_crop=0.4)
    plan = Schedule.of(task.splits["train"], FinetuneSection(**SHORT), 7)
    assert drawn == [(7, step, tuple(rows)) for epoch in (1, 2) for step, rows in plan.epoch(epoch)]
    ((view,), *rest) = made[0]
    assert (view.scale, view.intensity, view.size) == ((0.4, 1.0), True, 1.0)
    assert rest == ["by_modality", 0.3, 32, weights.preprocessing.mean, weights.preprocessing.std]


# --- what it minimises ----------------------------------------------------------------------------------------------


def test_weights_of_classes_are_inverse_frequencies_with_mean_one() -> None:
    found = class_weights(np.array([0, 0, 0, 0, 1, 1, 3]), 4)
    mean = (1 / 4 + 1 / 2 + 1) / 3
    np.testing.assert_allclose(found, [1 / 4 / mean, 1 / 2 / mean, 0, 1 / mean])
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_allclose(class_weights(labels, 2), [[0.5, 0], [1.5, 1]])  # absence, presence


def test_losses_are_the_weighted_means_of_the_textbook() -> None:
    logits = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 0.0]])
    p = torch.softmax(logits, dim=1).numpy()
    surprise = -np.log(p[[0, 1, 2], [0, 1, 1]])
    targets = torch.tensor([0, 1, 1])
    assert build_loss(None, False)(logits, targets).item() == pytest.approx(surprise.mean())
    weighted = build_loss(np.array([1.5, 0.5]), False)(logits, targets).item()
    assert weighted == pytest.approx((surprise * [1.5, 0.5, 0.5]).sum() / 2.5)
    q = torch.sigmoid(logits).numpy()
    truth = np.array([[1, 0], [0, 1], [1, 1]])
    surprise = -np.log(np.where(truth == 1, q, 1 - q))
    targets = torch.from_numpy(truth)
    assert build_loss(None, True)(logits, targets).item() == pytest.approx(surprise.mean())
    table = np.array([[1.5, 0.8], [0.5, 1.2]])
    weight = np.array([[0.5, 0.8], [1.5, 1.2], [0.5, 1.2]])
    weighted = build_loss(table, True)(logits, targets).item()
    assert weighted == pytest.approx((surprise * weight).sum() / weight.sum())


def test_class_weights_are_those_of_the_training_rows(task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[np.ndarray | None] = []
    monkeypatch.setattr(module, "build_loss", lambda w, multilabel: used.append(w) or build_loss(w, multilabel))
    rows = {**task.splits, "train": task.splits["train"][:23]}
    run(weights_of("random:test_resnet"), task, rows=rows, class_weights=True)
    np.testing.assert_array_equal(used[0], class_weights(task.labels[rows["train"]], 5))
    assert used[1] is None  # val is judged as it is


def test_layers_have_their_own_rates_to_the_last_step(task: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    def spy(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = create(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append([g["lr"] for g in o.param_groups]))
        return optimizer

    create = module.create_optimizer
    monkeypatch.setattr(module, "create_optimizer", spy)
    result = run(weights_of("random:test_resnet"), task, lr=1e-2, layer_decay=0.5, warmup=0.25)
    table = np.array(rates)  # [steps, groups]
    assert len(table) == 10
    np.testing.assert_allclose(table.max(axis=1)[:3], [0.005, 0.01, 0.01])  # two steps of warmup, then the cosine
    assert table[-1].max() == 0
    np.testing.assert_allclose(table[:-1] / table[:-1].max(axis=1, keepdims=True), np.tile(table[1] / 1e-2, (9, 1)))
    assert sorted(set((table[1] / 1e-2).round(6))) == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1]
    assert result.history[0]["lr"] == table[4].max()
