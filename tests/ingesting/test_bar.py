"""What a person sees of an ingest: rate, time left and damaged files, in a terminal and in a log."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from ingest_helpers import write_pictures
from rich.console import Console

from ssl_mednet import progress
from ssl_mednet.ingesting.run import ingest

MANY, BAD = 900, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "set", MANY)
    for number in range(BAD):
        (tmp_path / "set" / f"bad{number}.png").write_bytes(b"no picture")
    return tmp_path / "set"


def test_a_terminal_shows_rate_time_left_and_quarantined(folder: Path, tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    said = [sys.executable, "-m", "ssl_mednet", "ingest", str(folder), "--out", str(tmp_path / "corpus")]
    command = subprocess.Popen(
        said, stdout=subprocess.PIPE, stderr=side, env=os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    )
    os.close(side)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # how Linux says that nobody writes any more
        pass
    assert command.wait() == 0
    lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode().replace("\r", "\n").splitlines()
    assert all(len(line) <= 80 for line in lines)
    bars = [line for line in lines if line.startswith("ingesting set")]
    assert f"{MANY + BAD}/{MANY + BAD}" in bars[-1]
    assert f"{BAD} quarantined" in bars[-1]
    on_the_way = [line for line in bars if re.search(r" [\d,]+ img/s .*\d\d:\d\d", line)]
    assert on_the_way
    assert all(int(re.search(r"([\d,]+) img/s", line)[1].replace(",", "")) > 0 for line in on_the_way)  # type: ignore[index]


def test_a_log_gets_lines_of_rate_and_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY", 0.0)
    ingest(folder, tmp_path / "corpus")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ingesting set: ")]
    found = [re.fullmatch(r"ingesting set: (\d+)/903, (\d+) s left, ([\d,]+) img/s( 3 quarantined)?", x) for x in lines]
    assert all(found)
    assert [int(match[1]) for match in found if match][-1] == MANY + BAD
    assert int(found[-1][2]) == 0  # type: ignore[index]


def test_a_long_title_leaves_the_numbers_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    shown = partial(Console, file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda stderr: shown())
    title = "fine-tuning imagenet:efficientnet_lite0@224 at rate 1e-3 [1 of 3]"
    with progress.Progress(title, 25_600, "img") as bar:
        bar.advance(12_345, "epoch 2, loss 0.578")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    assert sum(title in line for line in lines) == 1
    assert any(re.search(r"━ 12345/25600 [\d,]+ img/s epoch 2, loss 0.578 ", line) for line in lines)
