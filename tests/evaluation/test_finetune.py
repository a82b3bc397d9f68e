"""Fine-tuning: it learns, it starts where it says, the best epoch is kept, and nothing else is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from torch import nn

from ssl_mednet.augment.views import resize
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled
from ssl_mednet.errors import ArtifactError, DataError, RecipeError
from ssl_mednet.evaluation import finetune as module
from ssl_mednet.evaluation.baselines import RepeatChannels
from ssl_mednet.evaluation.classifier import build_classifier, build_loss, class_weights, probabilities
from ssl_mednet.evaluation.finetune import Finetuned, FinetuneSection, finetune
from ssl_mednet.evaluation.schedule import Schedule
from ssl_mednet.evaluation.weights import Weights, load_weights, state_hash
from ssl_mednet.probe.linear import LinearProbe, fit_linear

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "min_steps": 0, "batch_size": 32, "precision": "float32"}


@pytest.fixture(scope="module")
def task() -> LabelledSet:
    return open_labelled("phantoms:gray?n=200&size=32&label=modality", CorpusSpec("gray", 64), quiet=True)


def weights_of(name: str) -> Weights:
    return next(iter(load_weights([name], "gray", 32, seed=0)))


def run(
    weights: Weights, task: LabelledSet, seed: int = 0, head: LinearProbe | None = None, **options: Any
) -> Finetuned:
    rows, or_start = options.pop("rows", task.splits), options.pop("or_start", False)
    section = FinetuneSection(**{**SHORT, **options})
    return finetune(weights, task, rows, section, seed=seed, device=CPU, quiet=True, head=head, or_start=or_start)


def seen(weights: Weights, task: LabelledSet, rows: np.ndarray) -> torch.Tensor:
    return weights.preprocessing.normalise(resize(task.corpus.batch(rows), weights.preprocessing.image_size))


@torch.no_grad()
def probe_of(weights: Weights, task: LabelledSet, train: np.ndarray | None = None) -> tuple[LinearProbe, np.ndarray]:
    """A probe on the frozen features, and its probabilities of the test rows."""
    splits = {**task.splits, "train": task.splits["train"] if train is None else train}
    features = {s: weights.model(seen(weights, task, r)).numpy() for s, r in splits.items()}
    labels = {s: task.labels[r] for s, r in splits.items()}
    data = features["train"], labels["train"], features["val"], labels["val"]
    probe = fit_linear(*data, num_classes=len(task.classes), multilabel=task.multilabel)
    return probe, probe.predict_proba(features["test"])


def several_findings(task: LabelledSet) -> LabelledSet:
    """The same images under two labels that do not exclude each other."""
    labels = np.stack([np.isin(task.labels, [0, 1]), np.isin(task.labels, [1, 2])], axis=1).astype(np.int8)
    return replace(task, labels=labels, classes=["one", "other"])


# --- learning -------------------------------------------------------------------------------------------------------


def test_it_learns_what_chance_does_not_know(task: LabelledSet) -> None:
    result = run(weights_of("random:test_resnet"), task, epochs=4, min_steps=40, lr=3e-3)
    scores = result.scores["test"]
    assert scores.shape == (40, 5)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert roc_auc_score(task.labels[task.splits["test"]], scores, multi_class="ovr") > 0.95
    assert [h["epoch"] for h in result.history] == [1, 2, 3, 4]
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert result.history[0]["loss"] < np.log(5) + 0.1  # a head at zero knows nothing yet, and claims nothing
    best = result.history[result.best_epoch - 1]["val_auroc"]
    assert best == max(h["val_auroc"] for h in result.history)
    assert best == pytest.approx(
        roc_auc_score(task.labels[task.splits["val"]], result.scores["val"], multi_class="ovr")
    )


def test_several_findings_an_image(task: LabelledSet) -> None:
    several = several_findings(task)
    result = run(weights_of("random:test_resnet"), several, epochs=4, min_steps=40, lr=3e-3, class_weights=True)
    assert result.scores["test"].shape == (40, 2)
    assert roc_auc_score(several.labels[several.splits["test"]], result.scores["test"]) > 0.9
    assert np.ptp(result.scores["test"].sum(axis=1)) > 0.1  # one finding does not take from the other


@pytest.mark.parametrize("precision", ["bf16", "fp16", "auto"])
def test_half_precision_trains_and_scores_in_full(precision: str, task: LabelledSet) -> None:
    full = run(weights_of("random:test_vit"), task)
    half = run(weights_of("random:test_vit"), task, precision=precision)
    assert half.history[0]["loss"] == pytest.approx(full.history[0]["loss"], abs=0.05)
    assert all(p.dtype == torch.float32 for p in half.classifier.parameters())
    with torch.no_grad():
        logits = half.classifier(seen(weights_of("random:test_vit"), task, task.splits["test"]))
    np.testing.assert_allclose(probabilities(logits, multilabel=False), half.scores["test"], atol=1e-6)


# --- where it starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_the_head_starts_as_the_probe(net: str, multilabel: bool, task: LabelledSet) -> None:
    task, weights = several_findings(task) if multilabel else task, weights_of(f"random:{net}")
    probe, expected = probe_of(weights, task)
    images = seen(weights, task, task.splits["test"])
    classifier = build_classifier(weights.model, images[:1], len(task.classes), probe)
    assert type(classifier.head) is nn.Linear
    with torch.no_grad():
        np.testing.assert_allclose(probabilities(classifier(images), multilabel), expected, atol=1e-4)


def test_training_that_does_not_move_stays_at_the_probe(task: LabelledSet) -> None:
    weights = weights_of("random:test_vit")
    probe, expected = probe_of(weights, task)
    np.testing.assert_allclose(run(weights, task, head=probe, lr=1e-12).scores["test"], expected, atol=1e-4)
    assert np.ptp(run(weights, task, lr=1e-12).scores["test"]) < 1e-6  # without a probe: nothing known


@pytest.mark.parametrize(
    ("statistics", "kept"), [("auto", (True, False)), ("kept", (True, True)), ("batch", (False,) * 2)]
)
def test_a_head_that_starts_as_a_probe_keeps_the_statistics_that_it_was_fitted_on(
    statistics: str, kept: tuple[bool, bool], task: LabelledSet
) -> None:
    """In batches of a few images batch normalisation moves the features away from a head that knows them."""
    weights = replace(weights_of("random:test_resnet"), name="runs/trained")
    before = {k: v.clone() for k, v in weights.model.state_dict().items() if "running" in k}
    for head, same in zip((probe_of(weights, task)[0], None), kept, strict=True):
        net = run(weights, task, head=head, statistics=statistics).classifier.backbone
        assert isinstance(net, nn.Module)
        after = {k: v for k, v in net.state_dict().items() if "running" in k}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before) == same
        assert not net.training


def test_an_untrained_net_has_no_statistics_to_keep(task: LabelledSet) -> None:
    """Else the baseline would train without batch normalisation, and pretraining would look better than it is."""
    weights = weights_of("random:test_resnet")
    before = {k: v.clone() for k, v in weights.model.state_dict().items() if "running" in k}
    net = run(weights, task, head=probe_of(weights, task)[0]).classifier.backbone
    assert isinstance(net, nn.Module)
    assert not any(torch.equal(before[k], v) for k, v in net.state_dict().items() if k in before)


def test_a_class_without_training_rows_stays_impossible_and_harmless(task: LabelledSet) -> None:
    train = task.splits["train"]
    train = train[task.labels[train] != 2]
    weights = weights_of("random:test_vit")
    probe, expected = probe_of(weights, task, train)
    assert probe.bias[2] == -np.inf
    rows = {**task.splits, "train": train}
    start = run(weights, task, head=probe, rows=rows, lr=1e-12)
    np.testing.assert_allclose(start.scores["test"], expected, atol=1e-4)
    trained = run(weights, task, head=probe, rows=rows, lr=1e-2, class_weights=True)
    assert (trained.scores["test"][:, 2] == 0).all()
    assert all(np.isfinite(list(h.values())).all() for h in trained.history)
    assert np.isfinite(run(weights, task, head=probe, rows=rows, precision="fp16").history[0]["loss"])


def test_a_label_that_is_always_there_stays_certain(task: LabelledSet) -> None:
    several = several_findings(task)
    always = replace(several, labels=np.maximum(several.labels, [0, 1]))
    weights = weights_of("random:test_vit")
    probe, _ = probe_of(weights, always)
    assert probe.bias[1] == np.inf
    for precision in ("float32", "fp16"):
        result = run(weights, always, head=probe, precision=precision)
        assert (result.scores["test"][:, 1] == 1).all()
        assert np.isfinite(result.history[0]["loss"])


def test_a_probe_of_other_features_is_refused(task: LabelledSet) -> None:
    probe, _ = probe_of(weights_of("random:test_vit"), task)
    with pytest.raises(ArtifactError, match=r"the probe has weights \[64, 5\]"):
        run(weights_of("random:test_resnet"), task, head=probe)


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
    logits = module._Run._logits
    monkeypatch.setattr(module._Run, "_logits", lambda run, rows: scored.append(len(rows)) or logits(run, rows))
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
    assert "fine-tuning diverged" in capsys.readouterr().err
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


# --- what it leaves alone -------------------------------------------------------------------------------------------


def test_every_parameter_of_a_wrapped_net_trains_and_the_original_does_not(task: LabelledSet) -> None:
    net = weights_of("random:test_resnet").model
    three = nn.Sequential(nn.Conv2d(3, 1, 1), net).requires_grad_(False)
    weights = replace(weights_of("random:test_resnet"), model=RepeatChannels(three, (0.5,) * 3, (0.25,) * 3).train())
    before, own = state_hash(weights.model), {k: v.clone() for k, v in weights.model.named_parameters()}
    result = run(weights, task, lr=1e-2)
    assert state_hash(weights.model) == before
    assert weights.model.training
    assert not any(p.requires_grad for p in weights.model.parameters())
    trained = dict(result.classifier.backbone.named_parameters())
    assert trained.keys() == own.keys()
    still = [k for k, v in own.items() if torch.equal(v, trained[k])]
    assert still == []


def test_the_same_seed_gives_the_same_scores_to_the_bit_and_leaves_the_generator_alone(task: LabelledSet) -> None:
    weights = weights_of("random:test_vit")
    drop = replace(weights, model=nn.Sequential(weights.model, nn.Dropout(0.2)))
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one = run(drop, task)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    two = run(drop, task)
    for split in ("val", "test"):
        np.testing.assert_array_equal(one.scores[split], two.scores[split])
    assert one.history == two.history
    assert np.abs(run(drop, task, seed=1).scores["test"] - one.scores["test"]).max() > 1e-4


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_nothing_to_train_is_refused(task: LabelledSet) -> None:
    with pytest.raises(ArtifactError, match="baseline:histogram: has no parameters, there is nothing to fine-tune"):
        run(weights_of("baseline:histogram"), task)
    with pytest.raises(DataError, match="1 train"):
        run(weights_of("random:test_vit"), task, rows={**task.splits, "train": task.splits["train"][:1]})
    with pytest.raises(RecipeError, match=r"finetune\.optimizer 'adamm'"):
        run(weights_of("random:test_vit"), task, optimizer="adamm")


def test_a_run_that_diverges_stops_and_says_where(task: LabelledSet) -> None:
    with pytest.raises(ArtifactError, match="random:test_vit on phantoms:gray: fine-tuning diverged, the") as error:
        run(weights_of("random:test_vit"), task, optimizer="momentum", lr=1e20, clip=0.0)
    assert "finetune.lr=1e+19" in error.value.hint


_RATES: list[dict[str, Any]] = [{"lr": 0}, {"lr": []}, {"lr": [1e-3, -1e-3]}, {"learning_rate": 1}]


@pytest.mark.parametrize(
    "wrong", [*_RATES, {"batch_size": 1}, {"layer_decay": 0}, {"epochs": 0}, {"min_crop": 0}], ids=str
)
def test_options_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FinetuneSection(**wrong)
    assert all(field.description for field in FinetuneSection.model_fields.values())
