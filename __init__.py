"""isotrain: the same training on every device, measured against its limit, with losses that agree.

The public names load on first use, so that ``import isotrain`` stays cheap and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .albert_core.config.load import load_config
    from .albert_core.model.auto_classes import register_models
    from .albert_core.workload.protocol import Workload
    from .api.measuring import BenchResult, ParityResult, bench, parity, report
    from .api.training import Run, load_run, predict, train
    from .backends import Backend, get_backend, list_backends
    from .backends.training.session import Session

    __version__: str

# Where each public name is defined.
_LAZY = {
    "Backend": ".backends",
    "BenchResult": ".api.measuring",
    "ParityResult": ".api.measuring",
    "Run": ".api.training",
    "Session": ".backends.training.session",
    "Workload": ".albert_core.workload.protocol",
    "bench": ".api.measuring",
    "get_backend": ".backends",
    "list_backends": ".backends",
    "load_config": ".albert_core.config.load",
    "load_run": ".api.training",
    "parity": ".api.measuring",
    "predict": ".api.training",
    "register_models": ".albert_core.model.auto_classes",
    "report": ".api.measuring",
    "train": ".api.training",
}

__all__ = [
    "Backend",
    "BenchResult",
    "ParityResult",
    "Run",
    "RunError",
    "Session",
    "UserError",
    "Workload",
    "__version__",
    "bench",
    "get_backend",
    "list_backends",
    "load_config",
    "load_run",
    "parity",
    "predict",
    "register_models",
    "report",
    "train",
]


class UserError(ValueError):
    """Input that can't be used. The message is one line: what was given, what is allowed, how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class RunError(RuntimeError):
    """A run or a measurement that failed for no fault of its input: a full disk, a folder removed, a lost process.

    The message is one line, as UserError's. The command line exits with code 1.
    """


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    """What git said of the sources when the package was built or installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("isotrain")
    except PackageNotFoundError:
        return "0+not.installed"


def __dir__() -> list[str]:
    return __all__
