"""Reads older files, in which a card and its emulation were both called tt and differed by a field `emulated`."""

from __future__ import annotations

import re
from typing import Any

_LABEL = re.compile(r"\btt(:\S+)? \(emulated\)")
_BACKEND = re.compile(r"^tt(?![\w-])")


def renamed(value: Any) -> Any:
    """`value`, as read from JSON, with the name tt-emulated for every emulation that is called tt."""
    if isinstance(value, str):
        return _LABEL.sub(r"tt-emulated\1", value)
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
