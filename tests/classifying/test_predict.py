"""Asking a model: any format, a row a slice; what is unlike is flagged, what does not fit refused with the reason."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from made_files import dicom
from PIL import Image
from xray_phantoms import SIDE, xray

from ssl_mednet import finetune, predict
from ssl_mednet.classifying.fit import Fitted
from ssl_mednet.classifying.model import load_model
from ssl_mednet.classifying.predict import Predictions
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.errors import ArtifactError, UserError
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.weights import load_weights
from ssl_mednet.ingesting.run import ingest


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of what people have: pictures, DICOM, a volume, an archive, and what is none of these."""
    root = tmp_path / "files"
    root.mkdir()
    Image.fromarray(xray(101)).save(root / "bright.png")
    Image.fromarray(xray(102, dark=True)).save(root / "dark.png")
    tags = {"Modality": "DX", "PatientName": "Doe^Jane", "PatientID": "4711"}
    (root / "xray.dcm").write_bytes(dicom(xray(103).astype(np.uint16) * 257, **tags))
    (root / "cine.dcm").write_bytes(dicom(np.stack([xray(104), xray(105)]), **tags))
    (root / "ct.dcm").write_bytes(dicom(xray(106), **tags | {"Modality": "CT"}))
    volume = np.stack([xray(n).T for n in range(107, 110)], axis=-1)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), root / "volume.nii.gz")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(root / "color.png")
    (root / "broken.png").write_bytes((root / "bright.png").read_bytes()[:60])
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as file:
        file.write(root / "dark.png", "a/dark.png")
        file.writestr("a/empty.png", b"")
    return root


def test_every_slice_gets_a_row_and_no_file_ends_the_run(fitted: Fitted, files: Path, tmp_path: Path) -> None:
    found = predict(fitted.folder, [files, tmp_path / "more.zip", tmp_path / "nowhere.png"], quiet=True)
    rows = {(Path(row.file).name, row.index): row for row in found.rows}
    wanted = {"bright.png": 1, "dark.png": 1, "xray.dcm": 1, "cine.dcm": 2, "volume.nii.gz": 3, "more.zip!a": 0}
    assert {k for k in rows if not k[0].startswith("more")} == {(n, i) for n, k in wanted.items() for i in range(k)}
    assert sum(row.file.endswith("more.zip!a/dark.png") for row in found.rows) == 1
    assert rows["bright.png", 0].predicted == "bright"
    assert rows["dark.png", 0].predicted == "dark"
    assert all(abs(sum(row.probabilities.values()) - 1) < 1e-6 for row in found.rows)
    refused = {Path(file).name: reason for file, reason in found.refused}
    assert refused.keys() == {"ct.dcm", "color.png", "broken.png", "empty.png", "nowhere.png"}
    assert refused["ct.dcm"] == "is ct, the model was made on xray"
    assert refused["color.png"] == "is in color, the model takes gray images"
    assert "0 bytes" in refused["empty.png"]


def test_one_frame_in_color_does_not_end_its_file(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.repeat(np.stack([xray(n) for n in range(110, 116)])[..., None], 3, axis=-1)
    frames[2, :8, :8] = (255, 0, 0)
    tifffile.imwrite(tmp_path / "~cine.tif", frames, photometric="rgb")
    monkeypatch.chdir(tmp_path)
    found = predict(fitted.folder, ["~cine.tif"], quiet=True)
    assert [row.index for row in found.rows] == [0, 1, 3, 4, 5]
    assert [reason for _, reason in found.refused] == ["is in color, the model takes gray images"]
    summary = ingest("~cine.tif", tmp_path / "corpus", workers=1, quiet=True)
    assert (summary.images, summary.quarantined) == (5, 1)


def test_tables_hold_the_name_of_the_file_and_nothing_else_of_it(fitted: Fitted, files: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "json"):
        predict(fitted.folder, [files], tmp_path / f"p.{suffix}", quiet=True)
    texts = [(tmp_path / f"p.{suffix}").read_text() for suffix in ("csv", "json")]
    assert not any(word in text for text in texts for word in ("Doe", "Jane", "4711"))
    lines = list(csv.DictReader(texts[0].splitlines()))
    content = json.loads(texts[1])
    assert len(lines) == len(content["predictions"]) + len(content["refused"]) == 11
    assert list(lines[0]) == [
        "file",
        "index",
        "predicted",
        "p_bright",
        "p_dark",
        "distance",
        "unlike_training",
        "refused",
    ]
    assert float(lines[0]["p_dark"]) == pytest.approx(content["predictions"][0]["probabilities"]["dark"], abs=1e-6)


def test_an_image_is_seen_as_in_training(fitted: Fitted, backbone: Path, labelled: Path) -> None:
    task = open_labelled(labelled, CorpusSpec("gray", 256), True)
    (weights,) = load_weights([str(backbone)], "gray", None, 0)
    features = extract(weights, task.corpus, np.arange(len(task.corpus)), torch.device("cpu"), True)
    model = load_model(fitted.folder)
    expected = model.probabilities(torch.from_numpy(features))[:, 1]
    found = predict(model, [labelled], quiet=True)
    assert [row.probabilities["dark"] for row in found.rows] == pytest.approx(expected.tolist(), abs=1e-4)


def test_noise_is_unlike_and_images_of_the_kind_are_not(fitted: Fitted, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("alike", "noise"):
        (tmp_path / kind).mkdir()
        for n in range(20):
            pixels = xray(200 + n, n % 2 == 1) if kind == "alike" else rng.integers(0, 256, (SIDE, SIDE), np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{n}.png")
    assert share(predict(fitted.folder, [tmp_path / "noise"], quiet=True)) == 1.0
    assert share(predict(fitted.folder, [tmp_path / "alike"], quiet=True)) <= 0.15


@pytest.mark.data
def test_a_model_of_chest_x_rays_flags_other_parts_of_the_body(data_root: Path, backbone: Path, tmp_path: Path) -> None:
    """Real images, few of each: what is flagged of its own test images, of brain MRI and breast ultrasound."""
    few(data_root / "kermany_cxr.zip", tmp_path / "train", ("train",), 60)
    model = finetune(backbone, tmp_path / "train", tmp_path / "m", "linear", quiet=True).folder
    flagged = {}
    for name in ("kermany_cxr", "brain_mri", "busi_us"):
        few(data_root / f"{name}.zip", tmp_path / name, ("val",), 40)
        (tmp_path / name / "labels.csv").unlink()
        flagged[name] = share(predict(model, [tmp_path / name], quiet=True))
    assert flagged["kermany_cxr"] <= 0.1
    assert min(flagged["brain_mri"], flagged["busi_us"]) >= 0.5, flagged


def few(archive: Path, out: Path, splits: tuple[str, ...], each: int) -> None:
    """A folder with some images of each class of these splits."""
    with zipfile.ZipFile(archive) as file:
        rows = list(csv.DictReader(file.read("labels.csv").decode().splitlines()))
        taken: list[dict[str, str]] = []
        for label in sorted({r["label"] for r in rows}):
            taken += [r for r in rows if r["split"] in splits and r["label"] == label][:each]
        for row in taken:
            (out / row["path"]).parent.mkdir(parents=True, exist_ok=True)
            (out / row["path"]).write_bytes(file.read(row["path"]))
    lines = [f"{r['path']},{r['label']},{r['group']},{r['modality']}" for r in taken]
    (out / "labels.csv").write_text("\n".join(["path,label,group,modality", *lines]) + "\n")


def share(found: Predictions) -> float:
    assert not found.refused
    return found.unlike / len(found.rows)


def test_mistakes_are_told(fitted: Fitted, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        predict(tmp_path / "nowhere", ["x.png"], quiet=True)
    with pytest.raises(UserError, match=r"\.csv or \.json"):
        predict(fitted.folder, ["x.png"], "out.xls", quiet=True)
    with pytest.raises(UserError, match="name the files"):
        predict(fitted.folder, [], quiet=True)
    assert predict(fitted.folder, ["nope.png"], quiet=True).refused == [("nope.png", "no such file or folder")]


def test_a_fine_tuned_model_tells_noise_by_the_net_it_was_before(
    backbone: Path, labelled: Path, tmp_path: Path
) -> None:
    options = ["finetune.epochs=2", "finetune.min_steps=20", "finetune.batch_size=16"]
    made = finetune(backbone, labelled, tmp_path / "m", "finetune", overrides=options, quiet=True)
    model = load_model(made.folder)
    assert model.reference is not None
    rng, noise = np.random.default_rng(0), tmp_path / "noise"
    noise.mkdir()
    for n in range(10):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(noise / f"{n}.png")
    assert share(predict(model, [noise], quiet=True)) == 1.0
    assert share(predict(model, [labelled], quiet=True)) <= 0.2
