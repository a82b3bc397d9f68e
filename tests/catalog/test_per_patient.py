"""`--per-patient`: the images of a patient are counted, whatever objects they come in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import lance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_files import dicom
from small_index import put_index
from typer.testing import CliRunner

from ssl_mednet.catalog.caps import shares
from ssl_mednet.catalog.idc import Series, images_at_most
from ssl_mednet.cli import app
from ssl_mednet.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.catalog.conftest import Bucket

BY = "CC BY 4.0"


def put_series(bucket: Bucket, patient: str, uid: str, frames: list[int], **tags: object) -> str:
    """Objects of so many frames each; those of one are slices, which lie in space. The address of their series."""
    random = np.random.default_rng([*uid.encode()])
    for i, count in enumerate(frames):
        pixels = random.integers(0, 900, (count, 16, 16)[count == 1 :]).astype(np.int16)
        place = {"ImagePositionPatient": [0, 0, i], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]} if count == 1 else {}
        named = {"PatientID": patient, "SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.{i}", **tags}
        bucket.objects[f"{uid.replace('.', '-')}/{i:04d}.dcm"] = dicom(pixels, Modality="MR", **named, **place)
    return f"s3://open-data/{uid.replace('.', '-')}/*"


def ingest(out: Path, *more: str) -> list[dict[str, object]]:
    command = ["ingest", "idc:nlst", "--out", str(out), "--from", str(out.parent / "got"), "--workers", "1", "--quiet"]
    done = CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return lance.dataset(str(out)).to_table(columns=["group", "volume", "index", "licence"]).to_pylist()


def test_frames_share_the_cap_of_their_patient(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {
        ("slices", "1.2.1", BY): [1] * 12,
        ("one cine", "1.2.2", BY): [30],
        ("cines", "1.2.3", BY): [30, 2, 30],
        ("both", "1.2.4", BY): [1, 1, 1],
        ("both", "1.2.5", BY): [30],
        ("two licences", "1.2.6", BY): [30],
        ("two licences", "1.2.7", "CC BY 3.0"): [30],
        ("few", "1.2.8", BY): [3],
    }
    rows = [
        ("nlst", patient, "MR", licence, len(frames), put_series(bucket, patient, uid, frames))
        for (patient, uid, licence), frames in objects.items()
    ]
    put_index(monkeypatch, rows)
    monkeypatch.setenv("SSL_MEDNET_GROUP_KEY", "one")  # so that the two licences' groups can be compared
    found = ingest(tmp_path / "out", "--per-patient", "6")
    assert sorted(Counter(row["group"] for row in found).values()) == [3, 6, 6, 6, 6, 6]
    volumes = Counter(row["volume"] for row in found)
    # slices 6; one cine 6; cines 2 of each; both 3 and 3; two licences, one of which has what is left: 1 and 5; few 3
    assert sorted(volumes.values()) == [1, 2, 2, 2, 3, 3, 3, 5, 6, 6]
    (cine,) = (v for v in volumes if volumes[v] == 6 and max(r["index"] for r in found if r["volume"] == v) > 12)
    assert [row["index"] for row in found if row["volume"] == cine] == [2, 7, 12, 17, 22, 27], "evenly spread in time"
    assert {row["licence"] for row in found} == {"CC-BY-4.0", "CC-BY-3.0"}
    assert len(ingest(tmp_path / "out", "--per-patient", "6")) == len(found), "it was there already"
    assert len(ingest(tmp_path / "all")) == 12 + 30 + 62 + 33 + 60 + 3


def test_another_cap_of_the_same_files_is_another_ingest(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_index(monkeypatch, [("nlst", "p", "MR", BY, 1, put_series(bucket, "p", "1.2.1", [30]))])
    assert [len(ingest(tmp_path / f"{cap}", "--per-patient", str(cap))) for cap in (6, 7)] == [6, 7]
    assert len(ingest(tmp_path / "6", "--per-patient", "7")) == 13


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 60))
def test_shares_are_the_cap_or_everything_and_no_file_is_favoured(holds: list[int], most: int) -> None:
    files = {f"{i}.dcm": n for i, n in enumerate(holds)}
    taken = shares(files, most, 0)
    assert sum(taken.values()) == min(most, sum(holds))
    assert all(0 < n <= files[name] for name, n in taken.items())
    short = [taken.get(name, 0) for name, n in files.items() if taken.get(name, 0) < n]
    assert not short or max(taken.values()) - min(short) <= 1
    assert len(taken) == min(len(files), most)


def test_slides_count_as_one_and_are_not_cut() -> None:
    def one(uid: str, modality: str, take: int, megabytes: float = 1.0) -> Series:
        return Series("c", "p", uid, modality, "", f"s3://open-data/{uid}/*", take, take, megabytes)

    chosen = [one("a", "SM", 7, 900.0), one("b", "CT", 2), one("c", "US", 1)]
    assert images_at_most(chosen, 10) == {"b": 2, "c": 7}, "1 slide, 2 slices, and the largest object has the rest"
    assert images_at_most(chosen, None) == {}


def test_a_series_that_fails_for_a_while_is_not_twice_in_the_corpus(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("nlst", f"p{i}", "MR", BY, 5, put_series(bucket, f"p{i}", f"1.2.{i}", [1] * 5)) for i in range(4)]
    put_index(monkeypatch, rows)
    command = ["ingest", "idc:nlst", "--out", str(tmp_path / "out"), "--from", str(tmp_path / "got"), "--quiet"]
    bucket.down, bucket.broken = {"1-2-3/0002.dcm"}, {"1-2-2/0001.dcm"}
    with pytest.raises(DataError, match="run it again"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "out").exists()
    bucket.down = set()
    assert len(ingest(tmp_path / "out")) == 19
    bucket.broken = set()
    assert len(ingest(tmp_path / "out")) == 19
