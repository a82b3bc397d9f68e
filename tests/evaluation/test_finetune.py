"""Fine-tuning: it learns, it starts where it says, and nothing else is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from finetuning import probe_of, run, seen, several_findings, weights_of
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from torch import nn

from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.errors import ArtifactError, DataError, RecipeError
from ssl_mednet.evaluation.baselines import RepeatChannels
from ssl_mednet.evaluation.classifier import build_classifier, probabilities
from ssl_mednet.evaluation.finetune import FinetuneSection
from ssl_mednet.evaluation.weights import state_hash

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


def test_a_run_that_diverges_stops_and_names_a_rate_to_try(task: LabelledSet) -> None:
    with pytest.raises(ArtifactError, match=r"^fine-tuning diverged, the") as error:
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
