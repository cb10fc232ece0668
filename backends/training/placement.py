"""Moves modules to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def place_module(module: nn.Module, device: torch.device) -> None:
    """Moves a module. Parameters that its layers share stay shared."""
    held = [(layer, *named) for layer in module.modules() for named in layer.named_parameters(recurse=False)]
    moved: dict[nn.Parameter, nn.Parameter] = {}
    module.to(device)
    for layer, name, given in held:
        # On some devices, `to` makes a new parameter in each layer. One that layers share would become several.
        setattr(layer, name, moved.setdefault(given, getattr(layer, name)))
