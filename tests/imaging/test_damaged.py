"""Damaged files of every format: an image, or a reason; never another exception, a crash, a hang, or much memory."""

from __future__ import annotations

from pathlib import Path

import damaged_files
import pytest
from damaged_files import read_all, run, seeds

FILES = seeds()


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_good_before_it_is_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert read_all(tmp_path / name) == "images"


def accounted_for(count: int, first: int = 0) -> None:
    found = run(count, first)
    assert found["faults"] == []
    assert found["images"] + found["refused"] == count
    assert min(found["images"], found["refused"]) > count / 20  # the damage is neither nothing nor all
    assert found["slowest"] < damaged_files.SECONDS
    assert found["peak_gb"] < 2


def test_300_damaged_files() -> None:
    accounted_for(300)


@pytest.mark.slow
def test_2000_damaged_files() -> None:
    accounted_for(2000, first=300)


def test_a_crash_and_an_exception_are_blamed_on_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The harness itself: a child that dies, and one that raises, are told with the number of the file."""
    code = Path(damaged_files.__file__).read_text()
    broken = code.replace(
        "    outcome = \"refused\"\n    try:\n",
        "    outcome = \"refused\"\n    if path.name == \"a.bmp\":\n        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if path.name == \"a.gif\":\n        raise KeyError(\"x\")\n    try:\n",
        1,
    )  # fmt: skip
    assert broken != code
    (tmp_path / "damaged_files.py").write_text(broken)
    (tmp_path / "made_files.py").write_text((Path(damaged_files.__file__).parent / "made_files.py").read_text())
    monkeypatch.setattr(damaged_files, "__file__", str(tmp_path / "damaged_files.py"))
    found = run(len(FILES))
    blamed = {name: what for _, name, what in found["faults"]}
    assert set(blamed) == {"a.bmp", "a.gif"}
    assert "process ended" in blamed["a.bmp"]
    assert "KeyError" in blamed["a.gif"]
