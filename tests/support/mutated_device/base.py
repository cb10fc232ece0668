"""What the broken devices share: the host, and a way to change the tensors that `place` has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from isotrain.backends import ShapeGrid, Traits
from isotrain.backends.cpu import CpuBackend
from isotrain.backends.traits import CPU
from torch import nn

T = TypeVar("T")


class Mutant(CpuBackend):
    """The host. CLAUSE: the checks that a mutant must fail, in the order of the suite; no others."""

    name = "mutant"
    traits = Traits(layouts=("padded", "bucketed"), kernels=("native", "portable"), dtypes=CPU.dtypes)
    CLAUSE: ClassVar[tuple[str, ...]] = ()


class Compiling(Mutant):
    """A right device that compiles a program for each shape of what it is given to compile."""

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._programs: set[torch.Size] = set()

    @property
    def static_shapes(self) -> ShapeGrid | None:
        return ShapeGrid(1024)

    def compile(self, fn: Any, mode: str | None = None) -> Any:
        def compiled(inputs: torch.Tensor) -> torch.Tensor:
            self._programs.add(inputs.shape)
            return fn(inputs)

        return compiled

    def device_compilations(self) -> int:
        return len(self._programs)


def mapped(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """`value` with `change` applied to the tensors in it, where `place` has left them."""
    item: Any = value
    if isinstance(item, torch.Tensor) and not isinstance(item, nn.Parameter):
        item = change(item)
    elif isinstance(item, dict):
        item = {key: mapped(part, change) for key, part in item.items()}
    elif isinstance(item, (list, tuple)):
        item = type(item)(mapped(part, change) for part in item)
    return item
