"""Results read back from their files: whole, of a known kind, and with the fields that a comparison needs."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ... import UserError
from ...albert_core.config.parsing import read_json
from .upgrade import upgraded

BENCH, END_TO_END = "isotrain.bench/2", "isotrain.end-to-end/2"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """What a comparison or a history reads. A file that isn't so was not written by this program, or not to its end."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Git(_Part):
    revision: str
    dirty: bool


class _Environment(_Part):
    git: _Git | str = ""


class _Result(_Part):
    created: str
    config: dict[str, Any]
    method: dict[str, Any]
    environment: _Environment


class _Target(_Part):
    label: str
    backend: str
    status: str
    valid: bool
    reasons: list[str]
    config_sha256: str


class _Bench(_Result):
    targets: list[_Target]


class _Interval(_Part):
    median: Positive
    low: Positive
    high: Positive


class _Figures(_Part):
    samples_per_second: _Interval


class _Device(_Part):
    name: str
    emulated: bool


class _Policy(_Part):
    label: str


class _Model(_Part):
    label: str
    sha256: str


class _Data(_Part):
    sha256: str


class _Work(_Part):
    samples: Positive


class _Conditions(_Part):
    contended: bool
    threads: dict[str, Any]


class _Process(_Part):
    step_seconds: list[Any]
    environment: _Conditions


class _Measured(_Target):
    """A target that has figures."""

    figures: _Figures
    device: _Device
    policy: _Policy
    model: _Model
    data: _Data
    work: _Work
    processes: list[_Process]
    n: int


class _Side(_Part):
    name: str
    valid: bool
    reasons: list[str]
    extrapolated: bool
    processes: list[dict[str, Any]]


class _EndToEnd(_Result):
    sides: list[_Side]


class _Whole(_Part):
    """A process of an end-to-end run that was timed to its end."""

    seconds: Positive


class _Timed(_Part):
    """One that an end-to-end run is extrapolated from."""

    once: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    steps: Annotated[list[Positive], Field(min_length=1)]
    validation: Annotated[list[Positive], Field(min_length=1)]
    steps_per_epoch: int
    validation_batches_per_epoch: int


KINDS: dict[str, type[_Bench] | type[_EndToEnd]] = {BENCH: _Bench, END_TO_END: _EndToEnd}


def load_result(path: Path) -> dict[str, Any]:
    """The result in a file of `isotrain bench`. Raises UserError for anything else, and says what it found."""
    document = upgraded(read_json(path, "give a result of isotrain bench", nan=True))
    lack = what_lacks(document)
    if lack:
        raise UserError(f"{str(path)!r} is no result of isotrain bench: {lack}; give one that isotrain bench wrote")
    assert isinstance(document, dict), "checked above"
    return document


def what_lacks(document: Any) -> str:
    """Why a JSON document is no result, or an empty string."""
    kind = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        return f"its schema is {kind!r}, known are {', '.join(KINDS)}"
    lack = _lack(KINDS[kind], document)
    if lack:
        return lack
    if kind == END_TO_END:
        parts = (
            (_Timed if side["extrapolated"] else _Whole, one) for side in document["sides"] for one in side["processes"]
        )
        return next(filter(None, (_lack(model, process, "a process: ") for model, process in parts)), "")
    measured = [target for target in document["targets"] if "figures" in target]
    lacks = (_lack(_Measured, target, f"{target['label']!r}: ") for target in measured)
    return next(filter(None, lacks), "") or _false_times(measured)


def _lack(model: type[BaseModel], value: Any, where: str = "") -> str:
    """What is missing in `value`, or else the first thing that is not as `model` says; an empty string for neither."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        places = [".".join(map(str, one["loc"])) for one in found]
        missing = [place for place, one in zip(places, found, strict=True) if one["type"] == "missing"]
        return f"{where}it lacks {', '.join(missing)}" if missing else f"{where}{places[0]}: {found[0]['msg'].lower()}"
    return ""


def _false_times(targets: list[dict[str, Any]]) -> str:
    """Which target has times that no clock gives, or an empty string."""
    for target in targets:
        times = [process["step_seconds"] for process in target["processes"]]
        if (
            not times
            or {len(blocks) for blocks in times} != {len(times[0])}
            or not times[0]
            or not all(map(_is_time, chain.from_iterable(times)))
        ):
            return f"the times of {target['label']!r} are not the same number of positive seconds a process"
    return ""


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def emulated_name(label: str, backend: str) -> str:
    """A label that says so, and once: ``tt (emulated) forward packed x8``."""
    return label if "(emulated)" in label else label.replace(backend, f"{backend} (emulated)", 1)


def shown_label(entry: dict[str, Any]) -> str:
    """A target's label as every table shows it: a device that is only emulated is called so."""
    emulated = entry.get("device", {}).get("emulated", False)
    return emulated_name(entry["label"], entry["backend"]) if emulated else str(entry["label"])


def revision(result: dict[str, Any]) -> str:
    """The git revision that a result was measured at, in short; "+" after it where files differed from it."""
    git = result["environment"].get("git", "")
    if not isinstance(git, dict):
        return "unknown"
    return f"{git['revision'][:10]}{'+' if git['dirty'] else ''}"
