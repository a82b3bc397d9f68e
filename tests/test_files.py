"""Where nothing can be written every verb says so alike, before its work, and with what to do about it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ssl_mednet.cli import main
from ssl_mednet.errors import WriteError
from ssl_mednet.files import check_file, check_folder

PHANTOMS = "phantoms:gray?n=100&label=modality"
VERBS = {
    "pretrain": ["pretrain", "--recipe", "simclr_gray.yaml"],
    "evaluate": ["evaluate", "--weights", "random:test_resnet", "--data", PHANTOMS],
    "finetune": ["finetune", "--weights", "gray-mednet-tiny", "--data", PHANTOMS],
    "export": ["export", "gray-mednet-tiny", "--format", "timm"],
    "ingest": ["ingest", PHANTOMS],
    "preview": ["preview"],
    "report": ["report", "results"],
    "inspect": ["inspect", "corpus"],
    "audit": ["audit", "corpus", "--against", PHANTOMS],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_where_it_cannot_write(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x.html"
    monkeypatch.setattr(sys, "argv", ["ssl-mednet", *VERBS[verb], "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"error: {out}: cannot be written (Not a directory) (name another --out)"
    assert end.value.code == 3


def test_the_cache_is_named_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_mednet.data.corpus import CorpusSpec, open_corpus

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSL_MEDNET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WriteError, match=r"file/cache: cannot be written .*set \$SSL_MEDNET_CACHE to a folder"):
        open_corpus("phantoms:gray?n=3", CorpusSpec("gray", 32), quiet=True)


def test_nothing_is_left_of_a_look_at_what_can_be_written(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "a" / "b")
    check_file(tmp_path / "a" / "b.html")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WriteError, match=r"cannot be written \(Is a directory\)"):
        check_file(tmp_path)
