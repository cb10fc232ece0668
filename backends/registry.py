"""Backends by name: the built-in ones, and those that installed packages add through entry points.

A package adds one by ``[project.entry-points."isotrain.backends"] npu = "its.module:NpuBackend"``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .. import UserError
from ..kernels.names import check_name
from ..kernels.plugins import Plugins
from . import traits as built_in
from .accelerators import AUTOLOAD, DEVICES, LATE, device_class, device_names
from .base import Backend
from .traits import Traits
from .types import BackendUnavailableError

if TYPE_CHECKING:
    from pydantic import BaseModel

# The traits are here, too, since many of the modules import torch.
_BUILT_IN = {
    "cpu": (".cpu:CpuBackend", built_in.CPU),
    "cuda": (".cuda.rocm:BuiltBackend", built_in.CUDA),
    "xla": (".xla:XlaBackend", built_in.XLA),
    "tpu": (".tpu:TpuBackend", built_in.TPU),
    "tt": (".tt.card_xla:TtBackend", built_in.TT),
    "tt-tpu": (".tt.card_tpu:TtTpuBackend", built_in.TT_TPU),
    "tt-emulated": (".tt.emulated:TtEmulated", built_in.TT_EMULATED),
    "ideal": (".ideal:IdealBackend", built_in.IDEAL),
}


_PLUGINS = Plugins("backend", Backend, {name: f"{__package__}{where}" for name, (where, _) in _BUILT_IN.items()})


def import_devices_late() -> None:
    """Keeps torch from importing torch_tpu, which takes seconds, before its backend is opened. For programs only."""
    if find_spec("torch_tpu"):
        os.environ.setdefault(AUTOLOAD, LATE)


def list_backends() -> list[str]:
    """Every backend name that `get_backend` knows, whether it can run here or not, built-in ones first."""
    return list(dict.fromkeys([*_BUILT_IN, *device_names(), *_PLUGINS.names()]))


def is_built_in(name: str) -> bool:
    """Whether `name` is a backend of isotrain itself, so that finding its class imports no module of a package."""
    return name in _BUILT_IN or (name in DEVICES and name not in _PLUGINS.names())


def backend_class(name: str) -> type[Backend]:
    """The class of the backend called `name`, not opened.

    Raises:
        UserError: The name is unknown, its package's class or `Options` can't be used, or another device has the place
            of its own with torch.
    """
    if name in _PLUGINS.names():
        found: type[Backend] = _PLUGINS.find(name)
        if name not in _BUILT_IN and found.Options is not None:
            _check_options(name, found.Options)
        return found
    # A package may bring its own class for a device that torch knows, so torch is asked last.
    if (kind := device_class(name)) is not None:
        return kind
    check_name("backend", name, list_backends())
    raise AssertionError("a name that is listed is found")


def _check_options(name: str, options: object) -> None:
    from pydantic import BaseModel

    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise UserError(f"the Options of backend {name!r} are no pydantic model; derive them from pydantic.BaseModel")


def backend_traits(name: str) -> Traits:
    """The traits of the backend called `name`, with or without a device number.

    A built-in backend's traits cost no import of torch. An installed package's module is imported.

    Raises:
        UserError: The name is unknown.
    """
    base, _ = split_name(name)
    return _BUILT_IN[base][1] if base in _BUILT_IN else backend_class(base).traits


def caveat(name: str) -> str:
    """The `Backend.caveat` of the backend called `name`, as far as it is known before it is opened."""
    base, _ = split_name(name)
    traits = backend_traits(base)
    # Many of the classes import torch.
    if not traits.stands_in:
        return base if traits.emulated else ""
    return backend_class(base).foreseen_caveat()


def resolve(name: str, options: Mapping[str, Any] | None = None) -> str:
    """The name of the backend that `name` opens on this machine. "tt" may become "tt-tpu" or "tt-emulated".

    Each name that a user writes is resolved once, when a configuration is made. Whatever is opened, measured and
    recorded has the resolved name.

    Raises:
        UserError: The name is unknown, or its options can't be met.
    """
    base, index = split_name(name)
    if not backend_traits(base).resolves:
        return name
    found = backend_class(base).resolve(read_options(base, options))
    return found if index is None else f"{found}:{index}"


def get_backend(name: str, options: Mapping[str, Any] | None = None) -> Backend:
    """Opens a backend.

    Args:
        name: "cpu", "cuda", or with a device number, "cuda:1".
        options: `backend_options` of a configuration. The backend gets only its own section.

    Raises:
        UserError: The name is unknown; the message lists what exists.
        BackendUnavailableError: The backend can't run here; the message has the reason and the fix.
    """
    name = resolve(name, options)
    check_available(name)
    base, index = split_name(name)
    chosen = read_options(base, options)
    kind = backend_class(base)
    return kind(index) if chosen is None else kind(index, chosen)


def options_section(name: str) -> str | None:
    """The configuration's key for the options of the backend called `name`; None if it takes no options."""
    if name in _BUILT_IN:
        return _BUILT_IN[name][1].section
    return None if backend_class(name).Options is None else name


def options_model(section: str) -> type[BaseModel] | None:
    """The model of the configuration's key `section`; None if no backend has this section."""
    for name in list_backends():
        # A package's module is imported only for its own section.
        if (name in _BUILT_IN or name == section) and options_section(name) == section:
            return backend_class(name).Options
    return None


def options_models() -> dict[str, type[BaseModel]]:
    """The models of all sections by key."""
    found = {}
    for name in list_backends():
        # A backend that can't be loaded has no keys to list. Opening it says why.
        with suppress(UserError):
            section = options_section(name)
            model = None if section is None else options_model(section)
            if section is not None and model is not None:
                found[section] = model
    return found


def read_section(section: str, given: Mapping[str, Any]) -> BaseModel:
    """Validates the configuration's key `section`.

    Raises:
        UserError: No backend has this section, or it doesn't accept these values.
    """
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
    """The section of `options` (see `get_backend`) for the backend called `name`; None if it takes no options.

    Raises:
        UserError: The backend doesn't accept these options.
    """
    section = options_section(name)
    given = (options or {}).get(section or name)
    return read_section(section or name, given or {}) if section or given else None


def split_name(name: str) -> tuple[str, int | None]:
    """The backend's name and device number: ("cuda", 1) for "cuda:1".

    Raises:
        UserError: The part after the colon isn't a number.
    """
    base, separator, index = name.partition(":")
    if separator and not index.isdecimal():
        raise UserError(f"backend {name!r}: the part after the colon must be a device number; write {base}:0")
    return base, int(index) if separator else None


def check_available(name: str) -> None:
    """Checks that the backend called `name` can run here, without opening it.

    Raises:
        BackendUnavailableError: It can't; the message has the reason and the fix.
    """
    base = name.partition(":")[0]
    availability = backend_class(base).probe()
    if not availability.ok:
        raise BackendUnavailableError.of(base, availability.reason, availability.fix)


def rank_backend(name: str, local_rank: int) -> str:
    """`name` with the device number of the process `local_rank`, for several processes that train one run.

    Raises:
        UserError: `name` already has a device number.
    """
    if not backend_traits(name).device_per_process:
        return name
    if ":" in name:
        raise UserError(
            f"backend {name!r} is one device, and several processes were started; write {name.partition(':')[0]}"
        )
    return f"{name}:{local_rank}"
