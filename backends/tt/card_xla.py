"""A Tenstorrent card through torch_xla and the vendor's PJRT plugin.

The vendor's names are those of its plugin in 2026 (package pjrt-plugin-tt). This file has not been run on a card yet:
its tests use torch_xla's CPU device instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from ..base import Backend
from ..traits import TT
from ..types import Availability, BackendUnavailableError
from ..xla import XlaBackend
from . import stacks
from .card import Card
from .options import TtOptions

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])

DEVICE_TYPE = "TT"

# For torch.compile(backend="tt"): keep torch_xla's lazy execution, so that a step stays one program.
COMPILE_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "tt_legacy_compile": True,
    "tt_lazy_execution": True,
    "tt_use_aot_autograd": False,
    "tt_enable_torch_fx_fusion_pass": False,
}


class TtBackend(Card, XlaBackend):
    """One Tenstorrent card through torch_xla."""

    name = "tt"
    traits = TT

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        os.environ["PJRT_DEVICE"] = DEVICE_TYPE
        os.environ["XLA_STABLEHLO_COMPILE"] = "1"
        Backend.__init__(self, index, options or TtOptions())
        self._open(DEVICE_TYPE)
        self.check_options()

    @classmethod
    def probe(cls) -> Availability:
        return stacks.probed(cls.name)

    @classmethod
    def resolve(cls, options: TtOptions) -> str:
        """A card by what drives it here, or the emulation; the option `device` may decide."""
        return stacks.taken(options.device)

    def _configure(self) -> None:
        try:
            # Registers the dynamo backend "tt".
            import_module("tt_torch")
        except ImportError as error:
            raise BackendUnavailableError(
                f"backend 'tt' can't load the vendor's compiler ({error}); install pjrt-plugin-tt whole, again"
            ) from error
        if not hasattr(self._xla, "set_custom_compile_options"):
            raise BackendUnavailableError(
                f"backend 'tt': torch_xla {self._xla.__version__} is not the vendor's torch_xla (it takes no compile "
                "options); install the one that pjrt-plugin-tt brings"
            )
        self._set_compile_options("")

    def _set_compile_options(self, weight_dtype: str) -> None:
        """Sets the compiler's options for every program that is compiled from now on."""
        self._xla.set_custom_compile_options(self.compiler_options(weight_dtype))

    def arch(self) -> str:
        attributes = self._runtime.global_runtime_device_attributes()[self.index or 0]
        return str(attributes.get("device_arch", "")).lower()

    def compile(self, fn: F, mode: str | None = None) -> F:
        super().compile(fn, mode)
        program: Any = self.one_program(fn)
        return program

    def one_program(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        import torch

        return torch.compile(function, backend="tt", options=COMPILE_OPTIONS)

    def step_boundary(self) -> None:
        self._run_pending(wait=True)

    @contextmanager
    def frozen_weights(self) -> Iterator[None]:
        # The compiler's option is global and applies to all weights of a program, so trained ones must not be in it.
        if self.options.weight_dtype == "bfloat16":
            yield
            return
        self.step_boundary()
        self._set_compile_options(self.options.weight_dtype)
        try:
            yield
            self.step_boundary()
        finally:
            self._set_compile_options("")
