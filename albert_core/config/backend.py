"""The backend that a command is given, and its own options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import UserError
from ...backends import list_backends, resolve
from ...kernels.names import check_name
from .keys import Keys
from .load import load_config


def resolved_backend(name: str, options: dict[str, Any]) -> str:
    """The backend that `--backend NAME` opens here."""
    check_name("--backend", name.partition(":")[0], list_backends())
    return resolve(name, options)


def backend_options(sets: Sequence[str]) -> dict[str, Any]:
    """The backends' options in `sets`, as a configuration has them."""
    for item in sets:
        if item.partition("=")[0].strip().partition(".")[0] in Keys.model_fields:
            raise UserError(
                f"--set {item!r}: only a backend's own options are set here, such as tt.math_fidelity=hifi2"
            )
    return load_config(None, sets).config.backend_options
