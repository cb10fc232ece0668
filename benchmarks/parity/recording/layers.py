"""The calls of a module's layers: what each was given, and what it returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .... import UserError
from ....albert_core.workload.batches import tensors
from ....albert_core.workload.load import LoadedWorkload
from .observe import on_host_wide


class LayerCalls:
    """The calls of layers in one forward pass, in order. A layer that is called several times has several.

    The first floating-point tensor of a call's arguments is what it was given, and the first of its result what it
    returned.

    Attributes:
        names: The layer of each call.
        inputs: What each call was given, on the device.
        outputs: What it returned.
    """

    def __init__(self, layers: Mapping[nn.Module, str], given: Sequence[torch.Tensor] = ()) -> None:
        """`given` replaces what the calls are given, in a replay of other states."""
        self._layers, self._given = layers, given
        self._open: list[int | None] = []
        self.names: list[str] = []
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A block with the forward pass."""
        hooks = [layer.register_forward_pre_hook(self._before, with_kwargs=True) for layer in self._layers]
        hooks += [layer.register_forward_hook(self._after) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def states(self) -> dict[str, np.ndarray]:
        """As a trace has them: the first call's input, and every output. Inputs that are no call's output beside it."""
        given = [on_host_wide(one) for one in self.inputs]
        states = [*given[:1], *map(on_host_wide, self.outputs)]
        others = {
            f"input.{number:04}": one
            for number, (one, before) in enumerate(zip(given, states[:-1], strict=True), start=1)
            if not np.array_equal(one, before)
        }
        return {f"state.{number:04}": state for number, state in enumerate(states)} | others

    def replay(self) -> dict[str, np.ndarray]:
        """What each call of a replay returned, as a trace has it."""
        return {f"replay.{number:04}": on_host_wide(one) for number, one in enumerate(self.outputs, start=1)}

    def _before(
        self, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        values: dict[Any, Any] = {**dict(enumerate(arguments)), **keywords}
        place = next((place for place, value in values.items() if _is_floating(value)), None)
        number = len(self.inputs)
        self._open.append(None if place is None else number)
        if place is None:
            return None
        if number < len(self._given) and self._given[number].shape == values[place].shape:
            values[place] = self._given[number].to(values[place].dtype)
        name = self._layers[layer]
        before = sum(one.partition(" ")[0] == name for one in self.names)
        self.names.append(f"{name} (call {before + 1})" if before else name)
        # A copy, since the layer may change it in place.
        self.inputs.append(values[place].detach().clone())
        self.outputs.append(self.inputs[-1])
        return tuple(values[place] for place in range(len(arguments))), {name: values[name] for name in keywords}

    def _after(self, layer: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        del layer, arguments
        number = self._open.pop()
        returned = floating(result)
        if number is not None and returned:
            self.outputs[number] = returned[0].detach().clone()


def named_layers(workload: LoadedWorkload, model: nn.Module) -> dict[nn.Module, str]:
    """The layers that parity replays, with their names in the model.

    They are the workload's own `layers`, else the longest ModuleList, else the parts of a Sequential; or none.

    Raises:
        UserError: `layers` returned something else than modules.
    """
    own = workload.optional("layers")
    if own is None:
        lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
        layers = list(max(lists, key=len) if lists else model if isinstance(model, nn.Sequential) else ())
    else:
        with workload.blamed("layers"):
            layers = list(own(model))
        for layer in layers:
            if not isinstance(layer, nn.Module):
                raise UserError(
                    f"{workload.place_of('layers')}: layers returned a {type(layer).__name__} among them; return "
                    "modules of the model"
                )
    names = {part: name for name, part in model.named_modules()}
    return {layer: names.get(layer, type(layer).__name__) for layer in layers}


def floating(value: Any) -> list[torch.Tensor]:
    """The floating-point tensors in a result of any form, in order."""
    return [tensor for _, tensor in tensors(value) if tensor.is_floating_point()]


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
