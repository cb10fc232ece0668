"""Tenstorrent's stack as far as it can be had without a card: torch_xla's CPU device in the card's place.

The vendor's entry points are faked, and write down what they are told; torch_xla is real.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from isotrain.backends.tt import card_xla, stacks


class Card:
    """What the vendor's stack was told: options of its compiler, in order, and graphs that dynamo handed over."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []
        self.graphs: list[tuple[torch.fx.GraphModule, dict[str, Any]]] = []
        self.compiled_under: list[str] = []


def put_card(patch: pytest.MonkeyPatch, folder: Path, compile_count: Callable[[], int]) -> Card:
    """Until `patch` is undone, this machine has a card. `folder` gets its device file."""
    import torch_xla
    from torch._dynamo.backends import registry
    from torch_xla import runtime

    told = Card()

    def compiler(graph: torch.fx.GraphModule, inputs: Any, options: dict[str, Any]) -> Callable[..., Any]:
        told.graphs.append((graph, options))
        return graph.forward

    sync = torch_xla.sync

    def counting_sync(*args: Any, **kwargs: Any) -> None:
        before = compile_count()
        sync(*args, **kwargs)
        if compile_count() != before:
            told.compiled_under.append(told.options[-1]["experimental_weight_dtype"])

    (folder / "tenstorrent").mkdir()
    (folder / "tenstorrent" / "0").touch()
    entry = EntryPoint("tt", "torch_plugin_tt:TTPlugin", stacks.PLUGIN_GROUP)
    patch.setattr(stacks, "CARD_FOLDER", folder / "tenstorrent")
    patch.setattr(stacks, "entry_points", lambda **_: [entry])
    patch.setattr(card_xla, "DEVICE_TYPE", "CPU")
    # `_open` sets it for good; afterwards it is gone again.
    patch.setenv("XLA_STABLEHLO_COMPILE", "0")
    patch.setattr(torch_xla, "set_custom_compile_options", told.options.append, raising=False)
    patch.setattr(torch_xla, "sync", counting_sync)
    patch.setattr(runtime, "global_runtime_device_attributes", lambda: [{"name": "TT:0", "device_arch": "Wormhole_b0"}])
    patch.setitem(sys.modules, "tt_torch", ModuleType("tt_torch"))
    # As torch._dynamo.register_backend does it, which has no way back.
    patch.setitem(registry._BACKENDS, "tt", None)
    patch.setitem(registry._COMPILER_FNS, "tt", compiler)
    torch._dynamo.reset()
    return told


def name_it_a_card(patch: pytest.MonkeyPatch) -> None:
    """The device calls itself what a card does, and is still torch_xla's CPU: what only a card does is then done."""
    from torch_xla import runtime

    real = runtime.set_device_type
    patch.setattr(card_xla, "DEVICE_TYPE", "TT")
    patch.setattr(runtime, "set_device_type", lambda _: real("CPU"))
