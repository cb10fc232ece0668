"""Backends by name: the built-in ones, and those that installed packages add through entry points.

A package adds one by ``[project.entry-points."isotrain.backends"] npu = "its.module:NpuBackend"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .. import UserError
from ..kernels.names import check_name
from .base import Backend
from .types import LAYOUTS, BackendUnavailableError, Foreseen

ENTRY_POINT_GROUP = "isotrain.backends"

_BUILT_IN = {
    "cpu": ".cpu:CpuBackend",
    "cuda": ".cuda.device:CudaBackend",
    "xla": ".xla:XlaBackend",
    "tt": ".tt.card:TtBackend",
    "ideal": ".ideal:IdealBackend",
}
# The kernels of those whose modules import torch, which planning a benchmark must not; all else that is to be foreseen
# of them is the default.
_IMPORT_TORCH = {"cpu": ("native", "portable"), "cuda": ("triton", "flash", "portable")}


def list_backends() -> list[str]:
    """Every backend name that `get_backend` knows, available here or not; built-in ones first."""
    return [*_BUILT_IN, *sorted(entry.name for entry in _installed() if entry.name not in _BUILT_IN)]


def backend_class(name: str) -> type[Backend]:
    """The class behind a backend's name, not yet opened. Raises UserError for an unknown name."""
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(import_module(module, __package__), attribute)
    for entry in _installed():
        if entry.name == name:
            return _load(entry)
    check_name("backend", name, list_backends())
    raise AssertionError("a name that is listed is found")


def foresee_backend(name: str, options: Mapping[str, Any] | None = None) -> Foreseen:
    """What `get_backend` with the same arguments will open, told without opening it.

    A built-in one costs no import of torch. Raises UserError for an unknown name, and for options it can't use.
    """
    base, _ = split_name(name)
    if base in _IMPORT_TORCH:
        return Foreseen(LAYOUTS, kernels=_IMPORT_TORCH[base])
    return backend_class(base).foresee((options or {}).get(base))


def get_backend(name: str, options: Mapping[str, Any] | None = None) -> Backend:
    """Opens the backend called `name`: "cpu", "cuda", or with a device index, "cuda:1".

    `options` holds what a configuration says to backends, by backend name: only the opened one gets its own.

    Raises UserError for an unknown name (it lists what exists) and BackendUnavailableError, with the reason and
    the fix, for one that can't run here.
    """
    base, index = split_name(name)
    check_available(base)
    return backend_class(base).open(index, (options or {}).get(base))


def split_name(name: str) -> tuple[str, int | None]:
    """The backend's name and the device number of "cuda:1". Raises UserError for what is no number."""
    base, separator, index = name.partition(":")
    if separator and not index.isdecimal():
        raise UserError(f"backend {name!r}: the part after the colon must be a device number; write {base}:0")
    return base, int(index) if separator else None


def check_available(name: str) -> None:
    """Raises what `get_backend` would where the backend called `name` can't run here; opens nothing."""
    base = name.partition(":")[0]
    availability = backend_class(base).probe()
    if not availability.ok:
        raise BackendUnavailableError(f"backend {base!r} can't run here: {availability.reason}; {availability.fix}")


def rank_backend(name: str, local_rank: int) -> str:
    """`name` with the device of the machine's process number `local_rank`, of several that train one run together.

    Raises UserError where `name` gives all of them one device.
    """
    base, separator, _ = name.partition(":")
    index = backend_class(base).device_of_rank(local_rank)
    if index is None:
        return name
    if separator:
        raise UserError(f"backend {name!r} is one device, and several processes were started; write {base}")
    return f"{base}:{index}"


def rank_group(name: str) -> str | None:
    """What several processes on backend `name` communicate over, in torch's words; None where one trains alone."""
    return backend_class(name.partition(":")[0]).process_group


def _installed() -> Iterator[EntryPoint]:
    return iter(entry_points(group=ENTRY_POINT_GROUP))


def _load(entry: EntryPoint) -> type[Backend]:
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"backend {entry.name!r} is registered as {entry.value!r}, which can't be loaded ({error}); "
            "repair or uninstall the package that registers it"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise UserError(
            f"backend {entry.name!r} is registered as {entry.value!r}, which is no isotrain Backend class; "
            "repair or uninstall the package that registers it"
        )
    return loaded
