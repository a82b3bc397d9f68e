"""What a source is called: a data set by its name, never nothing, never a single image."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_mednet.data.sources import open_sources
from ssl_mednet.ingesting.names import name_of, told_path


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (".", "chest"),
        ("..", "data"),
        ("../chest", "chest"),
        ("../.hidden", "hidden"),
        ("*.png", "chest"),
        ("../ch*/*.png", "chest"),
        ("smith.png", "file"),
        ("phantoms:gray?n=2", "phantoms:gray"),
    ],
)
def test_a_source_has_a_name(spec: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("chest/smith.png", ".hidden/x.png"):
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path / "data" / "chest")
    (source,) = open_sources(spec)
    assert name_of(source) == name


def test_what_is_no_path_keeps_its_name() -> None:
    assert told_path(Path("phantoms:gray?n=2")) == "phantoms:gray?n=2"
