"""Imports a workload by what the user calls it (see `config.workload_name`)."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ... import RunError, UserError
from ...kernels.names import meant
from ..config.workload_name import IN_FILE, check_workload_name, installed, short_name
from ..terminal.text import quoted, reason_of
from .protocol import REQUIRED, Workload

_METHODS = tuple(method.partition("(")[0] for method in REQUIRED)


class WorkloadError(UserError):
    """A workload's own code raised an exception, or a device can't run it: bad input, also in the middle of a run."""


@dataclass(frozen=True)
class LoadedWorkload:
    """A user's workload.

    Attributes:
        name: What tables call it.
        spec: What the user gave.
        file: Where its code is; None if it has no file.
        sha256: Of that file's content (hex). Other files that it imports are not included.
    """

    name: str
    spec: str
    file: Path | None
    sha256: str
    workload: Workload

    def optional(self, method: str) -> Callable[..., Any] | None:
        """One of the methods that a workload may have, or None."""
        found = getattr(self.workload, method, None)
        return found if callable(found) else None

    def place_of(self, method: str) -> str:
        """FILE:LINE of one of its methods."""
        return place_of(getattr(self.workload, method), self.file)

    @contextmanager
    def blamed(self, method: str) -> Iterator[None]:
        """Reports an error in the block as one of the user's code, with its line.

        Args:
            method: The method that the block calls. It is named if no line of the user's file is in the traceback.

        Raises:
            WorkloadError: The block raised an exception.
        """
        try:
            yield
        except (UserError, RunError):
            raise
        except (Exception, SystemExit) as error:  # A user's code may raise anything.
            place = line_of(error, self.file) or self.place_of(method)
            raise WorkloadError(f"{place}: {method} raised {described(error)}") from error


def load_workload(spec: str) -> LoadedWorkload:
    """Imports a workload.

    Args:
        spec: "my_model.py:TinyGPT", "my_model.py" if the file has one workload, "package.module:TinyGPT", or the name
            of an installed workload. The name is a class, which is made without arguments, a function that returns a
            workload, or a workload itself.

    Raises:
        UserError: It can't be found, imported or made, or has no method of the protocol.
    """
    check_workload_name(spec)
    in_file = IN_FILE.fullmatch(spec)
    if in_file is not None:
        module = _import_file(Path(in_file["place"]))
        return _loaded(spec, module, in_file["name"] or _only_candidate(module, in_file["place"]))
    entry = installed().get(spec)
    place, _, name = (spec if entry is None else entry.value).partition(":")
    with _imported(spec, None):
        module = import_module(place)
    return _loaded(spec, module, name)


def place_of(value: Any, file: Path | None) -> str:
    """FILE:LINE where a class or function is defined, as well as it can be told."""
    code = inspect.unwrap(getattr(value, "__func__", value))
    try:
        source, line = inspect.getsourcefile(code), inspect.getsourcelines(code)[1]
    except (OSError, TypeError):
        # An object without source, such as a functools.partial or an instance.
        return shown(file) if file is not None else repr(value)
    return f"{shown(Path(source or file or '?'))}:{line}"


def line_of(error: BaseException, file: Path | None) -> str:
    """FILE:LINE of the last line of the user's code in an error's traceback; empty if there is none.

    Args:
        error: Also a syntax error in a file that was imported.
        file: Code in its folder is the user's.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{shown(Path(error.filename))}:{error.lineno}"
    place = ""
    trace = error.__traceback__
    while trace is not None and file is not None:
        source = Path(trace.tb_frame.f_code.co_filename)
        if (
            source.is_absolute()
            and source.is_relative_to(file.parent.absolute())
            and "site-packages" not in (source.relative_to(file.parent.absolute()).parts)
        ):
            place = f"{shown(source)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def described(error: BaseException) -> str:
    """An exception with its type, on one line."""
    name, reason = type(error).__name__, reason_of(error)
    return name if reason == name else f"{name}: {reason}"


def shown(path: Path) -> str:
    """A path as messages show it: from the current folder if it is below that."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _import_file(path: Path) -> ModuleType:
    """Runs a file as a module. Its folder is searched for what it imports, after all others."""
    path = path.absolute()
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_workload"
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    made = importlib.util.spec_from_file_location(name, path)
    assert made is not None, "a .py file has a loader"
    assert made.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(made)
    # Before it runs, since dataclasses and pickle look up a class's module by name.
    sys.modules[name] = module
    with _imported(str(path), path):
        made.loader.exec_module(module)
    return module


@contextmanager
def _imported(spec: str, file: Path | None) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # Importing runs a user's code, which may raise anything.
        place = line_of(error, file) or spec
        raise UserError(f"{place}: the import raised {described(error)}; correct this line") from error


def _only_candidate(module: ModuleType, place: str) -> str:
    """The name of the only workload that a file defines. Raises UserError if there is none or several."""
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and _owner(value) == module.__name__ and not _missing(value)
    }
    if len(own) == 1:
        return next(iter(own))
    if own:
        raise UserError(f"{place} defines several workloads; choose one: {', '.join(f'{place}:{one}' for one in own)}")
    raise UserError(f"{place} defines no workload: no class has the methods {', '.join(REQUIRED)}; add them")


def _owner(value: Any) -> str:
    return str(getattr(value if isinstance(value, type) else type(value), "__module__", ""))


def _missing(value: Any) -> list[str]:
    return [whole for whole, name in zip(REQUIRED, _METHODS, strict=True) if not callable(getattr(value, name, None))]


def _loaded(spec: str, module: ModuleType, name: str) -> LoadedWorkload:
    file = Path(module.__file__) if module.__file__ else None
    place = shown(file) if file is not None else module.__name__
    if not hasattr(module, name):
        names = [one for one in vars(module) if not one.startswith("_")]
        raise UserError(
            f"{place} has no {quoted(name)}; {meant(name, names)}give the name of a class with the methods "
            f"{', '.join(REQUIRED)}"
        )
    found = getattr(module, name)
    defined = place_of(found, file)
    workload = found
    if isinstance(found, type) or (_missing(found) and callable(found)):
        try:
            workload = found()
        except (Exception, SystemExit) as error:  # A user's code may raise anything.
            made = "class" if isinstance(found, type) else "function"
            raise UserError(
                f"{line_of(error, file) or defined}: the {made} {name} was called without arguments and raised "
                f"{described(error)}; a workload is made without arguments"
            ) from error
    missing = _missing(workload)
    if missing:
        raise UserError(
            f"{defined}: {name} has no {' and no '.join(missing)}; a workload has the methods {', '.join(REQUIRED)}"
        )
    content = file.read_bytes() if file is not None else spec.encode()
    return LoadedWorkload(short_name(spec), spec, file, hashlib.sha256(content).hexdigest(), workload)
