"""Who is in a picture stays where it was: groups are keyed hashes, names reach no byte that is written."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ingest_helpers import table, write_pictures
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import DataError
from ssl_mednet.ingesting.hashes import keyed_hash
from ssl_mednet.ingesting.run import ingest

# fmt: off
TEXTS = (
    "PatientName", "PatientID", "OtherPatientNames", "PatientComments", "InstitutionName", "ReferringPhysicianName",
    "OperatorsName", "StudyDescription", "SeriesDescription", "AccessionNumber", "StudyID", "ImageComments",
    "PatientAddress", "DeviceSerialNumber", "ProtocolName", "RequestAttributesSequence",
)
# fmt: on


def planted(path: Path, number: int) -> list[str]:
    """A DICOM file with a word of its own in every text, also in private tags and in a sequence."""
    scan = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    words = []
    for name in TEXTS:
        word = f"Zq{number}{name[:4]}Xw{len(words)}"
        words.append(word)
        if dictionary_VR(name) == "SQ":
            inner = Dataset()
            inner.ScheduledProcedureStepDescription = word
            setattr(scan, name, [inner])
        else:
            setattr(scan, name, word)
    block = scan.private_block(0x0099, f"ZqOwner{number}", create=True)
    block.add_new(1, "LO", f"ZqPrivate{number}")
    block = scan.private_block(0x0099, "ACME", create=True)
    block.add_new(7, "LO", f"ZqSubject{number // 2}")
    scan.save_as(path)
    return [*words, f"ZqOwner{number}", f"ZqPrivate{number}", f"ZqSubject{number // 2}"]


@pytest.mark.parametrize(
    ("key", "group", "groups"),
    [
        ("", "", 12),
        ("a long random text", "", 12),
        ("", "tag:AccessionNumber", 12),
        ("a long random text", "tag:(0099,xx07,ACME)", 6),
    ],
)
def test_no_identifier_reaches_a_byte_that_is_written(
    key: str,
    group: str,
    groups: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if key:
        monkeypatch.setenv("SSL_MEDNET_GROUP_KEY", key)
    source, words = tmp_path / "set", []
    for i in range(12):
        folder = source / f"ZqFolder{i}"
        folder.mkdir(parents=True)
        words += [*planted(folder / f"ZqFile{i}.dcm", i), f"ZqFolder{i}", f"ZqFile{i}"]
    broken = source / "broken.dcm"  # its tags are read before its pixels turn out to be missing
    words += planted(broken, 99)
    broken.write_bytes(broken.read_bytes()[:-20000])
    assert len(words) > 200
    summary = ingest(source, tmp_path / "out", timeout=60, group_field=group)
    assert (summary.images, summary.quarantined) == (12, 1)
    assert len(set(Corpus(summary.folder).group)) == groups
    said = capfd.readouterr()
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    names = " ".join(str(p) for p in (tmp_path / "out").rglob("*"))
    for word in [*words, key or "no key"]:
        assert word.encode() not in written
        assert word not in said.out + said.err + names
    assert str(broken).encode() in written  # the user must find the file that cannot be read


def test_a_run_prints_nothing_of_values_that_break_the_rules(tmp_path: Path) -> None:
    """A real process, with the filters of warnings that users have; pydicom warns of such values and quotes them."""
    held = {"SeriesInstanceUID": "9.8.7.61", "StudyInstanceUID": "9.8.7.62", "SOPInstanceUID": "9.8.7.63"}
    held |= {"SOPClassUID": "9.8.7.64", "InstanceNumber": "98765", "AcquisitionNumber": "98764", "PatientAge": "098Y"}
    for i, (name, value) in enumerate(held.items()):
        for part in range(3):
            scan = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
            scan.ImagePositionPatient = [0, 0, part]
            setattr(scan, name, value)
            path = tmp_path / "set" / f"DIR{part}" / f"{i}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            scan.save_as(path)
            content = path.read_bytes().replace(value.encode(), b"Zq Jane Doe"[: len(value)])
            assert b"Zq J" in content
            path.write_bytes(content if part else content[132:])  # also without preamble
    command = [sys.executable, "-m", "ssl_mednet.cli", "ingest", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "21 images" in done.stdout
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    for said in (done.stdout, done.stderr):
        assert "Zq" not in said
        assert "Warning" not in said
    assert b"Zq J" not in written


def test_groups_are_hashed_with_the_users_key_and_match_between_corpora_of_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups(name: str, order: str) -> list[int]:
        root = write_pictures(tmp_path / name, 3)
        (root / "labels.csv").write_text(
            "path,label,group\n" + "".join(f"{i:05d}.png,a,{g}\n" for i, g in enumerate(order))
        )
        out = ingest(root, tmp_path / f"{name} out {hashlib.md5(str(keys).encode()).hexdigest()[:6]}", quiet=True)
        assert bool(out.notes) == (not keys)
        return table(out.folder)["group"].to_pylist()

    keys = ["one"]
    monkeypatch.setenv("SSL_MEDNET_GROUP_KEY", "one")
    a, b = groups("a", "ppq"), groups("b", "qrp")
    assert a[0] == a[1] == b[2]
    assert a[2] == b[0]
    assert min(a + b) >= 0
    assert a[0] == int.from_bytes(hmac.new(b"one", b"p", hashlib.sha256).digest()[:8], "big") >> 1
    monkeypatch.delenv("SSL_MEDNET_GROUP_KEY")
    (tmp_path / "key").write_text("two\n")
    monkeypatch.setenv("SSL_MEDNET_GROUP_KEY_FILE", str(tmp_path / "key"))
    keys = ["two"]
    other = groups("a", "ppq")
    assert other[0] == keyed_hash(b"two", "p") != a[0]
    monkeypatch.delenv("SSL_MEDNET_GROUP_KEY_FILE")
    keys = []
    without = groups("a", "ppq"), groups("b", "qrp")
    assert without[0][0] == without[0][1] != without[1][2]  # no key: corpora share nothing
    assert not set(without[0]) & set(a + other)


def test_files_that_lack_the_tag_have_no_group_and_others_their_usual_one(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", 2)
    for i, study in enumerate(["a", "a", None]):
        scan = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        scan.StudyID, scan.PatientID = study, f"p{i}"
        scan.save_as(root / f"{i}.dcm")
    rows = [*(f"{i:05d}.png,x,lesion {i}" for i in range(2)), *(f"{i}.dcm,x,table {i}" for i in range(3))]
    (root / "labels.csv").write_text("\n".join(["path,label,group", *rows]))
    out = ingest(root, tmp_path / "out", group_field="tag:StudyID", quiet=True)
    known = Corpus(out.folder)
    scans = known.numbers("bits") == 16
    assert sorted(known.group[scans].tolist())[0] == -1
    assert len(set(known.group[scans].tolist())) == 2
    assert len(set(known.group[~scans].tolist()) - {-1}) == 2
    assert any(note.startswith("1 images have no group: --group tag:StudyID") for note in out.notes)
    with pytest.raises(DataError, match="did you mean 'StudyID'"):
        ingest(root, tmp_path / "other", group_field="tag:StudyId", quiet=True)
    assert not (tmp_path / "other").exists()


def test_a_key_that_cannot_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_MEDNET_GROUP_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match="cannot be read"):
        ingest("phantoms:gray?n=3", tmp_path / "out", quiet=True)
    monkeypatch.setenv("SSL_MEDNET_GROUP_KEY", "")
    with pytest.raises(DataError, match="is empty"):
        ingest("phantoms:gray?n=3", tmp_path / "out", quiet=True)


def test_an_image_without_a_group_has_none(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.uint8).reshape(8, 8))
    out = ingest(tmp_path / "a.npy", tmp_path / "out", quiet=True)
    assert table(out.folder)["group"].to_pylist() == table(out.folder)["volume"].to_pylist() == [-1]
    assert out.notes == ()
