"""Moves modules, and structures of tensors, to a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")


def placed(value: T, device: torch.device, place: Callable[[Any], Any]) -> T:
    """`value` on `device`: a module, or what `Backend.place` names. `place` does the same for the parts of it."""
    from torch import nn

    item: Any = value
    if isinstance(item, nn.Module):
        place_module(item, device)
    elif isinstance(item, dict):
        item = {key: place(part) for key, part in item.items()}
    elif isinstance(item, (list, tuple)):
        item = type(item)(place(part) for part in item)
    elif hasattr(item, "to"):
        item = item.to(device)
    return item


def place_module(module: nn.Module, device: torch.device) -> None:
    """Moves a module. Parameters that its layers share stay shared."""
    held = [(layer, *named) for layer in module.modules() for named in layer.named_parameters(recurse=False)]
    moved: dict[nn.Parameter, nn.Parameter] = {}
    module.to(device)
    for layer, name, given in held:
        # On some devices, `to` makes a new parameter in each layer. One that layers share would become several.
        setattr(layer, name, moved.setdefault(given, getattr(layer, name)))
