"""MedMNIST by name: the facts, where the file is looked for, what is read, and what is said when it is not there.

The files are small ones made here, with facts made for them: their checksums are tested as strictly as official ones.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from ssl_mednet.data import medmnist
from ssl_mednet.data.corpus import CorpusSpec, open_corpus
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.data.medmnist import FACTS, SIZES, MedMnistSource, read_facts
from ssl_mednet.data.sources import SPLITS, open_source
from ssl_mednet.errors import DataError
from ssl_mednet.imaging.modality import CHANNEL_COUNT, MODALITIES
from ssl_mednet.recipe import read_yaml

GRAY, COLOR = CorpusSpec("gray", 256), CorpusSpec("color", 256, convert=True)  # as in the suite
ROWS = {"train": 30, "val": 10, "test": 20}
SETS = {  # name: classes, several findings a row, channels, side
    "bloodmnist": (8, False, 3, 28),
    "chestmnist": (14, True, 1, 28),
    "retinamnist": (5, False, 3, 28),
    "organamnist": (11, False, 1, 64),
}


def arrays(name: str, fortran: bool = False) -> dict[str, np.ndarray]:
    """A set with MedMNIST's keys, shapes and types; a row's label is its number, so that every class occurs."""
    classes, several, channels, side = SETS[name]
    generator, made = np.random.default_rng(len(name)), {}
    for split, n in ROWS.items():
        shape = (n, side, side, 3) if channels == 3 else (n, side, side)
        images = generator.integers(0, 256, shape, dtype=np.uint8)
        images[0] = 240  # empty background: a gray picture, in a color set too
        labels = (np.arange(n) % (classes + several))[:, None]
        if several:  # row 0 has no finding, row i the first i
            labels = (np.arange(classes)[None] < labels).astype(int)
        made[f"{split}_images"] = np.asfortranarray(images) if fortran else images
        made[f"{split}_labels"] = labels.astype(np.uint8)
    return made


class Mirror:
    """A folder of files behind a web server, and facts that give their checksums."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(self, *args: object) -> None:
                mirror.asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, name: str, fortran: bool = False) -> Path:
        side = SETS[name][3]
        path = self.folder / (f"{name}.npz" if side == 28 else f"{name}_{side}.npz")
        np.savez_compressed(path, **arrays(name, fortran))
        content = yaml.safe_load(FACTS.read_text())
        content["sets"][name]["md5"][side] = hashlib.md5(path.read_bytes()).hexdigest()
        content["sets"][name]["rows"] = ROWS
        facts = self.folder / f"facts {name} {fortran}.yaml"
        facts.write_text(yaml.safe_dump(content, sort_keys=False))
        self.facts = facts
        return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no shared folder, no proxy."""
    monkeypatch.setenv("SSL_MEDNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSL_MEDNET_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    (tmp_path / "mirror").mkdir()
    running = Mirror(tmp_path / "mirror")
    monkeypatch.setenv("SSL_MEDNET_MEDMNIST_URL", running.url + "/")
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


def serve(mirror: Mirror, name: str, monkeypatch: pytest.MonkeyPatch, fortran: bool = False) -> Path:
    path = mirror.add(name, fortran)
    monkeypatch.setattr(medmnist, "FACTS", mirror.facts)
    return path


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a mirror that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("SSL_MEDNET_MEDMNIST_URL", url)
    monkeypatch.setattr("ssl_mednet.data.download.sleep", lambda seconds: None)
    return url


def test_the_facts_are_complete_and_fit_what_this_toolkit_knows() -> None:
    _, sets = read_facts(FACTS)
    assert len(sets) == 12
    sums = [md5 for facts in sets.values() for md5 in facts.md5.values()]
    assert len(set(sums)) == 48
    assert all(len(md5) == 32 and set(md5) <= set("0123456789abcdef") for md5 in sums)
    for name, facts in sets.items():
        assert tuple(facts.md5) == SIZES
        assert facts.title.lower() == name
        assert CHANNEL_COUNT[MODALITIES[facts.modality].channels] == facts.channels
        assert tuple(facts.rows) == SPLITS
        assert len(set(facts.classes)) == len(facts.classes) >= 2
        assert not any("|" in c for c in facts.classes)
        assert facts.licence.startswith("CC BY")
    # The paper's abstract counts 708,069; release 2.2.4 took 107 blank pictures out of the three Organ sets.
    assert sum(sum(facts.rows.values()) for facts in sets.values()) == 708_069 - 107
    organs = [sets[f"organ{view}mnist"] for view in "acs"]
    assert all("same 201 CT scans" in facts.note for facts in organs)
    assert "lesion" in sets["dermamnist"].note


def test_a_source_knows_its_set_before_it_has_its_file(offline: str) -> None:
    source = open_source("medmnist:RetinaMNIST?size=224")
    assert isinstance(source, MedMnistSource)
    assert source.classes == ("0", "1", "2", "3", "4")
    assert source.ordinal
    assert source.licence == "CC BY 4.0"
    assert source.count() == 1600
    assert source.side == 224
    assert source.url == f"{offline}/retinamnist_224.npz"
    derma = open_source("medmnist:dermamnist")
    assert derma.licence == "CC BY-NC 4.0"
    assert not derma.ordinal
    assert "lesion" in derma.note
    before = source.fingerprint()
    source.md5 = "0" * 32
    assert source.fingerprint() != before


def test_without_a_mirror_files_come_from_zenodo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_MEDNET_MEDMNIST_URL", raising=False)
    urls = [MedMnistSource(f"medmnist:pathmnist?size={size}").url for size in (28, 64)]
    zenodo = "https://zenodo.org/records/10519652/files"
    assert urls == [f"{zenodo}/pathmnist.npz?download=1", f"{zenodo}/pathmnist_64.npz?download=1"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("medmnist:bloodminst", "did you mean 'bloodmnist'"),
        ("medmnist:organmnist3d", "no 2-D set"),
        ("medmnist:", "one of pathmnist, chestmnist"),
        ("medmnist:bloodmnist?size=32", "size is 28, 64, 128, 224, not '32'"),
        ("medmnist:bloodmnist?sise=64", "did you mean 'size'"),
    ],
)
def test_a_set_that_is_spelled_wrong_is_told_what_there_is(spec: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_source(spec)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("name", list(SETS))
def test_a_set_is_downloaded_once_and_read_as_it_is(
    name: str, fortran: bool, mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve(mirror, name, monkeypatch, fortran)
    monkeypatch.setattr(medmnist, "_BLOCK", 28 * 28 * 3 * 7)  # a few rows at a time
    classes, several, channels, side = SETS[name]
    spec, kind = f"medmnist:{name}?size={side}", GRAY if channels == 1 else COLOR
    task = open_labelled(spec, kind, quiet=True)
    made, facts = arrays(name), read_facts(mirror.facts)[1][name]
    for split, rows in task.splits.items():
        images = task.corpus.batch(rows).pixels.numpy()  # [N, C, H, W]
        expected = made[f"{split}_images"]
        assert np.array_equal(images, expected[:, None] if channels == 1 else expected.transpose(0, 3, 1, 2))
        labels = made[f"{split}_labels"]
        assert np.array_equal(task.labels[rows], labels if several else labels[:, 0])
    assert task.corpus.modalities(task.corpus.rows()) == {facts.modality: 60}
    assert task.made == ()
    assert len(task.classes) == classes == len(facts.classes)
    assert mirror.asked == [f"/{path.name}"]
    assert (cache / "downloads" / "medmnist" / path.name).read_bytes() == path.read_bytes()
    (cache / "downloads" / "medmnist" / path.name).unlink()
    assert len(open_corpus(spec, kind, quiet=True)) == 60  # what is decoded serves without the file
    assert len(mirror.asked) == 1


def test_ct_pictures_are_seen_as_they_are(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished 8-bit pictures, not Hounsfield units: the whole range is their window."""
    serve(mirror, "organamnist", monkeypatch)
    batch = open_corpus("medmnist:organamnist?size=64", GRAY, quiet=True).batch(np.arange(4))
    assert not batch.hounsfield.any()
    assert np.allclose(batch.unit().numpy(), arrays("organamnist")["train_images"][:4, None] / 255, atol=1e-6)


@pytest.mark.parametrize("where", ["data", "cache", "root"])
def test_a_file_that_is_there_needs_no_network(
    where: str, mirror: Mirror, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve(mirror, "bloodmnist", monkeypatch)
    folder = {"data": tmp_path / "data", "cache": cache / "downloads" / "medmnist", "root": tmp_path / "my files"}[
        where
    ]
    folder.mkdir(parents=True)
    shutil.copy(path, folder)
    if where == "data":
        monkeypatch.setenv("SSL_MEDNET_DATA", str(folder))
    spec = "medmnist:bloodmnist" + (f"?root={folder}" if where == "root" else "")
    assert len(open_corpus(spec, COLOR, quiet=True)) == 60
    assert mirror.asked == []


def test_a_root_is_downloaded_into_and_nothing_in_it_is_overwritten(
    mirror: Mirror, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve(mirror, "bloodmnist", monkeypatch)
    spec = f"medmnist:bloodmnist?root={tmp_path / 'mine'}"
    open_source(spec).prepare(quiet=True)
    kept = tmp_path / "mine" / "bloodmnist.npz"
    assert kept.read_bytes() == path.read_bytes()
    kept.write_bytes(b"another file")
    with pytest.raises(DataError, match="is not the official file"):
        open_source(spec).prepare(quiet=True)
    assert kept.read_bytes() == b"another file"
    assert not (cache / "downloads").exists()


def test_a_damaged_file_in_the_cache_is_replaced(mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = serve(mirror, "bloodmnist", monkeypatch)
    kept = cache / "downloads" / "medmnist" / path.name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(path.read_bytes()[:-1])
    open_source("medmnist:bloodmnist").prepare(quiet=True)
    assert kept.read_bytes() == path.read_bytes()


def test_a_mirror_with_other_files_is_not_believed(mirror: Mirror, cache: Path) -> None:
    mirror.add("bloodmnist")  # its checksum is not the official one, and the facts are
    with pytest.raises(DataError, match=r"medmnist:bloodmnist: .*wrong MD5 and was deleted"):
        open_labelled("medmnist:bloodmnist", COLOR, quiet=True)
    assert not list((cache / "downloads" / "medmnist").glob("bloodmnist.npz*[!k]"))


def test_without_a_network_the_error_says_what_is_missing_and_where_it_belongs(
    offline: str, cache: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared PneumoniaMNIST has the official name, but fewer rows: it must not pass for the official one."""
    monkeypatch.setenv("SSL_MEDNET_DATA", str(data_root))
    with pytest.raises(DataError) as error:
        open_labelled("medmnist:pneumoniamnist", GRAY, quiet=True)
    text = str(error.value)
    assert "medmnist:pneumoniamnist: " in text
    assert "the network cannot be reached" in text
    assert f"{offline}/pneumoniamnist.npz" in text
    assert f"save it as {cache / 'downloads' / 'medmnist' / 'pneumoniamnist.npz'}" in text
    assert f"{data_root / 'pneumoniamnist.npz'} is there, but is not the official file" in text


def test_a_real_file_is_read_as_the_plain_npz_is(data_root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_root / "pneumoniamnist.npz"
    content = yaml.safe_load(FACTS.read_text())
    content["sets"]["pneumoniamnist"]["md5"][28] = hashlib.md5(path.read_bytes()).hexdigest()  # it is a trimmed one
    (cache.parent / "facts.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(medmnist, "FACTS", cache.parent / "facts.yaml")
    named = open_source(f"medmnist:pneumoniamnist?root={data_root}").items()
    pairs = list(zip(named, open_source(path).items(), strict=True))
    assert len(pairs) == 5030
    for item, other in pairs:
        assert (item.label, item.split, item.modality) == (other.label, other.split, "xray")
        assert np.array_equal(item.content, other.content)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [28, 224])
def test_the_suite_names_all_sets_at_the_size_that_is_asked_for(size: int) -> None:
    _, content = read_yaml("medmnist.yaml", "eval", [f"size={size}"])
    sources = [open_source(section["source"]) for section in content["sets"]]
    assert all(isinstance(s, MedMnistSource) and s.side == size for s in sources)
    facts = read_facts(FACTS)[1]
    assert [s.facts for s in sources] == list(facts.values())  # type: ignore[attr-defined]
    for section, source in zip(content["sets"], sources, strict=True):
        assert CHANNEL_COUNT[section["channels"]] == source.facts.channels  # type: ignore[attr-defined]
        assert section.get("ordinal", False) == source.ordinal
