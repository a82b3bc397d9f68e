"""A run survives kills at any moment and torn checkpoints, with the same bits; signals stop it with a code."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch
from killed import Kill, Run, differences

from ssl_mednet import pretrain
from ssl_mednet.errors import ResumeMe, TrainingError
from ssl_mednet.pretraining.checkpoints import all_checkpoints, last_checkpoint
from ssl_mednet.pretraining.stopping import Stopped, StopSignals

SMALL = {**small.SMALL, "monitor": {"every": 1, "pictures": 2}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped."""
    return pretrain(SMALL, out=tmp_path_factory.mktemp("whole") / "run", quiet=True).folder


def arguments(tmp_path: Path, out: str, *overrides: str) -> list[str]:
    recipe = tmp_path / "small.json"
    recipe.write_text(json.dumps(SMALL))
    return ["pretrain", "-r", str(recipe), "--quiet", "--resume", "-o", str(tmp_path / out), *overrides]


# One after the other in one run, each at a later step than the checkpoint that the one before left.
KILLS = [
    ("batch", 3),  # before the first checkpoint; with accumulation between the batches of an update
    ("write", 40),  # in the middle of the first checkpoint
    ("replaced", 5),  # metrics, metrics, checksum, ...: somewhere between two renames
    ("update", 3),  # after the update, before what is written of it
    ("fsync", 6),
    ("artifact", 1),  # before and after the weights of the artifact are written, and around its last rename
    ("artifact", 2),
    ("artifact", 3),
]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_killed_with_minus_nine_at_any_moment_ends_with_the_same_bits(accumulate: int, tmp_path: Path) -> None:
    overrides = [f"optim.accumulate={accumulate}"]
    reference = Run(arguments(tmp_path, "whole", *overrides), tmp_path / "whole.log")
    assert reference.wait(120) == 0
    assert min(reference.counts[0][kind] for kind, _ in KILLS) > 0
    for kill in KILLS if accumulate == 2 else KILLS[1::3]:
        run = Run(arguments(tmp_path, "parts", *overrides), tmp_path / "parts.log", Kill(*kill))
        assert run.wait(120) == -9, (kill, (tmp_path / "parts.log").read_text())
        assert not (tmp_path / "parts" / "backbone").exists()
    assert Run(arguments(tmp_path, "parts", *overrides), tmp_path / "parts.log").wait(120) == 0
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TORN: dict[str, Callable[[Path], object]] = {
    "its checksum differs": flip,
    "is not what was written": lambda path: os.truncate(path, path.stat().st_size // 2),
    "is empty": lambda path: os.truncate(path, 0),
    "has no checksum": lambda path: path.with_name(path.name + ".sha256").unlink(),
}


@pytest.mark.parametrize("told", TORN)
def test_a_torn_checkpoint_is_skipped_for_the_one_before_with_a_word(
    told: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(SMALL, out=tmp_path / "run", quiet=True)
    torn = tmp_path / "run" / "checkpoints" / "step_000006.ckpt"
    TORN[told](torn)
    pretrain(out=tmp_path / "run", resume=True, quiet=True)
    said = capsys.readouterr().err
    assert f"{torn} " in said
    assert told in said
    assert "goes on from step_000004.ckpt" in said
    assert torn.with_name(torn.name + ".bad").is_file()
    assert differences(whole, tmp_path / "run") == []


def test_where_no_checkpoint_can_be_used_the_run_does_not_start_anew_in_silence(tmp_path: Path) -> None:
    pretrain(SMALL, out=tmp_path / "run", quiet=True)
    for path in all_checkpoints(tmp_path / "run"):
        flip(path)
    with pytest.raises(TrainingError, match=r"step_000006.ckpt is not .*step_000004.ckpt is not .*remove") as caught:
        pretrain(out=tmp_path / "run", resume=True, quiet=True)
    assert caught.value.exit_code == 5
    assert last_checkpoint(tmp_path / "nothing") is None


def test_the_newest_checkpoints_are_kept_with_checksums_that_other_tools_read(tmp_path: Path) -> None:
    pretrain(
        SMALL, out=tmp_path / "run", quiet=True, overrides=["train.keep_checkpoints=3", "train.checkpoint_every=1"]
    )
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step_00000{n}.ckpt{end}" for n in (4, 5, 6) for end in ("", ".sha256")]
    assert os.system(f"cd {tmp_path / 'run' / 'checkpoints'} && sha256sum --quiet --check *.sha256") == 0


def test_a_checkpoint_holds_all_of_the_state_as_tensors_and_plain_values(whole: Path) -> None:
    content = torch.load(whole / "checkpoints" / "step_000006.ckpt", weights_only=True)
    assert content["global_step"] == 6
    assert any("teacher" in name for name in content["state_dict"])
    assert any("running_mean" in name for name in content["state_dict"])
    assert set(content["optimizer_states"][0]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert content["lr_schedulers"][0]["last_epoch"] == 6
    assert [row["step"] for row in content["callbacks"]["Curves"]["rows"]] == list("123456")
    assert content["ssl_mednet"]["recipe"]["name"] == "small"
    assert content["ssl_mednet"]["corpus"]["images"] == 45


SLURM = {"JOB_ID": "7", "JOB_NAME": "pretrain", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}


@pytest.mark.parametrize(
    ("number", "code", "slurm"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 75, False), (signal.SIGUSR1, 75, False), (signal.SIGUSR1, 75, True)],
)
def test_a_signal_finishes_the_step_writes_a_checkpoint_and_the_code_says_resume_me(
    number: int, code: int, slurm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slurm:  # in a job of its own the trainer would requeue it by itself
        for name, value in SLURM.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("SLURM_NODELIST", "localhost")
    run = Run(arguments(tmp_path, "run", "train.steps=100000", "train.checkpoint_every=90000"), tmp_path / "log")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        assert run.wait(0.05) is None, (tmp_path / "log").read_text()
    os.kill(run.pid, number)
    assert run.wait(60) == code
    said = (tmp_path / "log").read_text()
    assert "checkpoint written" in said
    assert f"--resume --out {tmp_path / 'run'}" in said
    assert "Traceback" not in said
    at = last_checkpoint(tmp_path / "run")
    assert at is not None
    assert f"stopped at step {at.step} of 100000" in said
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def test_a_second_control_c_ends_at_once_and_a_second_sigterm_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.received == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (Stopped("", "", signal.SIGTERM).exit_code, ResumeMe("").exit_code) == (75, 75)
