"""Results read back from their files: whole, of a known kind, and with the fields that a comparison needs."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

from .. import UserError
from ..backends import device_label

BENCH, END_TO_END = "isotrain.bench/1", "isotrain.end-to-end/1"
# What a comparison reads; a file that lacks one of them was not written by this program, or not to its end.
REQUIRED = {
    BENCH: ("created", "config", "method", "environment", "targets"),
    END_TO_END: ("created", "config", "method", "environment", "sides"),
}
REQUIRED_OF_A_TARGET = ("label", "backend", "status", "valid", "reasons", "config_sha256")
REQUIRED_OF_FIGURES = ("device", "policy", "model", "data", "work", "processes", "n")


def load_result(path: Path) -> dict[str, Any]:
    """The result in a file of `isotrain bench`. Raises UserError for anything else, and says what it found."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{str(path)!r} can't be read ({error.strerror}); give a result of isotrain bench") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is no text; give a result of isotrain bench") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{str(path)!r} is truncated or no JSON (line {error.lineno}: {error.msg}); measure again, or give another"
        ) from error
    lack = what_lacks(document)
    if lack:
        raise UserError(f"{str(path)!r} is no result of isotrain bench: {lack}; give one that isotrain bench wrote")
    assert isinstance(document, dict), "checked above"
    return document


def what_lacks(document: Any) -> str:
    """Why a JSON document is no result, or an empty string."""
    kind = document.get("schema") if isinstance(document, dict) else None
    if kind not in REQUIRED:
        return f"its schema is {kind!r}, known are {', '.join(REQUIRED)}"
    missing = [key for key in REQUIRED[kind] if key not in document]
    if missing:
        return f"it lacks {', '.join(missing)}"
    if kind == END_TO_END:
        return _lack_of("side", document["sides"], ("name", "valid", "reasons", "extrapolated", "processes"))
    lack = _lack_of("target", document["targets"], REQUIRED_OF_A_TARGET)
    measured = [target for target in document["targets"] if "figures" in target] if not lack else []
    return lack or _lack_of("target", measured, REQUIRED_OF_FIGURES) or _false_times(measured)


def _false_times(targets: list[dict[str, Any]]) -> str:
    """Which target has times that no clock gives, or an empty string."""
    for target in targets:
        times = [process.get("step_seconds", []) for process in target["processes"]]
        if (
            not times
            or {len(blocks) for blocks in times} != {len(times[0])}
            or not all(map(_is_time, chain.from_iterable(times)))
        ):
            return f"the times of {target['label']!r} are not the same number of positive seconds a process"
    return ""


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _lack_of(what: str, entries: Any, keys: tuple[str, ...]) -> str:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return f"its {what}s are no list of objects"
    for place, entry in enumerate(entries):
        missing = [key for key in keys if key not in entry]
        if missing:
            return f"{what} {place} lacks {', '.join(missing)}"
    return ""


def shown_label(entry: dict[str, Any]) -> str:
    """A target's label as every table shows it: a device that is only emulated is called so."""
    label = str(entry["label"])
    if not entry.get("device", {}).get("emulated", False) or "(emulated)" in label:
        return label
    # Results of earlier versions don't have it in their labels.
    return label.replace(entry["backend"], device_label(entry["backend"], True), 1)


def revision(result: dict[str, Any]) -> str:
    """The git revision that a result was measured at, in short; "+" after it where files differed from it."""
    git = result["environment"].get("git", "")
    if not isinstance(git, dict):
        return "unknown"
    return f"{git['revision'][:10]}{'+' if git['dirty'] else ''}"
