"""A model as it is loaded: probabilities are those of its head at its temperature, and a damaged one is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import expit, softmax
from torch import nn

from ssl_mednet.classifying.fit import Fitted
from ssl_mednet.classifying.model import Model, load_model
from ssl_mednet.classifying.unlike import Unlike
from ssl_mednet.errors import ArtifactError


def probabilities(bias: list[float], temperature: float, multilabel: bool) -> np.ndarray:
    weight, features = torch.zeros(len(bias), 2), torch.ones(1, 2)
    unlike = Unlike(np.zeros((1, 2), np.float32), np.eye(2, dtype=np.float32))
    about = {"multilabel": multilabel, "temperature": temperature}
    model = Model(Path(), nn.Identity(), weight, torch.tensor(bias), unlike, about)
    (row,) = model.probabilities(features)
    return row


def test_distances_are_those_of_mahalanobis_to_the_nearest_class() -> None:
    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=(60, 8)), np.arange(60) % 3
    unlike = Unlike.fit(x, labels)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    inverse = unlike.precision.astype(np.float64)
    each = cdist(unit, unlike.means.astype(np.float64), "mahalanobis", VI=(inverse + inverse.T) / 2) ** 2
    assert np.allclose(unlike.distances(x), each.min(axis=1), rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("bias", [[0.0, -60.0, 1.0], [90.0, -90.0, 30.0]])
def test_probabilities_are_of_the_logits_over_the_temperature(bias: list[float], temperature: float) -> None:
    z = np.array(bias, np.float64) / temperature
    np.testing.assert_allclose(probabilities(bias, temperature, False), softmax(z), rtol=1e-6)
    np.testing.assert_allclose(probabilities(bias, temperature, True), expit(z), rtol=1e-6)


def test_an_infinite_bias_is_never_or_certain() -> None:
    inf = float("inf")
    for temperature in (0.1, 50.0):
        assert probabilities([1.0, -inf, 1.0], temperature, False).tolist() == [0.5, 0, 0.5]
        assert probabilities([1.0, inf, -inf], temperature, False).tolist() == [0, 1, 0]
        assert probabilities([0.0, inf, -inf], temperature, True).tolist() == [0.5, 1, 0]


def test_a_model_computes_as_it_was_measured(fitted: Fitted) -> None:
    """Layers in another layout round otherwise, which tips scores that lie at a threshold."""
    layers = [m for m in load_model(fitted.folder).backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) > 5
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in layers)


def test_a_damaged_number_is_not_hidden() -> None:
    assert np.isnan(probabilities([1.0, float("nan")], 1.0, False)).all()


@pytest.mark.parametrize("key", ["protocol", "classes", "temperature", "thresholds", "modalities", "unlike", "format"])
def test_a_model_without_a_part_of_its_description_is_refused(key: str, fitted: Fitted, tmp_path: Path) -> None:
    folder = shutil.copytree(fitted.folder, tmp_path / "m")
    about = json.loads((folder / "model.json").read_text())
    del about[key]
    (folder / "model.json").write_text(json.dumps(about))
    with pytest.raises(ArtifactError, match=f"cannot be read: KeyError: '{key}'"):
        load_model(folder)
