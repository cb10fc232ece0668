"""Two results held against each other (rules 8 and 9): how many times as fast, and whether that is a decision.

Faster or slower is said only where the 95 % interval of the ratio excludes 1, the effect is larger than a threshold,
and a second run agrees. Everything else is "no decision", with the reason. Results of other configurations are refused,
and so are figures that their own run called invalid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import UserError
from ..harness.document import Interval
from ..harness.extrapolate import total_ratio
from ..harness.plan import FULL_BLOCKS, FULL_PROCESSES
from ..harness.statistics import ratio_interval
from ..outcome.end_to_end import EndToEnd, Side
from ..outcome.load import load_result
from ..outcome.model import Bench, MeasuredTarget, Target, UnmeasuredTarget

FASTER, SLOWER, UNDECIDED, REFUSED = "faster", "slower", "no decision", "refused"
# Rule 8: the least effect that counts, on a machine of one's own and on one that others use too.
DEDICATED_THRESHOLD, SHARED_THRESHOLD = 0.03, 0.10
SEED = 23
# Exit codes: no confirmed regression, one at least, or a target that can't be compared.
SOUND, REGRESSED, UNUSABLE = 0, 1, 2


@dataclass(frozen=True)
class Compared:
    """One target of two results. speed: after over before with its interval, None where it is refused.

    seen: what this run alone says; verdict: what it and a second one agree on.
    """

    label: str
    verdict: str
    seen: str
    speed: Interval | None
    threshold: float
    reason: str


@dataclass(frozen=True)
class Comparison:
    """All targets of two results; `alone` are labels that only one of them has, `subject` is what both measured."""

    before: str
    after: str
    subject: str
    confirmed: bool
    targets: tuple[Compared, ...]
    alone: tuple[str, ...]

    @property
    def code(self) -> int:
        """1 for a confirmed regression, else 2 where a target was refused, else 0."""
        verdicts = {one.verdict for one in self.targets}
        return REGRESSED if SLOWER in verdicts else UNUSABLE if REFUSED in verdicts else SOUND

    def as_dict(self) -> dict[str, Any]:
        targets = [{**vars(one), "speed": one.speed and one.speed.document()} for one in self.targets]
        return {"schema": "isotrain.compare/1", **vars(self), "targets": targets, "code": self.code}


def compare_files(before: Path, after: Path, again: Sequence[Path] = (), gate: float | None = None) -> Comparison:
    """Holds `after` against `before`. Raises UserError for files that can't be compared, naming the key that differs.

    again: a second run: the new side's result, or the old side's and the new side's. gate: the least effect that
    counts, as a share; without it 3 %, and 10 % where other work contended a process or nobody knows.
    """
    first, second = load_result(before), load_result(after)
    found = _compare(first, second, (before, after), gate)
    confirmation = None
    if again:
        old, new = (before, again[0]) if len(again) == 1 else (again[0], again[1])
        confirmation = {one.label: one for one in _compare(load_result(old), load_result(new), (old, new), gate)}
        _check_fresh(second, load_result(new), new)
    labels = [{_key(entry) for entry in _entries(result)} for result in (first, second)]
    return Comparison(
        before=f"{before} ({first.environment.revision})",
        after=f"{after} ({second.environment.revision})",
        subject=_subject(first),
        confirmed=confirmation is not None,
        targets=tuple(_decided(one, confirmation) for one in found),
        alone=tuple(sorted(labels[0] ^ labels[1])),
    )


Result = Bench | EndToEnd
Entry = Target | Side


def _entries(result: Result) -> Sequence[Entry]:
    """Targets, or the sides of an end-to-end run."""
    return result.targets if isinstance(result, Bench) else result.sides


def _key(entry: Entry) -> str:
    """What names an entry in both of two results."""
    return entry.name if isinstance(entry, Side) else entry.label


def _subject(result: Result) -> str:
    """Model, dtype and device of a result, random weights and emulation named."""
    if isinstance(result, Bench):
        parts = [(one.model.label, one.policy.label, one.device.name) for one in result.measured]
    else:
        parts = [(one.model, result.config.dtype, one.device) for one in result.processes]
    return "; ".join(", ".join(part) for part in dict.fromkeys(parts)) or "nothing that was measured"


def _check_fresh(first: Result, second: Result, path: Path) -> None:
    if first.created == second.created and _entries(first) == _entries(second):
        raise UserError(f"{str(path)!r} is the same measurement as the one to confirm; measure a second time")


def _compare(before: Result, after: Result, paths: tuple[Path, Path], gate: float | None) -> list[Compared]:
    """What the two say of every target that both have."""
    _check_equal({"schema": before.kind}, {"schema": after.kind}, "", paths)
    _check_equal(before.config.document(), after.config.document(), "config.", paths)
    news = {_key(entry): entry for entry in _entries(after)}
    pairs = [(old, news[_key(old)]) for old in _entries(before) if _key(old) in news]
    if not pairs:
        raise UserError(
            f"{str(paths[0])!r} and {str(paths[1])!r} have no target in common; measure the same workloads, layouts, "
            "kernels and batch sizes"
        )
    return [_judge(old, new, paths, gate) for old, new in pairs]


def _check_equal(before: dict[str, Any], after: dict[str, Any], prefix: str, paths: tuple[Path, Path]) -> None:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise UserError(
                f"{prefix}{key} differs: {before.get(key)!r} in {str(paths[0])!r}, {after.get(key)!r} in "
                f"{str(paths[1])!r}; only results of one configuration can be compared"
            )


def _judge(old: Entry, new: Entry, paths: tuple[Path, Path], gate: float | None) -> Compared:
    """What two results say of one of their entries."""
    for which, entry in (("before", old), ("after", new)):
        if not entry.valid or isinstance(entry, UnmeasuredTarget):
            why = "; ".join(entry.reasons) or "it has no figures"
            return Compared(old.name, REFUSED, REFUSED, None, 0.0, f"invalid {which}: {why}")
    if isinstance(old, MeasuredTarget) and isinstance(new, MeasuredTarget):
        return _judge_target(old, new, paths, gate)
    if isinstance(old, Side) and isinstance(new, Side):
        return _judge_side(old, new, paths, gate)
    raise AssertionError("results of one kind have entries of one kind")


def _judge_target(old: MeasuredTarget, new: MeasuredTarget, paths: tuple[Path, Path], gate: float | None) -> Compared:
    _check_equal(_identity(old), _identity(new), f"{old.label}: ", paths)
    speed = ratio_interval(old.text_seconds, new.text_seconds, SEED)
    too_few = any(
        len(entry.processes) < FULL_PROCESSES or len(entry.processes[0].step_seconds) < FULL_BLOCKS
        for entry in (old, new)
    )
    lack = f"fewer than {FULL_PROCESSES} processes x {FULL_BLOCKS} blocks" if too_few else ""
    return _seen(old.name, speed, _threshold(gate, old.contended or new.contended), lack)


def _judge_side(old: Side, new: Side, paths: tuple[Path, Path], gate: float | None) -> Compared:
    """An end-to-end run, whose processes don't say whether anything else ran: the machine counts as a shared one."""
    devices = [{"device": entry.processes[0].device} for entry in (old, new)]
    _check_equal(devices[0], devices[1], f"{old.name}: ", paths)
    lack = (
        f"fewer than {FULL_PROCESSES} processes"
        if min(map(len, (old.processes, new.processes))) < FULL_PROCESSES
        else ""
    )
    return _seen(old.name, total_ratio(old.sampled, new.sampled, SEED), _threshold(gate, True), lack)


def _identity(entry: MeasuredTarget) -> dict[str, Any]:
    """What must be the same of a target beside its configuration; rule 9."""
    threads = entry.processes[0].environment.threads
    return {
        "device.name": entry.device.name,
        "policy.label": entry.policy.label,
        "model.sha256": entry.model.sha256,
        "data.sha256": entry.data.sha256,
        "threads.intra_op": threads.intra_op,
        "threads.inter_op": threads.inter_op,
    }


def _threshold(gate: float | None, shared: bool) -> float:
    if gate is not None:
        return gate
    return SHARED_THRESHOLD if shared else DEDICATED_THRESHOLD


def _seen(label: str, speed: Interval, threshold: float, lack: str) -> Compared:
    """What one pair of results says by itself."""
    if lack:
        return Compared(label, UNDECIDED, UNDECIDED, speed, threshold, lack)
    if speed.low <= 1.0 <= speed.high:
        return Compared(label, UNDECIDED, UNDECIDED, speed, threshold, "the interval holds 1")
    # Symmetric: twice as fast and half as fast are effects of one size.
    effect = max(speed.median, 1.0 / speed.median) - 1.0
    if effect <= threshold:
        return Compared(label, UNDECIDED, UNDECIDED, speed, threshold, f"the effect is within {threshold:.3g}")
    seen = FASTER if speed.median > 1.0 else SLOWER
    return Compared(label, seen, seen, speed, threshold, "")


def _decided(one: Compared, confirmation: dict[str, Compared] | None) -> Compared:
    """The verdict of rule 8: what is seen stands only where a second run sees it too."""
    if one.seen not in (FASTER, SLOWER):
        return one
    if confirmation is None:
        reason = f"{one.seen}, not confirmed by a second run"
    elif one.label not in confirmation:
        reason = f"{one.seen}, and the second run lacks this target"
    elif confirmation[one.label].seen != one.seen:
        reason = f"{one.seen}, and the second run says {confirmation[one.label].seen}"
    else:
        return one
    return Compared(one.label, UNDECIDED, one.seen, one.speed, one.threshold, reason)


def parse_share(text: str) -> float:
    """A share from "5%" or "0.05". Raises UserError for anything that is not between 0 and 1."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        share = -1.0
    # Not `share < 0`: NaN must fail too.
    if not 0.0 <= share < 1.0:
        raise UserError(f"--gate {text!r} is no share; allowed is 0% to 99%, such as 5% or 0.05")
    return share
