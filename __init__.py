"""isotrain: the same training on every device, measured against its limit, with losses that agree.

The public names load on first use, so that ``import isotrain`` stays cheap and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "get_backend": ".backends",
    "list_backends": ".backends",
    "load_config": ".albert_core.config.load",
    "register_models": ".albert_core.model.auto_classes",
    "train": ".albert_core.loop.train",
}

__all__ = ["RunError", "UserError", "__version__", *sorted(_LAZY)]


class UserError(ValueError):
    """Input that can't be used. The message is one line: what was given, what is allowed, how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class RunError(RuntimeError):
    """A run or a measurement that failed for no fault of its input: a full disk, a folder removed, a lost process.

    The message is one line, as UserError's. The command line exits with code 1.
    """


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
