"""What a try is judged by: a run's result, what is left on the disk, and how commands spoke and ended."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from .process import Ended

# What two runs of the same bits may differ in: time, and the machine's state.
_VARIES = {
    "samples_per_second",
    "elapsed_seconds",
    "eval_seconds",
    "seconds",
    "phases",
    "peak_memory_bytes",
    "energy",
    "environment",
}
_LONGEST = 3 * 200
# Python's warnings, progress bars, C++'s logs.
_LIBRARIES = re.compile(r"\w+Warning: |\d%\||\[rank\d\]|^[WEF]\d{4} |terminate called")
_STEP = re.compile(r"step-(\d+)(\.\d+)?")


class Verdict(StrEnum):
    """How a try ended."""

    WELL = "ended well"
    WRONG = "wrong result"
    LOST = "lost work"
    DEAD_END = "dead end"
    LEFT_OVER = "left over"
    SILENT = "silently used"
    EXIT_CODE = "wrong exit code"
    TRACEBACK = "traceback"
    MESSAGE = "bad message"
    SKIPPED = "skipped"

    @property
    def is_bad(self) -> bool:
        """Whether something has to be mended."""
        return self not in (Verdict.WELL, Verdict.SKIPPED)


@dataclass(frozen=True)
class Outcome:
    """One try's verdict, and what was seen where it isn't well."""

    verdict: Verdict
    seen: str = ""


WELL = Outcome(Verdict.WELL)


def result(run: Path) -> dict[str, Any]:
    """What has to be equal, bit for bit: weights, figures, summary, checkpoints and every file that predict reads."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        # What a resume of a completed run set aside is that run's, not this one's.
        if not path.is_file() or name.startswith("checkpoints/") or "until-step-" in name:
            continue
        if path.suffix == ".safetensors" or path.parent.name in ("tokenizer", "encoder"):
            found[name] = _digest(path)
        elif name in ("labels.json", "inputs.json", "responses.json"):
            found[name] = path.read_text()
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    found["metrics"] = [without_times(json.loads(line)) for line in lines]
    found["summary"] = without_times(json.loads((run / "summary.json").read_text()))
    found["checkpoints"] = checkpoints(run / "checkpoints")
    return found


def checkpoints(folder: Path) -> dict[str, dict[str, str]]:
    """The tensors' files of each checkpoint in `folder`, by step."""
    return {
        match[1]: {file.name: _digest(file) for file in sorted(path.glob("*.safetensors")) if file.is_file()}
        for path in sorted(folder.glob("step-*"))
        if (match := _STEP.fullmatch(path.name))
    }


def newest_step(run: Path) -> int:
    """The step of the newest published checkpoint; 0 without any."""
    return max((int(step) for step in checkpoints(run / "checkpoints")), default=0)


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    """What must be equal of a line of figures or a summary; data set and model are called by their folders' names."""
    kept = {key: value for key, value in values.items() if key not in _VARIES}
    # A step that was saved by a stop is saved again, under another name, once its evaluation has been made up for.
    named = _STEP.fullmatch(str(kept.get("best_checkpoint")))
    step = {"best_checkpoint": named[1]} if named else {}
    return kept | {key: Path(kept[key]).name for key in ("dataset", "model") if key in kept} | step


def is_complete(run: Path) -> bool:
    """Whether the run says that it is."""
    try:
        return bool(json.loads((run / "summary.json").read_text())["status"] == "completed")
    except (OSError, ValueError, KeyError):
        return False


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The names of what differs, and the first difference; "" where nothing does."""
    names = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if not names:
        return ""
    return f"{', '.join(names)} differ: {_first(found.get(names[0]), expected.get(names[0]))}"


def compared(run: Path, expected: dict[str, Any], may_differ: tuple[str, ...] = ()) -> Outcome:
    """Whether the completed run in `run` has the result `expected`, but for what `may_differ`.

    Of "checkpoints" that is which steps are kept: where both have one, it is the same, and so is the newest.
    """
    try:
        found = result(run)
    except (OSError, ValueError, KeyError) as error:
        return Outcome(Verdict.WRONG, f"{type(error).__name__}: {error}")
    if "checkpoints" in may_differ:
        both = found["checkpoints"].keys() & expected["checkpoints"].keys() | {max(expected["checkpoints"])}
        found["checkpoints"] = {step: found["checkpoints"].get(step) for step in both}
        expected = expected | {"checkpoints": {step: expected["checkpoints"][step] for step in both}}
    others = [name for name in may_differ if name != "checkpoints"]
    different = differences(*({name: side[name] for name in side if name not in others} for side in (found, expected)))
    return Outcome(Verdict.WRONG, different) if different else WELL


def left_over(folder: Path) -> Outcome:
    """Whether temporary files are left anywhere in `folder`."""
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if ".tmp" in path.name or ".trash" in path.name or path.name.endswith("~")
    ]
    return Outcome(Verdict.LEFT_OVER, ", ".join(names[:5])) if names else WELL


def spoke(ended: Ended, allowed: tuple[int, ...]) -> Outcome:
    """Whether a command ended with an exit code of `allowed` and said so: no traceback, and one short line.

    Each process of several may have a line of its own.
    """
    if ended.code is None:
        return Outcome(Verdict.DEAD_END, f"it hung: {ended.said}")
    if "Traceback (most recent call last)" in ended.err + ended.out or "add --debug for the traceback" in ended.err:
        return Outcome(Verdict.TRACEBACK, f"exit {ended.code}: {_last(ended.err, 600)}")
    if ended.code not in allowed:
        return Outcome(Verdict.EXIT_CODE, f"exit {ended.code}: {_last(ended.err or ended.out, 400)}")
    lines = [line for line in ended.err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("isotrain: error: ")]
    if ended.code in (1, 2) and not 1 <= len(errors) <= ended.processes:
        return Outcome(Verdict.MESSAGE, f"exit {ended.code} with {len(errors)} lines of error: {_last(ended.err, 300)}")
    for line in lines:
        if len(line) > _LONGEST:
            return Outcome(Verdict.MESSAGE, f"{len(line)} characters: {line[:150]}...")
        if "\x1b" in line or "\r" in line:
            return Outcome(Verdict.MESSAGE, f"raw control characters: {line[:150]!r}")
    strange = [line for line in lines if _LIBRARIES.search(line) and line not in errors]
    if strange:
        return Outcome(Verdict.MESSAGE, f"a library's words: {strange[0][:150]}")
    return WELL


def first_bad(*outcomes: Outcome) -> Outcome:
    """The first that isn't well, else well."""
    return next((outcome for outcome in outcomes if outcome.verdict is not Verdict.WELL), WELL)


def _digest(path: Path) -> str:
    """Of a file of tensors without its notes, which say by what path the user named the encoder."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    with suppress(ValueError, AttributeError, RecursionError):
        tensors = {name: entry for name, entry in json.loads(data[8 : 8 + size]).items() if name != "__metadata__"}
        data = json.dumps(tensors).encode() + data[8 + size :]
    return hashlib.sha256(data).hexdigest()


def _last(text: str, limit: int) -> str:
    return " ".join(text.split())[-limit:]


def _first(found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list):
        pairs = [(one, other) for one, other in zip(found, expected, strict=False) if one != other]
        if not pairs:
            return f"{len(found)} instead of {len(expected)}"
        found, expected = pairs[0]
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
        found, expected = ({name: side.get(name) for name in names} for side in (found, expected))
    return f"{str(found)[:200]} instead of {str(expected)[:200]}"
