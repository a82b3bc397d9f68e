"""The whole: one file that needs nothing else, the same every time, honest about what is missing."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from results_folder import write_results, write_run

from ssl_mednet.errors import UserError
from ssl_mednet.reporting.build import report

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Outline(HTMLParser):
    """Ids, links, resources, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.resources: set[str] = set()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href") and tag in ("a", "use"):
                self.links.add(value or "")
            elif name in ("src", "href", "srcset", "data", "action"):
                self.resources.add(value or "")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(written: list[Path]) -> str:
    return written[0].read_text()


def test_a_page_and_three_tables(written: list[Path]) -> None:
    assert [p.name for p in written] == ["all.html", "all.md", "all.csv", "all.tex"]
    assert all(p.is_file() for p in written)


def test_the_page_is_well_formed_and_needs_nothing_else(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert all(r.startswith("data:image/") for r in outline.resources)
    assert set(re.findall(r"url\((?!#|data:)", page)) == set()
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert outline.headings[:2] == [2, 1]  # the table of contents comes first
    for before, after in itertools.pairwise(outline.headings[1:]):
        assert after <= before + 1, (before, after)


def test_every_part_of_every_task_is_there(page: str) -> None:
    for i, (name, parts) in enumerate(
        {
            "brain-mri": ("board", "labels", "proof", "robust", "images", "map"),
            "skin": ("board", "labels", "proof", "robust", "images", "map"),
            "medmnist-chestmnist": ("board", "labels", "proof", "robust", "images", "map"),
        }.items(),
        1,
    ):
        for part in parts:
            assert f'id="task-{i}-{name}-{part}"' in page
    assert page.count('class="confusion"') == 3 * 3 + 3  # none for the multi-label set
    assert page.count('class="map"') == 9
    assert "AUROC of each label" in page
    assert "Sensitivity: the share of “malignant”" in page
    assert page.count("Nearest neighbours</h4>") == 3
    assert f"{'runs/gray':0>64}" in page
    assert page.count('<a href="#run-1">gray</a>') == 1  # the hash is that of the run's weights
    assert "reconstruction" in page
    assert "no groups" in page
    assert "not corrected for the 6 comparisons" in page
    assert "spread between seeds" in page


def test_nobody_is_named_and_nothing_from_outside_is_markup(page: str) -> None:
    assert "someone" not in page
    assert "<b>" not in page
    assert "cardiomegaly &amp; co &lt;b&gt;" in page
    assert "\\u003cb>" in page  # in the data of the map


def test_the_same_folders_give_the_same_bytes(
    results: Path, run_folder: Path, written: list[Path], tmp_path: Path
) -> None:
    again = report([results, run_folder], tmp_path / "again.html")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]


def test_the_report_goes_on_where_something_is_missing(tmp_path: Path) -> None:
    copy = write_results(tmp_path / "copy", ("color",))
    rows = json.loads((copy / "results.json").read_text())
    lost = next(r for r in rows if r["protocol"] == "linear" and r["task"] == "skin")
    (copy / lost["predictions"]).unlink()
    shutil.rmtree(copy / "gallery")
    text = report([copy], tmp_path / "r.html")[0].read_text()
    assert "What is missing" in text
    assert f"skin: gray, linear probe: {lost['predictions']} is missing" in text
    assert "no pictures were kept" in text
    assert 'class="map"' not in text
    assert text.count('class="confusion"') == 2
    shutil.rmtree(copy / "predictions")
    assert "0.9" in report([copy], tmp_path / "r.html")[0].read_text()  # the tables stand without predictions


def test_what_the_source_says_of_itself_is_passed_on(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "res", ("color",))
    path = folder / "results.json"
    rows = [r | {"licence": "CC BY-NC 4.0", "note": "splits leak <lesions>"} for r in json.loads(path.read_text())]
    path.write_text(json.dumps(rows))
    text = report([folder], tmp_path / "r.html", tables=False)[0].read_text()
    assert "splits leak &lt;lesions&gt;" in text
    assert "CC BY-NC 4.0" in text


def test_a_run_alone_has_no_tables(tmp_path: Path) -> None:
    written = report(write_run(tmp_path / "gray"), tmp_path / "run.html")
    assert [p.name for p in written] == ["run.html"]
    text = written[0].read_text()
    assert "Pretraining: gray" in text
    assert text.count('class="plot"') == 3


@pytest.mark.parametrize("part", ["", "backbone"])
def test_weights_are_linked_to_the_run_that_made_them(tmp_path: Path, part: str) -> None:
    run, folder = write_run(tmp_path / "gray"), write_results(tmp_path / "results", ("color",))
    path = folder / "results.json"
    path.write_text(path.read_text().replace("runs/gray", str(run / part)).replace("0runs", "0other"))
    text = report([folder, run], tmp_path / "r.html")[0].read_text()
    assert text.count('<a href="#run-1">gray</a>') == 1


def test_no_picture_is_passed_on_that_is_not_shown(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "res", ("color",))
    text = report([folder], tmp_path / "r.html")[0].read_text()
    kept = len(np.load(folder / "gallery" / "skin.npz")["rows"])
    shown = int(re.search(r"contains (\d+) small pictures", text)[1])  # type: ignore[index]
    ids = set()
    for path in (folder / "gallery").glob("skin--*.npz"):
        with np.load(path) as one:
            ids |= {*one["sample"].tolist(), *one["queries"].tolist(), *one["neighbours"].ravel().tolist()}
    assert len(ids) <= shown <= len(ids) + 3 * 12  # the worst mistakes too
    assert shown < kept


def test_few_shot_rows_alone_still_make_a_report(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "few", ("gray",))
    rows = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps([r for r in rows if r["shots"] == 5]))
    text = report([folder], tmp_path / "r.html")[0].read_text()
    assert 'few-shot, linear <span class="quiet">5 a class, mean over 20 draws of the labels<' in text
    assert "Leaderboard" not in text


def test_published_results_stand_beside_ours(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "res", ("color",))
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"task": "skin"', '"task": "ham10000_derm"').replace("skin.zip", "x.zip"))
    text = report([folder], tmp_path / "r.html")[0].read_text()
    assert "Published results beside ours" in text
    assert text.count("source of DermaMNIST") == 1  # one answer for all four
    assert text.count('rowspan="4"') == 4
    assert "0.917" in text


def test_out_must_be_a_page_that_can_be_written(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is an .html page"):
        report([results], tmp_path / "report.pdf")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        report([results], tmp_path / "folder.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report([results], tmp_path / "file" / "report.html")


def test_a_run_shows_its_alarms_its_faults_and_how_fast_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    quiet = report([run], tmp_path / "quiet.html")[0].read_text()
    assert "Alarms" not in quiet
    assert "No alarm" not in quiet  # it has no curve that an alarm could have judged
    alarm = {"step": 40, "rule": "point", "said": "all <images> have the same features", "advice": "lower optim.lr"}
    (run / "alarms.json").write_text(json.dumps([alarm]))
    (run / "speed.csv").write_text("step,images_per_second,data_share\n50,812.5,0.031\n100,820,0.02\n")
    (run / "metrics.csv").write_text("step,loss,effective_rank,skipped_steps\n50,1.5,9.25,0\n100,1.2,9.5,2\n")
    (run / "quarantine.csv").write_text('path,reason,reader\na.png,"broken, cut off",raster\nb.png,empty,raster\n')
    page = report([run], tmp_path / "loud.html")[0].read_text()
    assert "all &lt;images&gt; have the same features" in page
    assert "lower optim.lr" in page
    assert "2 updates were skipped" in page
    assert "2 images could not be used" in page
    assert "waiting for images" in page
    (run / "alarms.json").write_text('{"step": 40}')
    with pytest.raises(UserError, match=r"alarms\.json"):
        report([run], tmp_path / "broken.html")
