"""Files of the time when a card and its emulation shared the name tt, and a field `emulated` told them apart."""

from __future__ import annotations

import re
from typing import Any

_LABEL = re.compile(r"\btt(:\S+)? \(emulated\)")
_BACKEND = re.compile(r"^tt(?![\w-])")


def renamed(value: Any) -> Any:
    """`value`, as JSON was read, with tt-emulated wherever an emulation is called tt; all else as it is."""
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
