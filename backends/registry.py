"""Backends by name: the built-in ones, and those that installed packages add through entry points.

A package adds one by ``[project.entry-points."isotrain.backends"] npu = "its.module:NpuBackend"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from .. import UserError
from ..kernels.names import check_name
from . import traits as built_in
from .base import Backend
from .traits import Traits
from .types import BackendUnavailableError

if TYPE_CHECKING:
    from pydantic import BaseModel

ENTRY_POINT_GROUP = "isotrain.backends"

# The traits stand here, too, for many of the modules import torch.
_BUILT_IN = {
    "cpu": (".cpu:CpuBackend", built_in.CPU),
    "cuda": (".cuda.device:CudaBackend", built_in.CUDA),
    "xla": (".xla:XlaBackend", built_in.XLA),
    "tt": (".tt.card:TtBackend", built_in.TT),
    "tt-emulated": (".tt.emulated:TtEmulated", built_in.TT_EMULATED),
    "ideal": (".ideal:IdealBackend", built_in.IDEAL),
}


def list_backends() -> list[str]:
    """Every backend name that `get_backend` knows, available here or not; built-in ones first."""
    return [*_BUILT_IN, *sorted(entry.name for entry in _installed() if entry.name not in _BUILT_IN)]


def backend_class(name: str) -> type[Backend]:
    """The class behind a backend's name, not yet opened. Raises UserError for an unknown name."""
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name][0].partition(":")
        return getattr(import_module(module, __package__), attribute)
    for entry in _installed():
        if entry.name == name:
            return _load(entry)
    check_name("backend", name, list_backends())
    raise AssertionError("a name that is listed is found")


def backend_traits(name: str) -> Traits:
    """The traits of the backend called `name`, with or without a device number.

    A built-in one's cost no import of torch; an installed package's module is imported. Raises UserError for an
    unknown name.
    """
    base, _ = split_name(name)
    return _BUILT_IN[base][1] if base in _BUILT_IN else backend_class(base).traits


def caveat(name: str) -> str:
    """See `Backend.caveat`, of the backend called `name`."""
    return name if backend_traits(name).emulated else ""


def resolve(name: str, options: Mapping[str, Any] | None = None) -> str:
    """The name of the backend that opens as `name` on this machine, which is where "tt" becomes "tt-emulated".

    Every name that a user writes goes through here once, when a configuration is made; what is opened, measured and
    recorded has the name that this returns. Raises UserError for an unknown name, and for options that can't be met.
    """
    base, index = split_name(name)
    if not backend_traits(base).resolves:
        return name
    found = backend_class(base).resolve(read_options(base, options))
    return found if index is None else f"{found}:{index}"


def get_backend(name: str, options: Mapping[str, Any] | None = None) -> Backend:
    """Opens the backend called `name`: "cpu", "cuda", or with a device index, "cuda:1".

    `options` is `backend_options` of a configuration: only the opened backend gets its own section of it.

    Raises UserError for an unknown name (it lists what exists) and BackendUnavailableError, with the reason and
    the fix, for one that can't run here.
    """
    name = resolve(name, options)
    check_available(name)
    base, index = split_name(name)
    chosen = read_options(base, options)
    kind = backend_class(base)
    return kind(index) if chosen is None else kind(index, chosen)


def options_section(name: str) -> str | None:
    """The key of a configuration that holds the options of the backend called `name`; None where it takes none."""
    if name in _BUILT_IN:
        return _BUILT_IN[name][1].section
    return None if backend_class(name).Options is None else name


def options_model(section: str) -> type[BaseModel] | None:
    """The model of what stands under the key `section` of a configuration; None where no backend has that section."""
    for name in list_backends():
        # A package's module is imported for its own section alone.
        if (name in _BUILT_IN or name == section) and options_section(name) == section:
            return backend_class(name).Options
    return None


def options_models() -> dict[str, type[BaseModel]]:
    """The models of all sections by their keys."""
    found = {}
    for name in list_backends():
        # What can't be loaded has no keys to list; whoever uses it is told why.
        with suppress(UserError):
            section = options_section(name)
            model = None if section is None else options_model(section)
            if section is not None and model is not None:
                found[section] = model
    return found


def read_section(section: str, given: Mapping[str, Any]) -> BaseModel:
    """What stands under the key `section` of a configuration, in its model. Raises UserError for anything else."""
    from pydantic import ValidationError

    model = options_model(section)
    if model is None:
        raise UserError(f"backend {section!r} takes no options, and was given {', '.join(given)}; drop them")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join((section, *map(str, problem["loc"])))
        raise UserError(f"{key} is {problem['input']!r}: {problem['msg'].lower()}") from error


def read_options(name: str, options: Mapping[str, Any] | None) -> BaseModel | None:
    """What `options` (see `get_backend`) say to the backend called `name`; None where it takes none and is told none.

    Raises UserError for what it does not take.
    """
    section = options_section(name)
    given = (options or {}).get(section or name)
    return read_section(section or name, given or {}) if section or given else None


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
    if not backend_traits(name).device_per_process:
        return name
    if ":" in name:
        raise UserError(
            f"backend {name!r} is one device, and several processes were started; write {name.partition(':')[0]}"
        )
    return f"{name}:{local_rank}"


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
