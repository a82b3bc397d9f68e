"""What the processes of one run do together: join, agree, average."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import ClusterEnvironment
from torch import Tensor

from ssl_mednet.errors import UserError
from ssl_mednet.pretraining.world import World

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # while process 0 decodes a corpus the others wait


class _Together:
    """A group on the CPU beside the one that trains: what is agreed on never waits for a GPU."""

    group: Any = None


@contextmanager
def joined(world: World, device: str) -> Iterator[World]:
    """Be one process of ``world`` inside, which is given as the trainer is to see it; alone there is nothing to do.

    Args:
        device: ``"cpu"`` (gloo) or ``"cuda"`` (NCCL).

    Raises:
        RecipeError: more processes on this node than GPUs that they see.
    """
    if world.size == 1:
        yield world
        return
    os.environ.update(world.variables())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.local_size))
    if device == "cuda":
        world = world.with_gpus(torch.cuda.device_count())
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=world.rank, world_size=world.size)
    _Together.group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield world
    finally:
        _Together.group = None
        dist.destroy_process_group()


def settled_by_first(decide: Callable[[], T]) -> T:
    """What process 0 decides, in all processes; it alone does the work, and the others fail with it.

    Raises:
        UserError: the one that ``decide`` raised in process 0.
    """
    if _Together.group is None:
        return decide()
    told: list[T | UserError | None] = [None]
    if dist.get_rank() == 0:
        try:
            told = [decide()]
        except UserError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0, group=_Together.group)
    if isinstance(told[0], UserError):
        raise told[0]
    return told[0]  # type: ignore[return-value]


def largest(number: int) -> int:
    """The largest of the processes' numbers: the same answer in all of them. Every process must ask."""
    if _Together.group is None:
        return number
    told = torch.tensor(number)
    dist.all_reduce(told, op=dist.ReduceOp.MAX, group=_Together.group)
    return int(told)


def averaged(values: dict[str, Tensor]) -> dict[str, float]:
    """Scalars, averaged over the processes. Every process must ask, with the same names."""
    numbers = torch.tensor([float(v.detach()) for v in values.values()], dtype=torch.float64)
    if _Together.group is not None:
        dist.all_reduce(numbers, group=_Together.group)
        numbers /= dist.get_world_size()
    return dict(zip(values, numbers.tolist(), strict=True))


class Environment(ClusterEnvironment):
    """A :class:`~ssl_mednet.pretraining.world.World` as Lightning wants to see it; it launches nothing itself."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.world.address

    @property
    def main_port(self) -> int:
        return self.world.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.world.size

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return self.world.rank

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return self.world.local_rank

    def node_rank(self) -> int:
        return self.world.rank // self.world.local_size
