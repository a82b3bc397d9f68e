"""Who is in a picture stays where it was: groups are keyed hashes, names reach no byte that is written."""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from ingest_helpers import table, write_pictures
from planted import Planter, bad_files, good_files
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


@pytest.fixture(scope="module")
def planted_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Planter, int, set[str]]:
    """A folder of good and bad files, what was planted in them, how many images they hold, and which are bad."""
    root, planter = tmp_path_factory.mktemp("planted") / "set", Planter()
    root.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom does not like the words
        return root, planter, good_files(planter, root), bad_files(planter, root)


def run(out: Path, *arguments: object) -> bytes:
    """The command line in a process of its own, with its cache and temporary files below ``out``; what it says."""
    (out / "temporary").mkdir(parents=True, exist_ok=True)
    places = {"SSL_MEDNET_CACHE": str(out / "cache"), "TMPDIR": str(out / "temporary")}
    command = [sys.executable, "-m", "ssl_mednet.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=os.environ | places, cwd=out)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout + done.stderr


def everything(out: Path) -> bytes:
    """Names and content of all files below a folder, and what the tables in them hold when they are decoded."""
    files = [path for path in out.rglob("*") if path.is_file()]
    parts = [str(path.relative_to(out)).encode() + b"\n" + path.read_bytes() for path in files]
    for corpus in {path.parent.parent for path in files if path.suffix == ".manifest"}:
        rows = table(corpus)
        texts = [name for name in rows.column_names if pa.types.is_string(rows.schema.field(name).type)]
        assert {"source", "licence", "label", "quantity"} <= set(texts)
        parts.append(f"{rows.select(texts).to_pylist()} {rows.schema.metadata}".encode())
    return b"\n".join(parts)


def test_nothing_that_the_command_line_writes_or_says_names_anyone(
    planted_set: tuple[Path, Planter, int, set[str]], tmp_path: Path
) -> None:
    source, planter, images, bad = planted_set
    assert len(planter.found(everything(source))) > 10_000, "they are found where they are"
    said = run(tmp_path, "ingest", source, "--out", "corpus", "--workers", 1)
    with (tmp_path / "corpus/quarantine.csv").open(newline="") as file:
        assert {Path(row["path"]).name for row in csv.DictReader(file)} == bad
    assert len(Corpus(tmp_path / "corpus")) == images
    said += run(tmp_path, "inspect", "corpus", "--out", "page.html")
    small = ["train.steps=2", "optim.batch_size=4", "data.image_size=32", "data.split=all"]
    said += run(tmp_path, "pretrain", "--recipe", "mae_gray.yaml", "--data", "corpus", "--out", "run", *small)
    written = everything(tmp_path)
    assert b"unknown transfer syntax" in written
    assert (tmp_path / "run/backbone/config.json").is_file()
    assert planter.found(said) == set()
    assert planter.found(written) == set()


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
    said = run(tmp_path / "out", "ingest", tmp_path / "set", "--out", "corpus", "--workers", 1)
    assert b"21 images" in said
    assert b"Zq" not in said
    assert b"Warning" not in said
    assert b"Zq J" not in everything(tmp_path / "out")


def test_a_single_image_does_not_name_the_corpus_after_its_patient(
    planted_set: tuple[Path, Planter, int, set[str]], tmp_path: Path
) -> None:
    source, planter, *_ = planted_set
    scan, volume = (next(source.rglob(f"ZQ*/ZQ*{suffix}")) for suffix in (".dcm", ".nii"))
    said = run(tmp_path, "ingest", scan, volume, "--out", "corpus", "--workers", 1)
    said += run(tmp_path, "ingest", scan, volume, "--out", "corpus", "--workers", 1)
    assert b"was there already" in said
    assert table(tmp_path / "corpus")["source"].to_pylist() == ["file"] * 3
    said += run(tmp_path, "ingest", scan.parent / "*.dcm", "--out", "corpus", "--source", "mine", "--workers", 1)
    assert [i["source"] for i in Corpus(tmp_path / "corpus").meta["ingests"]] == ["file", "mine"]
    assert b"1 of these images were in the corpus already" in said
    assert planter.found(said) == planter.found(everything(tmp_path)) == set()


def test_sets_keep_their_names_and_leave_their_paths_at_home(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "secret" / "brains", 3)
    with zipfile.ZipFile(tmp_path / "secret" / "mednist.v2.zip", "w") as archive:
        archive.write(folder / "00000.png", "a.png")
    np.savez(tmp_path / "secret" / "breast.npz", train_images=np.arange(128, dtype=np.uint8).reshape(2, 8, 8))
    sources = [folder, folder.parent / "mednist.v2.zip", folder.parent / "breast.npz", "phantoms:gray?n=2"]
    out = ingest(sources, tmp_path / "out", quiet=True, workers=1)
    names = ["brains", "mednist", "breast", "phantoms:gray"]
    assert [*dict.fromkeys(table(out.folder)["source"].to_pylist())] == names
    assert Corpus(out.folder).meta["source"] == ", ".join(names)
    written = b"".join(path.read_bytes() for path in out.folder.rglob("*") if path.is_file())
    assert b"secret" not in written


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
