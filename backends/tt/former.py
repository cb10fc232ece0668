"""Reads older files.

In some, a card and its emulation were both called tt and differed by a field `emulated`. Others don't say which
operations were emulated: all of a frozen encoder, and of what is trained only linear layers.
"""

from __future__ import annotations

import re
from typing import Any

_LABEL = re.compile(r"\btt(:\S+)? \(emulated\)")
_BACKEND = re.compile(r"^tt(?![\w-])")
_SCOPE = re.compile(r"(\btt-emulated [^()]* destination)(, frozen weights \w+)?(, (?:fast|exact))$")


def renamed(value: Any) -> Any:
    """`value`, as read from JSON, with the name tt-emulated for every emulation that is called tt."""
    if isinstance(value, str):
        return _SCOPE.sub(_with_scope, _LABEL.sub(r"tt-emulated\1", value))
    if isinstance(value, list):
        return [renamed(part) for part in value]
    if not isinstance(value, dict):
        return value
    found = {key: renamed(part) for key, part in value.items()}
    device, config = found.get("device"), found.get("config")
    if found.get("emulated") or (isinstance(device, dict) and device.get("emulated")):
        for part in (found, config):
            if isinstance(part, dict) and part.get("backend") == "tt":
                part["backend"] = "tt-emulated"
        if isinstance(found.get("label"), str):
            found["label"] = _BACKEND.sub("tt-emulated", found["label"], count=1)
    return found


def _with_scope(label: re.Match[str]) -> str:
    return f"{label[0]}, {'all operations' if label[2] else 'linear layers'}"
