"""What files do not say, the model or the user says: a CT without a modality is shown as it was in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from made_files import dicom
from torch import Tensor, nn
from typer.testing import CliRunner
from xray_phantoms import xray

from ssl_mednet import finetune, predict
from ssl_mednet.classifying.model import Model, load_model
from ssl_mednet.classifying.predict import Predictions
from ssl_mednet.cli import app
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.errors import DataError
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.weights import load_weights

SLICES = 3


def ct(number: int, lesion: bool) -> nib.Nifti1Image:
    """A body of water in air, with metal, and with more contrast inside where there is a lesion; Hounsfield units."""
    rng = np.random.default_rng(number)
    x, y = np.mgrid[-1:1:40j, -1:1:40j]
    plane = np.where(x**2 + y**2 < 0.8, 40.0, -1000.0)
    plane[x**2 + y**2 < 0.2] = 180 if lesion else 10
    plane[(abs(x) < 0.05) & (y > 0.6)] = 2500
    volume = plane[..., None] + rng.normal(0, 10, (40, 40, SLICES))
    return nib.Nifti1Image(volume.astype(np.int16), np.diag([1, 1, 5, 1]))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volumes")
    lines = ["path,label,group"]
    for number in range(20):
        lesion = number % 2 == 1
        nib.save(ct(number, lesion), root / f"{number}.nii.gz")
        lines.append(f"{number}.nii.gz,{'lesion' if lesion else 'normal'},p{number}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def of_ct(backbone: Path, volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    made = finetune(backbone, volumes, tmp_path_factory.mktemp("m") / "ct", "linear", modality="ct", quiet=True)
    return load_model(made.folder)


def of_several(model: Model, *kinds: str) -> Model:
    return replace(model, about=model.about | {"modalities": list(kinds)})


def seen_by(net: nn.Module) -> list[Tensor]:
    """Filled with what the net is shown from now on."""
    shown: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach().clone()))
    return shown


def by_name(found: Predictions) -> dict[str, str]:
    return {Path(file).name: reason for file, reason in found.refused}


def test_a_ct_is_shown_as_in_training(
    of_ct: Model, backbone: Path, volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_MEDNET_CACHE", str(tmp_path))  # nothing is known of the features yet
    task = open_labelled(volumes, CorpusSpec("gray", 256, "ct"), True)
    (weights,) = load_weights([str(backbone)], "gray", None, 0)
    in_training = seen_by(weights.model)
    extract(weights, task.corpus, np.arange(len(task.corpus)), torch.device("cpu"), True)
    asked = seen_by(of_ct.backbone)
    found = predict(of_ct, [volumes], quiet=True)
    assert len(found.rows) == 20 * SLICES
    assert torch.equal(torch.cat(asked), torch.cat(in_training))
    assert found.unlike <= 0.1 * len(found.rows)


def test_the_word_of_the_user_and_of_the_table_count(of_ct: Model, tmp_path: Path) -> None:
    """Of the model alone nobody would know: it was made on two kinds."""
    root = tmp_path / "new"
    root.mkdir()
    nib.save(ct(50, True), root / "new.nii.gz")
    model = of_several(of_ct, "ct", "xray")
    (expected, *_) = predict(of_ct, [root], quiet=True).rows
    assert predict(model, [root], modality="ct", quiet=True).rows[0] == expected
    (root / "labels.csv").write_text("path,modality\nnew.nii.gz,ct\n")
    assert predict(model, [root], quiet=True).rows[0] == expected
    (root / "labels.csv").write_text("path,modality\nnew.nii.gz,generic_gray\n")  # says nothing
    assert predict(of_ct, [root], quiet=True).rows[0] == expected
    refused = predict(model, [root / "new.nii.gz"], modality="mri", quiet=True).refused
    assert refused == [(str(root / "new.nii.gz"), "is mri, the model was made on ct, xray")]


def test_what_may_be_ct_or_not_is_refused(of_ct: Model, tmp_path: Path) -> None:
    model = of_several(of_ct, "ct", "generic_gray", "mri")
    nib.save(ct(50, True), tmp_path / "ct.nii.gz")
    positive = np.asarray(ct(50, True).dataobj) + 1000
    nib.save(nib.Nifti1Image(positive.astype(np.int16), np.diag([1, 1, 5, 1])), tmp_path / "other.nii.gz")
    (tmp_path / "ct.dcm").write_bytes(dicom(xray(1), Modality="CT"))
    found = predict(model, [tmp_path], quiet=True)
    reason = by_name(found)
    assert reason.keys() == {"ct.nii.gz"}
    assert "--modality ct" in reason["ct.nii.gz"]
    assert "ct, generic_gray, mri" in reason["ct.nii.gz"]
    assert {Path(row.file).name for row in found.rows} == {"other.nii.gz", "ct.dcm"}  # shown in one way whatever it is
    assert not predict(model, [tmp_path], modality="ct", quiet=True).refused
    assert not predict(of_several(of_ct, "mri", "xray"), [tmp_path / "ct.nii.gz"], quiet=True).refused


def test_a_modality_is_one_that_is_known(of_ct: Model) -> None:
    with pytest.raises(DataError, match="did you mean 'mri'"):
        predict(of_ct, ["x.png"], modality="mrj", quiet=True)
    arguments = ["predict", "x.png", "--model", str(of_ct.folder), "--modality", "mrj"]
    result: Any = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, DataError)
