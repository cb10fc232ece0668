"""A Tenstorrent card through torch_tpu and the PJRT plugin that TPU_LIBRARY_PATH names.

This file has not been run on a card yet: its tests use XLA's CPU device instead, behind the checks that the vendor's
plugin makes of its options.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ... import UserError
from ...kernels.inductor import compiled
from ..tpu import LIBRARY_VARIABLE, TpuBackend
from ..traits import TT_TPU
from ..types import Availability
from . import stacks
from .card import Card
from .options import TtOptions

if TYPE_CHECKING:
    import torch


class TtTpuBackend(Card, TpuBackend):
    """One Tenstorrent card through torch_tpu: eager, a program for each operator and shape.

    The compiler's options belong to a thread, and to the backward passes that it starts. A thread that computes on the
    card opens the backend itself.
    """

    name = "tt-tpu"
    traits = TT_TPU
    chooser = "TT_VISIBLE_DEVICES"
    needs_tpu = False

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options or TtOptions())
        if not self.arch().startswith(("wormhole", "blackhole")):
            raise UserError(
                f"backend 'tt-tpu': {LIBRARY_VARIABLE} names a PJRT plugin whose device is {self._kind!r}, which is no "
                "Tenstorrent card; set it to the library of a plugin for the card"
            )
        self.check_options()
        # Every program needs them, eager ones too, so they hold as long as the backend does.
        self.compiling = ExitStack()
        self.compiling.enter_context(self._compiling_with(self.compiler_options("")))

    @classmethod
    def probe(cls) -> Availability:
        return stacks.probed(cls.name)

    @property
    def caveat(self) -> str:
        return ""

    def arch(self) -> str:
        return self._kind.lower()

    def one_program(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return compiled(function, "use --backend cpu", compiler="tpu")

    def frozen_weights(self) -> AbstractContextManager[None]:
        if self.options.weight_dtype == "bfloat16":
            return nullcontext()
        return self._compiling_with({"experimental_weight_dtype": self.options.weight_dtype})

    @contextmanager
    def _compiling_with(self, options: dict[str, Any]) -> Iterator[None]:
        """Options for what this thread compiles inside, beside those of the context around it."""
        config = import_module("torch.compiler.config")
        words = {name: value if isinstance(value, str) else str(value).lower() for name, value in options.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="<TorchTpu/")
            context = import_module("torch.tpu.compiler").custom_compiler_options(words)
        # Without it, torch.compile takes programs from the disk that were compiled with other options.
        with context, config.patch(cache_key_tag=f"{config.cache_key_tag}{words}"):
            yield
