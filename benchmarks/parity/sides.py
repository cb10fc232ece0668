"""`cpu:float64`, `tt:hifi2+bfp_bf8`, `cuda:1:bfloat16+kernel=flash`: one side of a comparison in a word."""

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

# Optimizer steps of a comparison that doesn't say how many.
STEPS = 200


@dataclass(frozen=True)
class Side:
    """A run's backend, and what its configuration is set to for it."""

    label: str
    backend: str
    sets: tuple[str, ...]

    @property
    def base(self) -> str:
        """The backend's name without a device number."""
        return self.backend.partition(":")[0]


def parse_side(text: str, elsewhere: Collection[str] = ()) -> Side:
    """BACKEND[:NUMBER][:WORD+WORD...] as a `Side`.

    A word is a dtype, a value of one of the backend's own options (hifi2, bfp_bf8, exact), or key=value of the
    configuration. A float64 side trains its head in float64, too. The backend is the one that opens here as what was
    written, unless it is one of `elsewhere`, which run in an interpreter of their own. Raises UserError for anything
    else.
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
        # One that can't run here is judged as missing, beside the others.
        with suppress(BackendUnavailableError):
            backend = resolve(backend, options.config.backend_options)
        label = backend.partition(":")[0] + label.removeprefix(name)
    return Side(label, backend, (f"backend={backend}", "use_tt=false", *sets))


def _settings(text: str, backend: str, word: str) -> list[str]:
    if word in DTYPE_NAMES:
        dtype = DTYPE_NAMES[word]
        return [f"dtype={dtype}", *(["head_dtype=float64"] if dtype == "float64" else [])]
    if "=" in word:
        return [word]
    allowed = _words(backend)
    known = dict.fromkeys([*DTYPE_NAMES.values(), *allowed])
    check_name(f"{text!r}:", word, [*known, "key=value"], f"on {backend}")
    return [f"{options_section(backend)}.{allowed[word]}={word}"]


def _words(backend: str) -> dict[str, str]:
    """The values that a backend's own options may have, each with its option."""
    section = options_section(backend)
    model = None if section is None else options_model(section)
    fields = {} if model is None else model.model_fields
    return {
        value: name for name, field in fields.items() for value in get_args(field.annotation) if isinstance(value, str)
    }
