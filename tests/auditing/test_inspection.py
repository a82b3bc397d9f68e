"""What is said of a corpus is what was put into it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from audit_helpers import picture
from PIL import Image
from typer.testing import CliRunner

from ssl_mednet.auditing.inspection import inspect
from ssl_mednet.auditing.inspection_page import as_page, write_page
from ssl_mednet.auditing.quality import curate
from ssl_mednet.cli import app, expand_several
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import DataError, UserError
from ssl_mednet.ingesting.run import ingest

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Ten X-rays of two sizes with splits and groups under one licence, six MRI under another; one copy, one black."""
    root = tmp_path_factory.mktemp("inspected")
    for name in ("xray", "mri"):
        (root / name).mkdir()
    rows = ["path,label,split,group"]
    for i in range(10):
        image = picture(i if i < 9 else 0, size=64 if i < 5 or i == 9 else 48)
        image.save(root / "xray" / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},{'train' if i < 7 else 'test'},{'p' + str(i // 2) if i < 8 else ''}")
    (root / "xray" / "labels.csv").write_text("\n".join(rows))
    for i in range(5):
        Image.fromarray(np.asarray(picture(i, "mri", 64)).astype(np.uint16) * 200).save(root / "mri" / f"{i}.png")
    Image.new("L", (64, 64)).save(root / "mri" / "black.png")
    common = {"workers": 1, "quiet": True}
    ingest(root / "xray", root / "corpus", modality="xray", source="films", licence="CC-BY-4.0", **common)
    ingest(root / "mri", root / "corpus", modality="mri", source=EVIL, licence="CC-BY-NC-4.0", **common)
    return Corpus(root / "corpus")


def test_counts_are_those_of_the_images(corpus: Corpus) -> None:
    found = inspect(corpus)
    assert (found.images, found.labelled, found.copies, found.quarantined) == (16, 10, 1, 0)
    xray, mri = found.modalities
    assert (xray.name, xray.images, xray.bits, xray.height) == ("xray", 10, {8: 10}, (48, 48, 64, 64, 64))
    assert (mri.name, mri.images, mri.bits) == ("mri", 6, {8: 1, 16: 5})
    assert found.flags == {"constant": 1, "nearly empty": 1}
    splits = {s.name: (s.images, s.groups, s.ungrouped) for s in found.splits}
    assert splits == {"": (6, 0, 6), "train": (7, 4, 0), "test": (3, 1, 2)}
    assert found.shared_groups == 1, "images 6 and 7 are of one patient, on both sides"
    assert found.sources == {("films", "CC-BY-4.0"): 10, (EVIL, "CC-BY-NC-4.0"): 6}
    assert found.verdict.publish == "CC-BY-NC-4.0"


def test_histograms_are_of_the_pixels(corpus: Corpus) -> None:
    for part in inspect(corpus).modalities:
        rows = np.flatnonzero(corpus.modality == corpus.modality[0 if part.name == "xray" else 10])
        expected = np.zeros(32)
        for row in rows:
            batch = corpus.batch(np.array([row]))
            height, width = batch.sizes[0].tolist()
            values = batch.unit()[0, :, :height, :width].numpy()
            expected += np.histogram(values, 32, (0, 1))[0] / values.size
        assert np.allclose(part.histogram, expected / len(rows))


def test_the_table_fits_a_terminal_and_the_page_needs_nothing_else(corpus: Corpus, tmp_path: Path) -> None:
    found = inspect(corpus)
    lines = found.lines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert re.search(r"^xray +10  8 +48-64-64", text, re.MULTILINE)
    assert "none of this version; ssl-mednet curate makes them" in text
    page = as_page(found)
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 2, "a contact sheet for each modality"
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert write_page(found, tmp_path / "a" / "page.html").read_text() == page
    with pytest.raises(UserError, match=r"\.html"):
        write_page(found, tmp_path / "page.pdf")


def test_marks_are_shown_once_they_are_made(corpus: Corpus) -> None:
    assert inspect(corpus).marks is None
    curate(corpus, quiet=True)
    assert inspect(corpus).marks == {"exact": 1, "near": 0, "empty": 1, "redundant": 0, "text": 0, "held_out": 0}


def test_pictures_are_from_the_whole_of_a_modality(make_corpus) -> None:
    shades = [Image.new("L", (32, 32), 4 * i) for i in range(64)]
    (part,) = inspect(make_corpus(shades)).modalities
    shown = [int(one.mean()) // 4 for one in part.pictures]
    assert len(shown) == 24
    assert (shown[0], shown[-1]) == (0, 63)


def test_the_verbs_say_it_too(corpus: Corpus, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(corpus.folder), "--out", str(tmp_path / "page.html")])
    assert shown.exit_code == 0, shown.output
    assert "16 gray images" in shown.output
    assert (tmp_path / "page.html").is_file()
    curated = CliRunner().invoke(app, ["curate", str(corpus.folder), "--quiet"])
    assert "good: 14 of 16" in curated.output
    sets = [str(corpus.folder), "phantoms:gray?n=40", "nowhere.zip"]
    arguments = ["audit", str(corpus.folder), "--against", *sets, "--quiet"]
    arguments = expand_several([*arguments, "--out", str(tmp_path / "audit.csv")])
    assert arguments.count("--against") == 3
    audited = CliRunner().invoke(app, arguments)
    assert audited.exit_code == 3, audited.output
    assert "not audited: nowhere.zip: no such file" in audited.output
    assert len(re.findall(r"^phantoms.* (?:train|val|test) ", audited.output, re.MULTILINE)) == 3
    assert (tmp_path / "audit.csv").read_text().startswith("dataset,split,row,corpus_row,kind,distance")
    with pytest.raises(DataError, match="no corpus"):
        inspect(tmp_path)


def test_a_page_that_cannot_be_is_refused_before_the_work(corpus: Corpus, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["inspect", str(corpus.folder), "--out", str(tmp_path / "page.txt")])
    assert isinstance(refused.exception, UserError)
    assert "images" not in refused.stdout
