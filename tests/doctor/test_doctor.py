"""The doctor: what it looks at, how it says it, and that its self test is the real thing."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ssl_mednet.cli import app
from ssl_mednet.doctor import checks, report, self_test
from ssl_mednet.doctor.checks import Check


def test_every_check_says_something_in_eighty_columns() -> None:
    found = list(report.examine(with_self_test=False))
    assert {"python", "packages", "faiss", "lance", "devices", "threads", "memory", "cache", "run folder"} <= {
        check.name for check in found
    }
    assert [check.name for check in found if check.state == "fail"] == []
    for check in found:
        assert check.said
        assert all(len(line) <= report.WIDTH for line in report.lines(check))
        assert report.lines(check)[0].startswith(check.state)


def test_colors_mark_the_state_only() -> None:
    check = Check("disk", "fail", "full", "make room")
    plain, colored = report.lines(check), report.lines(check, color=True)
    assert colored[0] == f"\033[31mfail\033[0m{plain[0][4:]}"
    assert colored[1:] == plain[1:] == [" " * 16 + "-> make room"]


def test_a_package_that_is_too_old_or_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=999", "no-such-package>=1", 'ray>=2; extra == "ray"', "torch>=1"]
    monkeypatch.setattr(checks.metadata, "requires", lambda name: wanted)
    (check,) = checks.packages()
    assert check.state == "fail"
    assert f"numpy>=999 (is {metadata.version('numpy')})" in check.said
    assert "no-such-package>=1" in check.said
    assert "ray" not in check.said
    assert check.advice


def test_a_full_disk_fails_and_a_slow_one_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.disk("run folder", tmp_path / "not" / "there", "", "elsewhere").state in ("ok", "note")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    for free, seconds, state in ((5e8, 0.001, "fail"), (5e9, 0.001, "note"), (5e10, 0.5, "note"), (5e10, 0.001, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        monkeypatch.setattr(checks, "_sync_seconds", lambda path, seconds=seconds: seconds)
        assert checks.disk("cache", tmp_path, "", "elsewhere").state == state


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_MEDNET_GROUP_KEY", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOME_ADDRESS", "private")
    (check,) = checks.environment()
    assert "SSL_MEDNET_GROUP_KEY is set" in check.said
    assert "OMP_NUM_THREADS=1" in check.said
    assert "hunter2" not in check.said
    assert "private" not in check.said


def test_addresses_are_shown_without_who_asks_and_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_MEDNET_MEDMNIST_URL", "https://me:hunter2@mirror.org/medmnist?sig=hunter3#hunter4")
    monkeypatch.setenv("TORCH_HOME", "/data/a?b@c")
    (check,) = checks.environment()
    assert "SSL_MEDNET_MEDMNIST_URL=https://mirror.org/medmnist," in check.said
    assert "TORCH_HOME=/data/a?b@c" in check.said
    assert "hunter" not in check.said


def test_what_the_package_set_itself_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANCE_LOG", os.environ["LANCE_LOG"])
    assert "LANCE_LOG" not in checks.environment()[0].said
    monkeypatch.setenv("LANCE_LOG", "debug")
    assert "LANCE_LOG=debug" in checks.environment()[0].said


def test_every_extra_is_listed_with_what_it_is_for_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = set(metadata.metadata(checks.DISTRIBUTION).get_all("Provides-Extra") or ())
    assert set(checks.OPTIONAL) == extras - {"dev"}
    monkeypatch.setattr(checks, "_loads", lambda module: module != "onnxscript")
    check = checks.engines()[-1]
    assert (check.said, check.advice) == (
        "ray, dask, idc, imagenet", "export --format onnx: pip install 'ssl-mednet[onnx]'"
    )  # fmt: skip


def test_pages_of_files_in_a_container_count_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 700000\nactive_file 50000\n")
    assert checks._memory(tmp_path) == (800_000.0, 1_000_000.0)
    (tmp_path / "memory.max").write_text("max\n")
    assert checks._memory(tmp_path)[1] > 1_000_000


def test_the_self_test_pretrains_resumes_and_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    # As within a job of two processes, where it would wait for the other.
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    found = self_test.self_test()
    assert [(check.name, check.state) for check in found] == [
        ("pretraining", "ok"), ("resuming", "ok"), ("evaluation", "ok")
    ]  # fmt: skip
    assert "img/s" in found[0].said
    assert os.environ["WORLD_SIZE"] == "2"


def test_a_self_test_that_breaks_names_the_part_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl_mednet.pretraining.run as run

    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(run, "pretrain", broken)
    (check,) = self_test.self_test()
    assert (check.name, check.state) == ("pretraining", "fail")
    assert "illegal instruction" in check.said


def test_the_verb_ends_with_one_when_something_must_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    monkeypatch.setattr(report, "CHECKS", (lambda: [Check("disk", "ok", "room")],))
    well = runner.invoke(app, ["doctor", "--no-self-test"])
    assert (well.exit_code, well.output.splitlines()[-1]) == (0, "ready")
    monkeypatch.setattr(report, "CHECKS", (lambda: [Check("disk", "fail", "full", "make room")],))
    ill = runner.invoke(app, ["doctor", "--no-self-test"])
    assert (ill.exit_code, ill.output.splitlines()[-1]) == (1, "not ready: disk")
    read = runner.invoke(app, ["doctor", "--no-self-test", "--json"])
    assert read.exit_code == 1
    assert json.loads(read.output) == {
        "ready": False, "checks": [{"name": "disk", "state": "fail", "said": "full", "advice": "make room"}]
    }  # fmt: skip
