"""Models whose weights the processes of one run share out among each other (torch's FSDP2).

Each process holds a part of every parameter, of its gradient and of the optimizer's state. Files hold whole tensors, so
that any number of processes reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def shard(model: nn.Module, layers: Sequence[nn.Module], size: int) -> None:
    """Shares out a placed model's parameters, in place.

    Args:
        layers: The parts of the model that are gathered one at a time when they compute, inner ones first.
        size: The number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (size,))
    for part in (*layers, model):
        fully_shard(part, mesh=mesh)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules in the model's ModuleLists, each once, inner ones first."""
    found = {
        id(part): part
        for module in reversed(list(model.modules()))
        if isinstance(module, nn.ModuleList)
        for part in module
        if not isinstance(part, (nn.ModuleList, nn.ModuleDict))
    }
    return list(found.values())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with the parts of all processes. Every process calls it, since they exchange their parts."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def part_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole `tensor`, if `other` is a part of one, else `tensor`."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    held: Any = other
    # Every process has all of it, so nothing is exchanged.
    return distribute_tensor(tensor.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


@contextmanager
def unsynchronized(model: Any) -> Iterator[None]:
    """Gradients of the block stay in this process until a later backward."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
