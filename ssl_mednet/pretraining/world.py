"""Which of how many processes this is: from torchrun's variables, SLURM's, or our own; known before torch is loaded."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ssl_mednet.errors import RecipeError

_SLURM_PORTS = 15000  # plus the last four digits of the job: every process of a job knows the same one


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one among them.

    Args:
        rank: number of this process, from 0.
        size: how many there are, on all nodes.
        local_rank: number of this process on its node; it trains on the GPU of that number.
        local_size: how many there are on this node.
        address, port: where process 0 is found.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        numbered = 0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size
        if not numbered or self.size % self.local_size:
            here = f"on its node {self.local_rank} of {self.local_size}"
            raise RecipeError(
                f"process {self.rank} of {self.size}, {here}: no such process",
                "every node has the same number of processes, numbered from 0; torchrun and srun set this right",
            )

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks to the user."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        return self.size // self.local_size

    def with_gpus(self, count: int) -> World:
        """The world where this process sees so many GPUs.

        ``srun --gpus-per-task=1`` shows each process one, which torch numbers 0: each is like a node of its own then.

        Raises:
            RecipeError: more processes on this node than GPUs, though they see several.
        """
        if count >= self.local_size:
            return self
        if count == 1:
            return replace(self, local_rank=0, local_size=1)
        raise RecipeError(
            f"{self.local_size} processes on this node see {count} GPUs",
            "one process a GPU: srun --ntasks-per-node=N --gpus-per-node=N, or torchrun --nproc-per-node=N",
        )

    def variables(self) -> dict[str, str]:
        """The world as torch's own environment variables."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def given_world(env: Mapping[str, str] | None = None) -> World | None:
    """The world that a launcher has put this process into; None where nobody has.

    torchrun (and whatever sets the same variables) comes before SLURM. Of SLURM only tasks that ``srun`` started
    count: the batch script itself is a single process, whatever was allocated for it.

    Raises:
        RecipeError: the variables are no numbers or contradict each other.
    """
    env = os.environ if env is None else env
    if "RANK" in env and "WORLD_SIZE" in env:
        size = _number(env, "WORLD_SIZE")
        local_size = _number(env, "LOCAL_WORLD_SIZE", size)
        rank = _number(env, "RANK")
        local_rank = _number(env, "LOCAL_RANK", rank % max(1, local_size))
        return World(
            rank, size, local_rank, local_size, env.get("MASTER_ADDR", "127.0.0.1"), _number(env, "MASTER_PORT", 29500)
        )
    if "SLURM_PROCID" in env and _number(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        size = _number(env, "SLURM_STEP_NUM_TASKS")
        # As in "4(x2)": four tasks on each of two nodes.
        local_size = int(re.split(r"\D", env.get("SLURM_STEP_TASKS_PER_NODE", str(size)))[0])
        port = _number(env, "MASTER_PORT", _SLURM_PORTS + int(env.get("SLURM_JOB_ID", "0")[-4:]))
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
        address = env.get("MASTER_ADDR") or first_host(nodes)
        return World(_number(env, "SLURM_PROCID"), size, _number(env, "SLURM_LOCALID", 0), local_size, address, port)
    return None


def own_worlds(processes: int, nodes: int, env: Mapping[str, str] | None = None) -> list[World]:
    """The worlds of the processes that a run starts itself on this node.

    Args:
        processes: on each node.
        nodes: how many; with several, every node is told MASTER_ADDR, MASTER_PORT and its own NODE_RANK.

    Raises:
        RecipeError: several nodes, and this one does not know where it is among them.
    """
    env = os.environ if env is None else env
    if nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= set(env):
        raise RecipeError(
            f"train.nodes={nodes}: nobody has told this process which node it is on",
            "start it with torchrun or srun on every node, or set MASTER_ADDR, MASTER_PORT and NODE_RANK",
        )
    node = _number(env, "NODE_RANK", 0) if nodes > 1 else 0
    address = env["MASTER_ADDR"] if nodes > 1 else "127.0.0.1"
    port = _number(env, "MASTER_PORT", 29500) if nodes > 1 else _free_port()
    first, size = node * processes, nodes * processes
    return [World(first + i, size, i, processes, address, port) for i in range(processes)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def speaks(env: Mapping[str, str] | None = None) -> bool:
    """Whether this process is the one that talks to the user: process 0, or the one that starts process 0."""
    env = os.environ if env is None else env
    world = given_world(env)
    return world.first if world else env.get("NODE_RANK", "0") == "0"


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list.

    >>> first_host("gpu[007-009,012],cpu1"), first_host("a,b"), first_host("node-[3]")
    ('gpu007', 'a', 'node-3')
    """
    head = re.match(r"([^,\[\s]+)(?:\[([^\],-]+)[^\]]*\])?([^,\s]*)", nodes)
    return "".join(part or "" for part in head.groups()) if head else nodes


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise RecipeError(f"environment variable {name} must be a number, not {text!r}") from None
