"""How Lightning spreads a run over processes: every one holds all weights (DDP), or a share of them (FSDP)."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from ssl_mednet.methods import Method
from ssl_mednet.pretraining.world import World
from ssl_mednet.schema import Recipe


def is_sharded(recipe: Recipe, world: World) -> bool:
    """Whether each process holds a share of the weights only."""
    return recipe.train.strategy == "fsdp" and world.size > 1


def spread(recipe: Recipe, world: World, device: str) -> Strategy | str:
    """Lightning's strategy for this recipe in this world."""
    if world.size == 1:
        return "auto"
    if is_sharded(recipe, world):
        return ModelParallelStrategy(
            data_parallel_size=world.size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(
        # After its first step DDP would sort the gradients anew by when they came. Where they lie decides in which
        # order those of more than two processes are added, so a resumed run would differ in the last bit. Looking for
        # unused parameters keeps the order; on a GPU the better overlap of the new order is worth more.
        find_unused_parameters=device == "cpu",
        broadcast_buffers=not recipe.train.sync_batchnorm,
    )


def shard(method: Method, mesh: Any) -> None:
    """Spread the parameters of a method over the processes of ``mesh``: block by block, and the rest together."""
    for module in reversed(list(method.modules())):  # inner blocks before those that hold them
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for block in module:
                if len(list(block.children())) > 1:
                    fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "training_step")


def whole_state(module: nn.Module) -> dict[str, Any]:
    """All weights of a module that may be sharded, on the CPU of process 0; every process must ask."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(module, options=options)


def whole_norm(norm: Tensor) -> Tensor:
    """The norm of sharded gradients as a plain tensor."""
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
