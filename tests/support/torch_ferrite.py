"""An out-of-tree device of torch: its tensors are the host's, and torch knows them by another device type.

A folder with this file and an entry point in the group ``torch.backends`` is an installed package: `import torch` calls
`load`. The variable FERRITE_LACKS names what its module doesn't have, by commas: generator, memory, devices.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_map

NAME = "ferrite"
# Their products are missing, as float64's are on some devices.
REFUSED = (torch.float64, torch.float16)
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mv", "aten::dot")
_libraries: list[torch.library.Library] = []


class _Held:
    """Lives as long as the tensor that holds it."""


class _Memory:
    """Bytes of the device's storages that live, and their peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._holders: Counter[int] = Counter()

    def hold(self, host: torch.Tensor) -> object:
        """Counts the storage of `host` until what is returned ends."""
        held, storage = _Held(), host.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if not self._holders[pointer]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._holders[pointer] += 1
        weakref.finalize(held, self._release, pointer, size)
        return held

    def _release(self, pointer: int, size: int) -> None:
        self._holders[pointer] -= 1
        if not self._holders[pointer]:
            self.now -= size


_memory = _Memory()
_generator = torch.Generator()


class FerriteTensor(torch.Tensor):
    """A tensor of the device. Its views have views of `host`."""

    host: torch.Tensor
    held: object

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> FerriteTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made.host = host
        # torch swaps the tensors of a module that is moved, which none may have that is weakly referenced itself.
        made.held = _memory.hold(host)
        return made

    def tolist(self) -> Any:
        # Only a subclass of torch's tensors is refused it, as other devices' tensors aren't.
        return self.host.tolist()

    def __repr__(self) -> str:  # type: ignore[override]  # torch's has arguments
        return f"FerriteTensor({self.host!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub is of an unbound function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the host's tensors. What it changed in place is returned as it was given."""
    given: dict[int, FerriteTensor] = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, FerriteTensor):
            given[id(value.host)] = value
            return value.host
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    to_host = isinstance(kwargs.get("device"), torch.device) and kwargs["device"].type == "cpu"
    host_args, host_kwargs = tree_map(unwrap, (args, kwargs))
    host_kwargs.pop("pin_memory", None)
    if function._schema.name in _PRODUCTS and any(
        isinstance(value, torch.Tensor) and value.dtype in REFUSED for value in host_args
    ):
        raise RuntimeError(f"{function._schema.name} is not implemented for this dtype on {NAME}")
    if torch.Tag.nondeterministic_seeded in function.tags:
        host_state = torch.get_rng_state()
        torch.set_rng_state(_generator.get_state())
        result = function(*host_args, **host_kwargs)
        _generator.set_state(torch.get_rng_state())
        torch.set_rng_state(host_state)
    else:
        result = function(*host_args, **host_kwargs)

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in given:
            return given[id(value)]
        changed = any(value is one for one in host_args)
        return value if to_host or changed else FerriteTensor(value)

    return tree_map(wrap, result)


def _module(lacks: set[str]) -> SimpleNamespace:
    module = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 0 if "devices" in lacks else 1,
        current_device=lambda: 0,
        set_device=lambda _: None,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=_generator.manual_seed,
        synchronize=lambda: None,
    )
    if "generator" not in lacks:
        module.get_rng_state = lambda _: _generator.get_state()
        module.set_rng_state = _set_rng_state
    if "memory" not in lacks:
        module.memory_allocated = lambda _: _memory.now
        module.max_memory_allocated = lambda _: _memory.peak
    return module


def _set_rng_state(state: torch.Tensor, device: torch.device) -> None:
    assert device.type == NAME
    _generator.set_state(state)


def load() -> None:
    """Registers the device with torch."""
    lacks = set(filter(None, os.environ.get("FERRITE_LACKS", "").split(",")))
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_module(lacks))
    # Otherwise a module that is moved gets new parameters, and two layers lose the weight that they share.
    torch.__future__.set_swap_module_params_on_conversion(True)
    library = torch.library.Library("aten", "IMPL")
    aten = torch.ops.aten
    # Operations without a tensor among their arguments, and those that are called past __torch_dispatch__.
    for function in (
        aten.empty.memory_format,
        aten.empty_strided.default,
        aten.arange.default,
        aten.arange.start,
        aten.arange.start_step,
        aten.randperm.default,
        aten.scalar_tensor.default,
    ):
        library.impl(function, _kernel(function), "PrivateUse1")
    library.impl(aten._copy_from.default, _copy_from, "PrivateUse1")
    _libraries.append(library)


def _kernel(function: Any) -> Any:
    return lambda *args, **kwargs: run(function, args, kwargs)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return run(torch.ops.aten.copy_.default, (target, source, non_blocking), {})
