"""What can drive a Tenstorrent card here, and which of it the backend `tt` takes. Nothing heavy is imported.

torch_xla with the vendor's PJRT plugin comes first, since the vendor publishes it. torch_tpu takes the plugin that
TPU_LIBRARY_PATH names. Its user chooses one: no plugin for it has a known publisher, so isotrain installs and looks for
none.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from importlib.metadata import entry_points
from pathlib import Path

from ...kernels.install import install_hint
from ...kernels.words import count
from ..tpu import LIBRARY_VARIABLE
from ..types import Availability, BackendUnavailableError

log = logging.getLogger("isotrain")

CARD_FOLDER = Path("/dev/tenstorrent")
PLUGIN_GROUP = "torch_xla.plugins"
EMULATED = "tt-emulated"


@dataclass(frozen=True)
class Software:
    """What drives a card.

    Attributes:
        name: The package, with its version if that is known.
        installed: Whether it is here.
        problem: Why it drives nothing although it is; or "".
        fix: How to get what is missing; "" if nothing is.
    """

    name: str
    installed: bool
    problem: str
    fix: str

    @property
    def label(self) -> str:
        return f"{self.name} ({self.problem})" if self.problem else self.name


def probed(name: str) -> Availability:
    """Whether the backend `name` of a card can run here, what is installed, and what `--backend tt` takes."""
    found = _stacks()
    return replace(found[name], reason=f"{found[name].reason}; --backend tt is {_first(found)}")


def taken(device: str) -> str:
    """The name of the backend that `tt` opens here, for its option `device`.

    Raises:
        BackendUnavailableError: The option demands a card, and there is none.
    """
    if device == "emulated":
        return EMULATED
    found = _stacks()
    first, preferred = _first(found), found["tt"]
    if first == EMULATED and device == "hardware":
        raise BackendUnavailableError(f"tt.device: hardware can't run here: {preferred.reason}; {preferred.fix}")
    if first == EMULATED:
        _warn_emulated(preferred.reason)
    return first


def _stacks() -> dict[str, Availability]:
    """Each backend of a card by its name, the one that `tt` prefers first."""
    cards = sorted(CARD_FOLDER.glob("*")) if CARD_FOLDER.is_dir() else []
    here = f"{count(len(cards), 'Tenstorrent card')} ({cards[0]})" if cards else f"no Tenstorrent card in {CARD_FOLDER}"
    driver = "" if cards else "install the card's kernel driver (tt-kmd) and check with tt-smi that it lists the card"
    plugin, torch_tpu = _plugin(), _torch_tpu()
    reason = f"{here}; {_installed(plugin, torch_tpu)}"

    def stack(software: Software) -> Availability:
        fix = software.fix or driver
        return Availability(not fix, reason, f"{fix}; or use --backend cpu" if fix else "")

    return {"tt": stack(plugin), "tt-tpu": stack(torch_tpu)}


def _first(found: dict[str, Availability]) -> str:
    return next((name for name, stack in found.items() if stack.ok), EMULATED)


def _plugin() -> Software:
    installed = any(entry.name == "tt" for entry in entry_points(group=PLUGIN_GROUP))
    fix = (
        "install pjrt-plugin-tt from Tenstorrent's package index into a separate environment (Python 3.12; it brings "
        "its own torch and torch_xla)"
    )
    return Software("pjrt-plugin-tt", installed, "", "" if installed else fix)


def _torch_tpu() -> Software:
    try:
        name = f"torch-tpu {metadata.version('torch-tpu')}"
    except metadata.PackageNotFoundError:
        return Software("torch-tpu", False, "", f"install it: `{install_hint('tpu')}`")
    library = os.environ.get(LIBRARY_VARIABLE)
    if library and Path(library).is_file():
        return Software(name, True, "", "")
    problem = f"is {library!r}, which is no file" if library else "is not set"
    fix = f"set {LIBRARY_VARIABLE} to the library of a PJRT plugin for the card"
    return Software(name, True, f"{LIBRARY_VARIABLE} {problem}", fix)


def _installed(first: Software, second: Software) -> str:
    there = [software for software in (first, second) if software.installed]
    if len(there) == 1:
        (missing,) = {first, second} - set(there)
        return f"{there[0].label} is installed, {missing.name} is not"
    if there:
        return f"{first.label} and {second.label} are installed"
    return f"neither {first.name} nor {second.name} is installed"


@cache
def _warn_emulated(reason: str) -> None:
    """Warns once per process."""
    log.warning("backend tt is tt-emulated here, its numerics computed by the host: %s", reason)
