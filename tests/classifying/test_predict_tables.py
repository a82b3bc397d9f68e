"""No image of a source is left out, and nothing that was computed is lost: odd names, interrupts, a killed process."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner
from xray_phantoms import xray

from ssl_mednet import predict
from ssl_mednet.classifying import predict as verb
from ssl_mednet.classifying.fit import Fitted
from ssl_mednet.classifying.model import load_model
from ssl_mednet.classifying.predict import Prediction
from ssl_mednet.cli import app
from ssl_mednet.errors import UserError


def pictures(root: Path, count: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.fromarray(xray(n)).save(root / f"{n}.png")
    return root


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "table",
    [
        "path,label\n0.png,bright\ngone.png,dark\n",
        "path,modality\n0.png,xray\n",
        "path,label,split\n0.png,bright,holdout\n",
    ],
)
def test_every_image_gets_a_row_whatever_a_table_lists(
    packed: bool, table: str, fitted: Fitted, tmp_path: Path
) -> None:
    source = pictures(tmp_path / "new", 3)
    (source / "labels.csv").write_text(table)
    if packed:
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as file:
            for path in sorted(source.iterdir()):
                file.write(path, path.name)
        source = tmp_path / "new.zip"
    found = predict(fitted.folder, [source], quiet=True)
    assert [row.file[-5:] for row in found.rows] == ["0.png", "1.png", "2.png"]
    assert not found.refused


def test_files_of_a_folder_that_are_not_looked_at_are_refused_by_name(fitted: Fitted, tmp_path: Path) -> None:
    """A suffix may say nothing of what is in a file; texts and tables beside images are no news."""
    source = pictures(tmp_path / "new", 1)
    picture = (source / "0.png").read_bytes()
    for name in ("scan.dcm.bak", "b.png_", "deep/old.jp2", ".hidden.jp2", "notes.txt", "Thumbs.db", "volume.raw"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(picture)
    found = predict(fitted.folder, [source], quiet=True)
    assert [Path(row.file).name for row in found.rows] == ["0.png"]
    refused = {Path(name).name: reason for name, reason in found.refused}
    assert sorted(refused) == ["b.png_", "old.jp2", "scan.dcm.bak"]
    assert "suffix .bak; name the file by itself" in refused["scan.dcm.bak"]
    assert len(predict(fitted.folder, [source / "scan.dcm.bak", source / "b.png_"], quiet=True).rows) == 2


def test_images_beside_a_parquet_file_get_rows_too(fitted: Fitted, tmp_path: Path) -> None:
    source = pictures(tmp_path / "new", 2)
    inside = {"image": [(source / "0.png").read_bytes()]}
    pq.write_table(pa.table(inside), source / "more.parquet")
    (source / "labels.csv").write_text("path,label\n0.png,bright\n")
    found = predict(fitted.folder, [source], quiet=True)
    assert [Path(row.file).name for row in found.rows] == ["more.parquet[0]", "0.png", "1.png"]


def test_of_a_bad_table_nothing_but_itself_gets_lost(fitted: Fitted, tmp_path: Path) -> None:
    source = pictures(tmp_path / "new", 2)
    for bad, reason in ((b"file,label\n0.png,x\n", "no column path"), (b"path\n\xff\xfe\n", "is no CSV table")):
        (source / "labels.csv").write_bytes(bad)
        found = predict(fitted.folder, [source], quiet=True)
        assert len(found.rows) == 2
        ((file, said),) = found.refused
        assert file == str(source / "labels.csv")
        assert said.startswith(reason)


def test_a_table_may_say_that_an_image_is_of_another_kind(fitted: Fitted, tmp_path: Path) -> None:
    source = pictures(tmp_path / "new", 2)
    (source / "labels.csv").write_text("path,modality\n1.png,mri\n")
    found = predict(fitted.folder, [source], quiet=True)
    assert [Path(row.file).name for row in found.rows] == ["0.png"]
    assert found.refused == [(str(source / "1.png"), "is mri, the model was made on xray")]


def test_a_line_end_in_a_name_does_not_tear_its_row(fitted: Fitted, tmp_path: Path) -> None:
    (path := pictures(tmp_path / "new", 1) / "0.png").rename(path.with_name("a\rb\nc,d.png"))
    out = tmp_path / "p.csv"
    predict(fitted.folder, [tmp_path / "new"], out, quiet=True)
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"].endswith("a\\rb\nc,d.png")
    assert row["index"] == "0"


def test_a_name_that_is_not_utf_8_is_written(fitted: Fitted, tmp_path: Path) -> None:
    source = pictures(tmp_path / "new", 1)
    os.rename(os.fsencode(source / "0.png"), os.fsencode(source) + b"/r\xf6ntgen.png")  # noqa: PTH104
    (source / os.fsdecode(b"l\xe4dt.png")).write_bytes(b"")
    for suffix in ("csv", "json"):
        found = predict(fitted.folder, [source], tmp_path / f"p.{suffix}", quiet=True)
    assert os.fsencode(found.rows[0].file).endswith(b"r\xf6ntgen.png")
    lines = list(csv.DictReader((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()))
    content = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    names = [r"r\udcf6ntgen.png", r"l\udce4dt.png"]
    assert [Path(line["file"]).name for line in lines] == names
    assert [Path(line["file"]).name for line in content["predictions"] + content["refused"]] == names
    result = CliRunner().invoke(app, ["predict", str(source), "--model", str(fitted.folder), "--quiet"])
    assert result.exit_code == 0
    assert names[0] in result.stdout


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_predicted_outlives_the_run(
    error: type[BaseException],
    suffix: str,
    fitted: Fitted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, partial = tmp_path / f"p.{suffix}", tmp_path / f"p.partial.{suffix}"
    out.write_text("of an earlier run")
    (tmp_path / "bad.png").write_bytes(b"")
    source, asked = pictures(tmp_path / "new", 5), verb._ask

    asks: list[int] = []

    def ask(*args: object) -> list[Prediction]:
        asks.append(1)
        if len(asks) > 2:
            raise error
        return asked(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(verb, "_BATCH", 2)
    monkeypatch.setattr(verb, "_ask", ask)
    with pytest.raises(error):
        predict(fitted.folder, [tmp_path / "bad.png", source], out, quiet=True)
    assert out.read_text() == "of an earlier run"
    assert str(partial) in capsys.readouterr().err
    if suffix == "csv":
        files = [line["file"] for line in csv.DictReader(partial.read_text().splitlines())]
    else:
        content = json.loads(partial.read_text())
        files = [line["file"] for line in content["predictions"] + content["refused"]]
    assert sorted(Path(file).name for file in files) == ["0.png", "1.png", "2.png", "3.png", "bad.png"]
    monkeypatch.setattr(verb, "_ask", asked)
    with pytest.raises(UserError, match="ended early"):
        predict(fitted.folder, [source], out, quiet=True)
    assert partial.exists()
    partial.unlink()
    predict(fitted.folder, [source], out, quiet=True)
    assert not partial.exists()
    assert "4.png" in out.read_text()


@pytest.mark.parametrize("cut", [0, 7, 40])
def test_a_killed_run_goes_on_where_it_was(
    cut: int, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off of the last line may be all that was written of a file, and a file may have more rows to come."""
    source = pictures(tmp_path / "new", 5)
    frames = [Image.fromarray(xray(n)) for n in range(5, 8)]
    frames[0].save(source / "5\u2028.tif", save_all=True, append_images=frames[1:])
    (source / "bad.png").write_bytes(b"")
    out, partial, asked = tmp_path / "p.csv", tmp_path / "p.partial.csv", verb._ask
    monkeypatch.setattr(verb, "_BATCH", 2)
    predict(fitted.folder, [source], out, quiet=True)
    whole = out.read_bytes()
    out.unlink()
    for rows in range(1, 9):
        lines = whole.splitlines(keepends=True)[: 1 + rows]
        partial.write_bytes(b"".join(lines)[: -cut or None])
        (tmp_path / "p.partial.csv.model").write_text(f"{load_model(fitted.folder).digest()} ")
        seen: list[str] = []
        monkeypatch.setattr(
            verb, "_ask", lambda model, named, seen=seen: (seen.extend(f for f, _ in named), asked(model, named))[1]
        )
        found = predict(fitted.folder, [source], out, quiet=True, resume=True)
        assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
        assert (len(found.rows), len(found.refused)) == (8, 1)
        assert len(seen) <= (9 - rows if rows < 6 else 3) + bool(cut)
        assert not partial.exists()


def test_what_is_resumed_is_of_this_model_and_a_table(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, partial = pictures(tmp_path / "new", 5), tmp_path / "p.csv", tmp_path / "p.partial.csv"
    asked, asks = verb._ask, list[int]()

    def ask(*args: object) -> list[Prediction]:
        asks.append(1)
        if len(asks) > 2:
            raise KeyboardInterrupt
        return asked(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(verb, "_BATCH", 2)
    monkeypatch.setattr(verb, "_ask", ask)
    with pytest.raises(KeyboardInterrupt):
        predict(fitted.folder, [source], out, quiet=True)
    monkeypatch.setattr(verb, "_ask", asked)
    kept = partial.read_bytes()
    model = load_model(fitted.folder)
    for other, modality in ((replace(model, bias=model.bias + 1), ""), (model, "xray")):
        with pytest.raises(UserError, match="another model or --modality"):
            predict(other, [source], out, quiet=True, resume=True, modality=modality)
    partial.write_bytes(kept + kept.splitlines(keepends=True)[1].replace(b",0,", b",x,", 1))
    with pytest.raises(UserError, match="was changed"):
        predict(model, [source], out, quiet=True, resume=True)
    partial.write_bytes(kept + "Ü".encode()[:1])  # killed in the middle of a letter
    found = predict(model, [source], out, quiet=True, resume=True)
    assert len(found.rows) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "p.csv"]
    for bad in (None, tmp_path / "p.json"):
        with pytest.raises(UserError, match=r"\.csv"):
            predict(model, [source], bad, quiet=True, resume=True)
    partial.write_text("")  # a run that was killed before its first row
    predict(model, [source], out, quiet=True)
    assert not partial.exists()


def test_rows_of_a_later_file_prove_that_nothing_of_an_earlier_one_is_missing(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of what is written at once."""
    (tmp_path / "new").mkdir()
    frames = [Image.fromarray(xray(n)) for n in range(2)]
    frames[0].save(
        tmp_path / "new" / "a.tif", save_all=True, append_images=[frames[1], Image.new("RGB", (64, 64), "red")]
    )
    pictures(tmp_path / "new", 2)
    asked, asks = verb._ask, list[int]()

    def ask(*args: object) -> list[Prediction]:
        asks.append(1)
        if len(asks) == 4:
            raise KeyboardInterrupt
        return asked(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(verb, "_BATCH", 1)
    monkeypatch.setattr(verb, "_ask", ask)
    with pytest.raises(KeyboardInterrupt):
        predict(fitted.folder, [tmp_path / "new" / "a.tif", tmp_path / "new"], tmp_path / "p.csv", quiet=True)
    lines = list(csv.DictReader((tmp_path / "p.partial.csv").read_text().splitlines()))
    assert len(lines) == 4
    refused = next(n for n, line in enumerate(lines) if line["refused"])
    assert lines[refused]["file"].endswith("a.tif")
    assert all(line["file"].endswith("a.tif") for line in lines[:refused])
    assert refused < 3
