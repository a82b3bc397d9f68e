"""Runs of several processes: the same training as one, killed and gone on with by fewer and by more."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssl_mednet import pretrain
from ssl_mednet.errors import RecipeError
from ssl_mednet.recipe import load_recipe

STEPS = 60
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": "phantoms:gray?n=60", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_vit", "patch_size": 8},  # smooth: a ReLU within rounding of zero may take either side
    "method": {"name": "simclr"},
    # Small steps of plain descent: Adam divides by small gradients, and rounding would grow.
    "optim": {"batch_size": 8, "name": "sgd", "lr": 1e-3},
    "train": {"steps": STEPS, "device": "cpu", "precision": "float32", "checkpoint_every": 2},
    "monitor": {"every": 1, "pictures": 0},
}


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["-m", "ssl_mednet.cli", "pretrain", "--recipe", str(recipe), "--out", str(out), *more]


def losses(run: Path) -> dict[int, float]:
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "backbone" / "model.safetensors")


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], float]:
    """A run of two processes of which one is killed: its folder, how it ended, and how long that took."""
    folder = tmp_path_factory.mktemp("killed")
    recipe, out = folder / "small.yaml", folder / "run"
    recipe.write_text(load_recipe(SMALL).to_yaml())
    called = [sys.executable, *command(recipe, out, "--devices", "2")]
    process = subprocess.Popen(called, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [p for p in children_of(process.pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    began = time.monotonic()
    os.kill(max(workers), signal.SIGKILL)  # the last one that was started
    said, errors = process.communicate(timeout=60)
    took = time.monotonic() - began
    return out, subprocess.CompletedProcess(called, process.returncode, said, errors), took


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(SMALL, out=tmp_path_factory.mktemp("alone") / "run", quiet=True).folder


def test_a_killed_process_ends_the_run_with_its_number_and_signal(killed: Any) -> None:
    _, ended, took = killed
    assert ended.returncode == 5
    assert "process 1 of 2" in ended.stderr
    assert "SIGKILL" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert took < 20


def test_what_an_update_is_made_of_is_said(killed: Any) -> None:
    run, ended, _ = killed
    assert "8 images an update = 4 x 2 processes x 1 passes; learning rate 0.001" in ended.stderr
    update = json.loads((run / "environment.json").read_text())["update"]
    assert (update["images"], update["images_per_pass_and_process"], update["processes"]) == (8, 4, 2)


def test_one_process_goes_on_where_two_were(killed: Any, alone: Path, tmp_path: Path) -> None:
    run = shutil.copytree(killed[0], tmp_path / "run")
    pretrain(out=run, resume=True, overrides=["train.devices=1"], quiet=True)
    check_same_training(run, alone)


def check_same_training(run: Path, alone: Path) -> None:
    """The rows of every step were the same: losses agree step by step, weights at the end."""
    one, other = losses(run), losses(alone)
    assert list(one) == list(other) == list(range(1, STEPS + 1))
    assert [one[s] for s in one] == pytest.approx([other[s] for s in other], rel=1e-3)
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(run)[name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_four_processes_of_torchrun_go_on_where_two_were(killed: Any, alone: Path, tmp_path: Path) -> None:
    run = shutil.copytree(killed[0], tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    resumed = ["-m", "ssl_mednet.cli", "pretrain", "--resume", "--out", str(run), "train.devices=auto"]
    done = subprocess.run([*torchrun, *resumed], capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pretrained on") == 1  # process 0 alone speaks
    check_same_training(run, alone)


def slurm_task(rank: int, port: str) -> dict[str, str]:
    """What srun tells two tasks on one node."""
    task = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
    return task | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}


def node(rank: int, port: str) -> dict[str, str]:
    """What a user tells each of two nodes."""
    return {"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.mark.slow
@pytest.mark.parametrize(("place", "nodes", "port"), [(slurm_task, 1, "29617"), (node, 2, "29618")])
def test_slurm_and_nodes_started_by_hand(place: Any, nodes: int, port: str, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(load_recipe(SMALL, ["train.steps=2", f"train.nodes={nodes}"]).to_yaml())
    called = [sys.executable, *command(recipe, tmp_path / "run")]
    started = [
        subprocess.Popen(called, env=os.environ | place(rank, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=170) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert [said.decode().count("pretrained on") for said, _ in ended] == [1, 0]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["update"]["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_repeat_bit_for_bit_also_when_stopped_between(strategy: str, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    many = [f"train.strategy={strategy}", "train.devices=3", "optim.batch_size=12", "train.steps=40"]
    recipe.write_text(load_recipe(SMALL, many).to_yaml())
    run = [sys.executable, *command(recipe, tmp_path / "whole", "--quiet")]
    subprocess.run(run, check=True, capture_output=True, timeout=170)
    stopped = subprocess.Popen([sys.executable, *command(recipe, tmp_path / "parts", "--quiet")])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "parts" / "checkpoints").glob("*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.kill()
    stopped.wait()
    subprocess.run(
        [sys.executable, *command(recipe, tmp_path / "parts", "--quiet", "--resume")], check=True, timeout=170
    )
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_processes_that_cannot_share_a_batch_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch_size 8 cannot be shared by 3 processes evenly"):
        pretrain(SMALL, out=tmp_path / "run", overrides=["train.devices=3"], quiet=True)


def test_one_process_has_nothing_to_share_its_weights_with(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is one process"):
        pretrain(SMALL, out=tmp_path / "run", overrides=["train.strategy=fsdp"], quiet=True)


def test_a_launcher_and_a_recipe_that_disagree_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RecipeError, match=r"train.devices=2 on 1 nodes, but 4 processes"):
        pretrain(SMALL, out=tmp_path / "run", overrides=["train.devices=2"], quiet=True)
