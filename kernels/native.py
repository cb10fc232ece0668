"""Shared libraries of the package's C++ kernels, next to their Python and loaded with ctypes.

They are optional. An installation without a C++ compiler has none, and `load` then says so.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .install import rebuild_hint

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class NativeLibrary:
    """A loaded library, or None and the reason. `build` identifies libraries with the same interface."""

    library: ctypes.CDLL | None
    reason: str
    build: str = ""


@cache
def load(package: str, interface: int) -> NativeLibrary:
    """The library ``_native`` of ``isotrain.kernels.<package>``.

    `interface` is the number that its function ``isotrain_<package>_interface`` must return, so that a library from an
    older build is never called with newer arguments.
    """
    path = _FOLDER / package / "_native.so"
    if not path.is_file():
        return NativeLibrary(
            None,
            f"the native {package} extension was not built with this installation; install a C++ compiler (g++ or "
            f"clang++), then: {rebuild_hint()}",
        )
    try:
        library = ctypes.CDLL(str(path))
        built = getattr(library, f"isotrain_{package}_interface")()
    except (OSError, AttributeError) as error:
        return NativeLibrary(None, f"{path.name} can't be loaded ({error}); {rebuild_hint()}")
    if built != interface:
        return NativeLibrary(
            None, f"{path.name} is of another version (interface {built}, not {interface}); {rebuild_hint()}"
        )
    with path.open("rb") as file:
        build = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    return NativeLibrary(library, f"{path.name}, interface {interface}", build)
