"""Published results: the shipped file is what it says, and "the same?" is answered from facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssl_mednet.errors import RecipeError
from ssl_mednet.reporting.references import alike, beside, load_references
from ssl_mednet.reporting.rows import Row


def row(**facts: Any) -> Row:
    """Ours, as near to BreastMNIST's published ResNet-18 as it gets."""
    near = {"weights": "random:resnet18", "task": "medmnist:breastmnist", "protocol": "finetune", "labels": 1.0}
    near |= {"n": 156, "n_train": 546, "n_val": 78, "classes": ["malignant", "benign"], "image_size": 28}
    near |= {"metrics": {"auroc": {"value": 0.9, "low": 0.85, "high": 0.95}}, "grouped": False, "key": "k"}
    near |= {"folder": Path(), "source": "medmnist:breastmnist?size=28", "architecture": "resnet18"}
    return Row.model_validate(near | facts)


def test_the_shipped_file_has_the_published_figures() -> None:
    references = load_references()
    assert len(references.results) == 20
    by_name = {(r.set, r.method, r.size): (r.auc, r.acc) for r in references.results}
    assert by_name["BreastMNIST", "ResNet-18", 28] == (0.901, 0.863)
    assert by_name["PneumoniaMNIST", "ResNet-50", 224] == (0.962, 0.884)
    assert by_name["RetinaMNIST", "ResNet-18", 224] == (0.710, 0.493)
    assert by_name["BloodMNIST", "ResNet-50", 28] == (0.997, 0.956)
    assert by_name["DermaMNIST", "ResNet-18", 224] == (0.920, 0.754)
    assert "10.1038/s41597-022-01721-8" in references.sources["medmnist_v2"]


def answers(ours: Row, method: str = "ResNet-18", size: int = 28) -> tuple[str, str]:
    pairs = beside(load_references(), [ours])
    one = next(p for p in pairs if (p.published.method, p.published.size) == (method, size))
    return one.same_images, one.same_protocol


def test_the_same_is_called_the_same_and_no_more() -> None:
    images, protocol = answers(row())
    assert images.startswith("Yes")
    assert protocol.startswith("The same kind")  # never a bare yes: the schedule is ours
    assert "resnet18" in protocol
    assert "ResNet-18" in protocol


@pytest.mark.parametrize(
    ("facts", "images"),
    [
        ({"source": "medmnist:breastmnist?size=224"}, "No: .*at 224 px, not 28 px"),
        ({"image_size": 64}, "Nearly: .*resized from 28 to 64 px"),
        ({"n_train": 500}, "No: 500 instead of 546 training images"),
        ({"n": 150, "splits_made": ["val"]}, "No: 150 instead of 156 test images; the val split was made here"),
        ({"source": "/data/breastmnist.npz", "task": "breastmnist"}, "Not certain"),
        ({"source": "busi_us.zip", "task": "busi_us"}, "No: source of BreastMNIST, but three classes"),
    ],
)
def test_whatever_differs_in_the_images_is_named(facts: dict[str, Any], images: str) -> None:
    import re

    said = answers(row(**facts))[0]
    assert re.match(images, said), said


@pytest.mark.parametrize(
    ("facts", "protocol"),
    [
        ({"protocol": "linear"}, "No: linear probe of an untrained network"),
        ({"weights": "runs/gray"}, "No: fine-tuning that starts from pretrained weights"),
        ({"weights": "baseline:histogram", "protocol": "knn"}, "No: nearest neighbours of a simple baseline"),
        ({"labels": 0.1}, "No: fine-tuning with 10\u00a0% of the labels"),
    ],
)
def test_whatever_differs_in_the_protocol_is_named(facts: dict[str, Any], protocol: str) -> None:
    assert answers(row(**facts))[1].startswith(protocol)


def test_ours_beside_it_is_the_nearest_not_the_best() -> None:
    best = row(protocol="linear", weights="runs/gray", metrics={"auroc": {"value": 0.99}})
    few = row(labels=0.01, metrics={"auroc": {"value": 0.95}})
    pairs = beside(load_references(), [best, few, row()])
    assert {p.row.key for p in pairs} == {row().key}
    assert all(p.row.protocol == "finetune" and p.row.all_labels for p in pairs)
    few_shot = row(protocol="few_shot_finetune", labels=None, shots=10, weights="runs/gray", key="few")
    others = [row(protocol="majority", weights="baseline:majority"), row(protocol="robustness")]
    assert {p.row.key for p in beside(load_references(), [*others, few_shot])} == {"few"}
    assert beside(load_references(), others) == []
    assert beside(load_references(), [row(task="skin", source="skin.zip")]) == []
    assert beside(load_references(), []) == []


def test_the_same_answers_are_given_once() -> None:
    pairs = beside(load_references(), [row(task="busi_us", source="busi_us.zip")])
    assert [len(group) for group in alike(pairs)] == [2, 2]  # the protocol's answer names the network
    pairs = beside(load_references(), [row(task="busi_us", source="busi_us.zip", protocol="linear")])
    assert [len(group) for group in alike(pairs)] == [4]


def test_a_file_that_does_not_explain_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = "kind: references\nprotocols: {}\nsets: {}\nsources: {}\nresults: [{set: X, size: 28, method: m, "
    path.write_text(text + "protocol: p, auc: 0.9, acc: 0.9, source: s}]\n")
    with pytest.raises(RecipeError, match="'X' is not explained"):
        load_references(path)
    path.write_text(text + "protocol: p, auc: 9, acc: 0.9, source: s}]\n")
    with pytest.raises(RecipeError, match=r"results.0.auc"):
        load_references(path)
