"""Processes that are started together end together, with the reason; and whoever starts them, each knows its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.pretraining.build import device_kind, processes_wanted
from ssl_mednet.pretraining.launch import ProcessDied, launch
from ssl_mednet.pretraining.processes import Environment
from ssl_mednet.pretraining.world import World, first_host, given_world, own_worlds, speaks
from ssl_mednet.schema import Recipe

TWO = [World(rank, 2, rank, 2) for rank in range(2)]


def place(world: World) -> tuple[int, int]:
    return world.rank, os.getpid()


def fails(world: World, how: str) -> None:
    if world.rank == 1:
        if how == "user":
            raise UserError("the disk is full", "free some")
        if how == "crash":
            raise ZeroDivisionError("by nothing")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5 if how == "user" else 600)


def ends(world: World) -> None:
    os._exit(7)


def waits_for_signal(world: World, folder: Path) -> int:
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    (folder / str(world.rank)).write_text(str(os.getpid()))
    while not came:
        time.sleep(0.01)
    time.sleep(0.3)
    return len(came)


def test_every_process_has_its_place_and_the_result_is_of_the_first() -> None:
    rank, pid = launch(place, TWO)
    assert rank == 0
    assert pid != os.getpid()


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("user", UserError, "the disk is full (free some)"),
        ("crash", ProcessDied, r"process 1 of 2 \(pid \d+\) crashed: ZeroDivisionError: by nothing"),
        ("kill", ProcessDied, r"process 1 of 2 \(pid \d+\) was killed by SIGKILL"),
    ],
)
def test_a_process_that_ends_ends_the_others_with_its_reason(how: str, error: type[UserError], says: str) -> None:
    began = time.monotonic()
    with pytest.raises(error) as caught:
        launch(partial(fails, how=how), TWO)
    assert caught.match(says.replace("(free some)", r"\(free some\)"))
    assert time.monotonic() - began < 60  # the other one would have slept ten minutes


def test_a_process_that_ends_without_a_word_is_named_and_scripts_are_told_why_it_may_be() -> None:
    with pytest.raises(ProcessDied, match=r"process 0 of 1 .* exit code 7 .*__main__"):
        launch(ends, [World()])


def test_a_signal_reaches_every_process_once(tmp_path: Path) -> None:
    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    handler = signal.getsignal(signal.SIGTERM)
    assert launch(partial(waits_for_signal, folder=tmp_path), TWO) == 1
    assert signal.getsignal(signal.SIGTERM) is handler


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from functools import partial; sys.path.insert(0, sys.argv[1]);"
        "from test_launch import TWO, waits_for_signal; from ssl_mednet.pretraining.launch import launch;"
        "launch(partial(waits_for_signal, folder=Path(sys.argv[2])), TWO)"
    )
    folder = tmp_path / "pids"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(folder)])
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    pids = [int(p.read_text()) for p in folder.iterdir()]
    parent.kill()
    parent.wait()
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "h0",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "1234567",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (TORCHRUN, World(5, 8, 1, 4, "h0", 1234)),
        (SLURM, World(5, 8, 1, 4, "gpu07", 19567)),
        (SLURM | {"MASTER_PORT": "99", "MASTER_ADDR": "other"}, World(5, 8, 1, 4, "other", 99)),
        (SLURM | TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, World(0, 8, 0, 4, "h0", 1234)),  # torchrun inside srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # the batch script itself, before any srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),  # an interactive shell
        ({}, None),
    ],
)
def test_a_launcher_is_understood(env: dict[str, str], expected: World | None) -> None:
    assert given_world(env) == expected
    assert speaks(env) == (expected is None or expected.rank == 0)
    if expected is not None:
        assert expected.nodes == 2
        assert given_world(expected.variables()) == expected


def test_a_world_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="RANK must be a number, not 'x'"):
        given_world(TORCHRUN | {"RANK": "x"})
    with pytest.raises(RecipeError, match="process 8 of 8"):
        given_world(TORCHRUN | {"RANK": "8"})
    with pytest.raises(RecipeError, match="same number of processes"):
        given_world(TORCHRUN | {"LOCAL_WORLD_SIZE": "3"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[007-009,012],cpu1", "gpu007"),
        ("gpu[3]", "gpu3"),
        ("a,b", "a"),
        ("one", "one"),
        ("rack1-n[02,04]", "rack1-n02"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_several_nodes_without_a_launcher_need_to_know_their_number() -> None:
    with pytest.raises(RecipeError, match="torchrun or srun"):
        own_worlds(2, 2, {})
    worlds = own_worlds(2, 2, {"MASTER_ADDR": "h0", "NODE_RANK": "1"})
    assert worlds == [World(2, 4, 0, 2, "h0", 29500), World(3, 4, 1, 2, "h0", 29500)]
    assert not speaks({"NODE_RANK": "1"})


@pytest.mark.parametrize("device", ["cuda", "gpu", "mps"])
def test_a_device_that_is_not_there_is_told(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(RecipeError, match=f"train.device={device}: torch finds none here"):
        processes_wanted(Recipe.model_validate({"train": {"device": device}}))


def test_an_apple_gpu_is_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    kinds = [device_kind(Recipe.model_validate({"train": {"device": name}})) for name in ("auto", "mps")]
    assert kinds == ["cpu", "mps"]


def test_a_process_that_sees_one_gpu_of_several_processes_takes_that_one() -> None:
    world = World(5, 8, 1, 4, "h0", 29500)
    assert world.with_gpus(4) == world
    own = world.with_gpus(1)
    assert own == World(5, 8, 0, 1, "h0", 29500)
    assert (own.nodes, Environment(own).node_rank(), Environment(own).global_rank()) == (8, 5, 5)
    with pytest.raises(RecipeError, match="4 processes on this node see 2 GPUs"):
        world.with_gpus(2)
