"""Parses one side of a comparison: `cpu:float64`, `tt:hifi2+bfp_bf8`, `cuda:1:bfloat16+kernel=flash`."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import get_args

from ... import UserError
from ...albert_core.config.load import load_config
from ...albert_core.config.schema import DTYPE_NAMES
from ...backends import BackendUnavailableError, list_backends, options_model, options_section, resolve
from ...kernels.names import check_name

# The default number of optimizer steps of a comparison.
STEPS = 200


@dataclass(frozen=True)
class Side:
    """A run's backend and its settings of the configuration."""

    label: str
    backend: str
    sets: tuple[str, ...]

    @property
    def base(self) -> str:
        """The backend's name without a device number."""
        return self.backend.partition(":")[0]


def parse_side(text: str, elsewhere: Collection[str] = ()) -> Side:
    """Parses BACKEND[:NUMBER][:WORD+WORD...].

    A word is a dtype, a value of one of the backend's options (hifi2, bfp_bf8, exact), or key=value of the
    configuration.

    Args:
        elsewhere: Backends with their own interpreters. Others are resolved on this machine.

    Raises:
        UserError: The text is anything else.
    """
    name, *rest = text.strip().split(":")
    check_name(f"{text!r}: backend", name, list_backends())
    backend = name
    if rest and rest[0].isdecimal():
        backend = f"{name}:{rest.pop(0)}"
    if len(rest) > 1:
        raise UserError(f"{text!r}: write BACKEND:WORD+WORD, for example cpu:bfloat16 or tt:hifi2+bfp_bf8")
    sets = [setting for word in (rest[0].split("+") if rest else []) for setting in _settings(text, name, word)]
    label = text.strip()
    if name not in elsewhere:
        options = load_config(None, [one for one in sets if one.startswith(f"{options_section(name)}.")])
        # A backend that can't run here becomes a missing candidate.
        with suppress(BackendUnavailableError):
            backend = resolve(backend, options.config.backend_options)
        label = backend.partition(":")[0] + label.removeprefix(name)
    return Side(label, backend, (f"backend={backend}", "use_tt=false", *sets))


def _settings(text: str, backend: str, word: str) -> list[str]:
    if word in DTYPE_NAMES:
        return [f"dtype={DTYPE_NAMES[word]}"]
    if "=" in word:
        return [word]
    allowed = _words(backend)
    known = dict.fromkeys([*DTYPE_NAMES.values(), *allowed])
    check_name(f"{text!r}:", word, [*known, "key=value"], f"on {backend}")
    return [f"{options_section(backend)}.{allowed[word]}={word}"]


def _words(backend: str) -> dict[str, str]:
    """The values of a backend's options, each with the name of its option."""
    section = options_section(backend)
    model = None if section is None else options_model(section)
    fields = {} if model is None else model.model_fields
    return {
        value: name for name, field in fields.items() for value in get_args(field.annotation) if isinstance(value, str)
    }
