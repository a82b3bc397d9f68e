"""A corpus from its recipe: caps are kept, what is missing is told, a killed run goes on, draws follow weights."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ingest_helpers import same_content, table, write_pictures
from made_files import dicom, picture, pyramid
from PIL import Image

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import DataError, IngestError, RecipeError
from ssl_mednet.ingesting.from_recipe import ingest_recipe
from ssl_mednet.ingesting.run import Way, ingest
from ssl_mednet.pretraining.build import with_weights
from ssl_mednet.recipe import load_recipe

GRAY = """
name: small
channels: gray
store: {size: 32}
weights: {mri: 0.5, ultrasound: 0.3, ct: 0.15, oct: 0.05}
parts:
  - {catalog: acdc, per_volume: 5, limit: 12}
  - {catalog: echonet_dynamic, per_volume: 8}
  - {catalog: busi, limit: 6}
  - {catalog: tdsc_abus, per_volume: 3}
"""
COLOR = """
name: small
channels: color
store: {size: 64, quality: 90}
weights: {histopathology: 0.6, endoscopy: 0.4}
parts:
  - {catalog: camelyon16, tiles: 3}
  - {catalog: ldpolypvideo, per_volume: 4}
  - {catalog: gastrohun}
"""


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four MRI volumes, twenty ultrasound pictures, and a CT series; one set is not there."""
    root = tmp_path_factory.mktemp("gray")
    random = np.random.default_rng(0)
    for patient in range(4):
        folder = root / f"acdc/patient{patient:03d}"
        folder.mkdir(parents=True)
        voxels = random.integers(0, 900, (20, 24, 9)).astype(np.int16)
        voxels[..., 0] = 0  # an empty slice, which is no image
        nibabel.save(
            nibabel.Nifti1Image(voxels, np.diag([1, 1, 8, 1])), folder / f"patient{patient:03d}_frame01.nii.gz"
        )
    write_pictures(root / "busi", 20)
    (root / "tdsc_abus").mkdir()
    for i in range(10):
        tags = {"SeriesInstanceUID": "1.2.7", "ImagePositionPatient": [0, 0, 3 * i], "InstanceNumber": 10 - i}
        orientation = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SOPInstanceUID": f"1.2.7.{i}", "Modality": "CT"}
        pixels = np.full((16, 16), 100 * i, np.int16) + random.integers(0, 9, (16, 16), dtype=np.int16)
        scan = dicom(pixels, **tags, **orientation, RescaleSlope=1, RescaleIntercept=0)
        (root / f"tdsc_abus/{9 - i:03d}.dcm").write_bytes(scan)
    (root / "recipe.yaml").write_text(GRAY)
    return root


def built(root: Path, out: Path) -> Corpus:
    summary = ingest_recipe(root / "recipe.yaml", out, root, Way(workers=2), quiet=True)
    return Corpus(summary.folder)


def test_caps_are_kept_and_what_is_not_there_is_told(gray: Path, tmp_path: Path) -> None:
    summary = ingest_recipe(gray / "recipe.yaml", tmp_path / "out", gray, Way(workers=2), quiet=True)
    corpus = Corpus(summary.folder)
    assert corpus.modalities(corpus.rows()) == {"mri": 12, "ultrasound": 6, "ct": 3}
    (missing,) = summary.missing
    assert re.match(r"catalog:echonet_dynamic: .*does not exist \(.*agreement.*http.*--from DIR\)", missing)
    rows = table(summary.folder).to_pylist()
    slices = Counter(row["volume"] for row in rows if row["source"] == "acdc")
    assert sorted(slices.values()) == [2, 5, 5]
    for volume, count in slices.items():
        taken = [row["index"] for row in rows if row["volume"] == volume]
        assert taken == ([1, 3, 5, 6, 8] if count == 5 else [3, 7]), "evenly spread over the eight that are not empty"
    ct = [row["index"] for row in rows if row["source"] == "tdsc_abus"]
    assert ct == [1, 5, 8], "in space, whatever the names of the files say"
    assert corpus.meta["weights"] == {"mri": 0.5, "ultrasound": 0.3, "ct": 0.15, "oct": 0.05}
    assert ingest_recipe(gray / "recipe.yaml", tmp_path / "out", gray, Way(workers=1), quiet=True).already


def test_a_limit_draws_by_name_and_seed_and_not_by_order(gray: Path, tmp_path: Path) -> None:
    def drawn(seed: int, more: int = 0) -> set[bytes]:
        root = tmp_path / f"{seed} {more}"
        write_pictures(root / "busi", 20 + more)
        (root / "recipe.yaml").write_text(
            f"{{name: a, channels: gray, seed: {seed}, weights: {{ultrasound: 1}},"
            " parts: [{catalog: busi, limit: 6}]}"
        )
        return set(table(built(root, root / "out").folder)["sha256"].to_pylist())

    first = drawn(0)
    assert len(first) == 6
    assert first != drawn(1)
    assert len(first & drawn(0, more=1)) >= 5, "another file takes the place of one at most"


def test_tiles_of_slides_and_frames_of_videos_are_counted(tmp_path: Path) -> None:
    (tmp_path / "camelyon16").mkdir()
    (tmp_path / "camelyon16/a.tif").write_bytes(pyramid(picture(), 0.5))
    for video in ("one", "two"):
        for i in range(10):
            (tmp_path / f"ldpolypvideo/{video}").mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"ldpolypvideo/{video}/{i}.png")
    (tmp_path / "recipe.yaml").write_text(COLOR)
    corpus = built(tmp_path, tmp_path / "out")
    assert corpus.modalities(corpus.rows()) == {"histopathology": 3, "endoscopy": 8}


def test_a_killed_run_goes_on_to_the_same_corpus(gray: Path, tmp_path: Path) -> None:
    whole = built(gray, tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "ssl_mednet.cli", "ingest", "--recipe", str(gray / "recipe.yaml"), "--quiet"]
    command += ["--from", str(gray), "--out", str(out), "--workers", "1"]
    for versions in (0, 1):  # in the first set; after a set was committed
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len([*out.glob("_versions/*.manifest")]) < versions or not (out / ".ingest.lock").exists():
            assert running.poll() is None, "it was not killed"
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "21 in all" in done.stdout
    assert "missing: 1 of what the recipe names" in done.stdout
    assert "- catalog:echonet_dynamic" in done.stdout
    assert same_content(out, whole.folder)
    assert Corpus(out).meta["fingerprint"] == whole.meta["fingerprint"]
    assert Corpus(out).meta["weights"] == whole.meta["weights"]


def test_one_bad_set_does_not_stop_the_others_but_a_bad_corpus_does(gray: Path, tmp_path: Path) -> None:
    root = tmp_path / "some"
    write_pictures(root / "busi", 3)
    (root / "acdc").mkdir()
    (root / "acdc/notes.txt").write_text("no image")
    write_pictures(root / "tdsc_abus", 1)
    (root / "tdsc_abus/a.nii").write_bytes(b"x")
    (root / "recipe.yaml").write_text(GRAY.replace("tdsc_abus, per_volume: 3", "tdsc_abus, limit: 3"))
    summary = ingest_recipe(root / "recipe.yaml", tmp_path / "out", root, Way(workers=1), quiet=True)
    assert summary.images == 3
    assert [line.split(":")[1 if line.startswith("catalog") else 0] for line in summary.missing] == [
        "acdc", "echonet_dynamic", "tdsc_abus",
    ]  # fmt: skip
    assert "state per_volume beside limit" in summary.missing[2]
    with pytest.raises(IngestError, match="did you mean 'ray'"):
        ingest_recipe(gray / "recipe.yaml", tmp_path / "other", gray, Way(engine="rey"), quiet=True)
    (root / "recipe.yaml").write_text(COLOR)
    with pytest.raises(DataError, match="none of its sets can be had"):
        ingest_recipe(root / "recipe.yaml", tmp_path / "color", root, quiet=True)
    (root / "recipe.yaml").write_text(COLOR.replace("gastrohun", "busi"))
    with pytest.raises(RecipeError, match="busi is gray"):
        ingest_recipe(root / "recipe.yaml", tmp_path / "color", root, quiet=True)
    assert not (tmp_path / "color").exists()


def test_training_draws_by_the_weights_of_the_corpus_and_records_them(gray: Path, tmp_path: Path) -> None:
    corpus = built(gray, tmp_path / "out")
    recipe = load_recipe({"data": {"source": str(corpus.folder), "sampling": "weights"}})
    assert with_weights(recipe, corpus).data.weights == corpus.meta["weights"]
    stated = load_recipe({"data": {"sampling": "weights", "weights": {"ct": 1.0}}})
    assert with_weights(stated, corpus).data.weights == {"ct": 1.0}
    write_pictures(tmp_path / "more", 2)
    ingest(tmp_path / "more", corpus.folder, quiet=True, workers=1)
    assert Corpus(corpus.folder).meta["weights"] == corpus.meta["weights"], "adding to a corpus keeps them"
    plain = Corpus(ingest(tmp_path / "more", tmp_path / "plain", quiet=True, workers=1).folder)
    with pytest.raises(RecipeError, match="states none"):
        with_weights(recipe, plain)
    with pytest.raises(RecipeError, match="did you mean 'ct'"):
        load_recipe({"data": {"sampling": "weights", "weights": {"ctt": 1.0}}})
    with pytest.raises(RecipeError, match="sampling=weights"):
        load_recipe({"data": {"weights": {"ct": 1.0}}})
