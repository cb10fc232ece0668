"""What batch normalisation remembers on a device, held to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MODULES: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "cumulative": lambda: nn.BatchNorm1d(4, momentum=None, affine=False),
    "instance": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
}


def check_running_statistics(backend: Any, name: str) -> None:
    """Trains and evaluates a module of MODULES on both sides."""
    host, device = MODULES[name](), backend.place(MODULES[name]())
    generator = torch.Generator().manual_seed(0)
    shape = (6, 4) if isinstance(host, nn.BatchNorm1d) else (6, 4, 5, 5)
    for _ in range(3):
        values = 2 + 3 * torch.randn(shape, generator=generator)
        given = values.clone().requires_grad_(), backend.place(values).requires_grad_()
        for module, one in zip((host, device), given, strict=True):
            module(one).square().sum().backward()
        torch.testing.assert_close(given[1].grad.cpu(), given[0].grad, rtol=1e-4, atol=1e-5)
    for buffer_name, buffer in host.named_buffers():
        torch.testing.assert_close(device.get_buffer(buffer_name).cpu(), buffer, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(device.eval()(given[1]).cpu(), host.eval()(given[0]), rtol=1e-5, atol=1e-5)
