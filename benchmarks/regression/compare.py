"""Two results held against each other, target by target (rules 8 and 9).

Results of another configuration are refused, and so are figures that their own run called invalid. What else differs
between the two is listed; what decides speed must be allowed by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import UserError
from ...kernels.words import count
from ..harness.document import Interval
from ..outcome.answers import answers_differ
from ..outcome.end_to_end import EndToEnd, Side
from ..outcome.load import load_result
from ..outcome.model import Bench, MeasuredTarget, Target, UnmeasuredTarget
from .identity import Difference, check_allowed, differences, of_machine, of_side, of_target
from .metrics import SPEED, Metric, chosen, lack
from .verdict import FAIL, MISSING, REFUSED, Verdict, check_undecided, confirmed, exit_code, judge

Result = Bench | EndToEnd
Measured = MeasuredTarget | Side


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked for.

    what: metrics, speed without any. gates: the least rise that counts, as "5%" for all or "memory=2%" for one.
    allow: facts that decide speed and may differ.
    """

    what: Sequence[str] = ()
    gates: Sequence[str] = ()
    on_undecided: str = FAIL
    allow_missing: bool = False
    allow: Sequence[str] = ()


@dataclass(frozen=True)
class Compared:
    """One metric of one target of two results.

    ratio: of speed, after over before, so that below 1 is slower; of anything else the amounts, so that above 1 is
    more. None where it is refused. warnings: of both measurements. contended: whether other work disturbed either.
    """

    label: str
    what: str
    verdict: Verdict
    ratio: Interval | None = None
    threshold: float = 0.0
    warnings: tuple[str, ...] = ()
    contended: bool = False

    def as_dict(self) -> dict[str, Any]:
        ratio = self.ratio and self.ratio.document()
        return {**vars(self), "ratio": ratio, "verdict": self.verdict.outcome} | {
            key: value for key, value in vars(self.verdict).items() if key != "outcome"
        }


@dataclass(frozen=True)
class Comparison:
    """All targets of two results. subject: what both measured. differences: what else is not the same.

    paired: measured in turns, not one after the other.
    """

    before: str
    after: str
    subject: str
    confirmed: bool
    targets: tuple[Compared, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    on_undecided: str
    allow_missing: bool
    paired: bool = False

    @property
    def code(self) -> int:
        """The exit code; see `verdict.exit_code`."""
        return exit_code((one.verdict.outcome for one in self.targets), self.on_undecided, self.allow_missing)

    def as_dict(self) -> dict[str, Any]:
        targets = [one.as_dict() for one in self.targets]
        told = [one._asdict() for one in self.differences]
        parts = {**vars(self), "targets": targets, "differences": told, "code": self.code}
        return {"schema": "isotrain.compare/1", **parts}


def compare_files(before: Path, after: Path, again: Sequence[Path] = (), asked: Asked | None = None) -> Comparison:
    """Holds `after` against `before`.

    Args:
        before: The older result.
        after: The newer one.
        again: A second run: the new side's result, or the old side's and the new side's.
        asked: What is compared, and what counts.

    Raises:
        UserError: Files that can't be compared, naming the key that differs.
    """
    asked = asked or Asked()
    metrics = chosen(asked.what, asked.gates)
    first, second = load_result(before), load_result(after)
    found = tuple(_compare(first, second, (before, after), metrics))
    told = differences_of(first, second)
    check_allowed(told, asked.allow)
    confirmation: dict[tuple[str, str], Verdict] = {}
    if again:
        old, new = (before, again[0]) if len(again) == 1 else (again[0], again[1])
        pair = load_result(old), load_result(new)
        confirmation = {(one.label, one.what): one.verdict for one in _compare(*pair, (old, new), metrics)}
        again_told = differences_of(*pair)
        check_allowed(again_told, asked.allow)
        told = tuple(dict.fromkeys((*told, *again_told)))
        _check_fresh(second, pair[1], new)
    found = tuple(
        replace(one, verdict=confirmed(one.verdict, confirmation.get((one.label, one.what)))) for one in found
    )
    return Comparison(
        before=f"{before} ({first.environment.revision})",
        after=f"{after} ({second.environment.revision})",
        subject=subject_of(first),
        confirmed=bool(again),
        targets=found,
        differences=told,
        warnings=tuple(growing(first, second)) if "memory" in asked.what else (),
        on_undecided=check_undecided(asked.on_undecided),
        allow_missing=asked.allow_missing,
    )


def _entries(result: Result) -> Sequence[Target | Side]:
    """Targets, or the sides of an end-to-end run."""
    return result.targets if isinstance(result, Bench) else result.sides


def _key(entry: Target | Side) -> str:
    """What names an entry in both of two results. A compiled step and one that isn't are the same work."""
    if isinstance(entry, Side):
        return entry.name
    return entry.label.replace(f" torch.compile {entry.torch_compile}", "")


def subject_of(result: Result) -> str:
    """Model, dtype and device of a result, random weights and emulation named."""
    if isinstance(result, Bench):
        parts = [(one.model.label, one.policy.label, one.device.name) for one in result.measured]
    else:
        parts = [(one.model, result.config.dtype, one.device) for one in result.processes]
    return "; ".join(", ".join(part) for part in dict.fromkeys(parts)) or "nothing that was measured"


def _check_fresh(first: Result, second: Result, path: Path) -> None:
    if first.created == second.created and _entries(first) == _entries(second):
        raise UserError(f"{str(path)!r} is the same measurement as the one to confirm; measure a second time")


def _pairs(before: Result, after: Result) -> list[tuple[Target | Side, Target | Side]]:
    news = {_key(entry): entry for entry in _entries(after)}
    return [(old, news[_key(old)]) for old in _entries(before) if _key(old) in news]


def differences_of(before: Result, after: Result) -> tuple[Difference, ...]:
    """What differs beside the configuration."""
    found = differences(of_machine(before.environment), of_machine(after.environment))
    for old, new in _pairs(before, after):
        if isinstance(old, MeasuredTarget) and isinstance(new, MeasuredTarget):
            found += differences(of_target(old), of_target(new), old.label)
        elif isinstance(old, Side) and isinstance(new, Side) and old.processes and new.processes:
            found += differences(of_side(old), of_side(new), old.name)
    return tuple(found)


def growing(before: Result, after: Result) -> Iterator[str]:
    """Targets whose memory grows from step to step."""
    for old, new in _pairs(before, after):
        if isinstance(old, MeasuredTarget) and isinstance(new, MeasuredTarget):
            was, now = (entry.memory.growth_bytes_per_step for entry in (old, new))
            if now is not None:
                earlier = "not before" if was is None else f"{was / 1e6:.2g} MB before"
                yield f"{new.label}: memory grows by {now / 1e6:.2g} MB a step ({earlier})"


def _compare(
    before: Result, after: Result, paths: tuple[Path, Path], metrics: Sequence[tuple[Metric, float | None]]
) -> Iterator[Compared]:
    """What the two say of every target, also of those that only one of them has."""
    _check_equal({"schema": before.kind}, {"schema": after.kind}, "", paths)
    _check_equal(before.config.document(), after.config.document(), "config.", paths)
    pairs = _pairs(before, after)
    if not pairs:
        raise UserError(
            f"{str(paths[0])!r} and {str(paths[1])!r} have no target in common; measure the same workloads, layouts, "
            "kernels and batch sizes"
        )
    for metric, gate in metrics:
        having = [(old, new) for old, new in pairs if metric.of(old) or metric.of(new) or not old.valid]
        if not having:
            raise UserError(f"no target of either result has a figure of {metric.meaning}; drop --what {metric.name}")
        for old, new in having:
            yield warned(_judge(old, new, paths, metric, gate), old, new)
    both = {_key(old) for old, _ in pairs}
    for which, result in (("before", before), ("after", after)):
        for entry in _entries(result):
            if _key(entry) not in both:
                reason = f"only {which} has it; --allow-missing lets that pass"
                yield Compared(entry.name, metrics[0][0].name, Verdict(MISSING, reason))


def warned(one: Compared, old: Target | Side, new: Target | Side) -> Compared:
    """`one` with what disturbed the measurements that it is of."""
    sides = (("before", old), ("after", new))
    told = tuple(f"{which}: {line}" for which, entry in sides for line in _warnings(entry))
    return replace(one, warnings=told, contended=any(_contended(entry) for entry in (old, new)))


def _warnings(entry: Target | Side) -> Iterator[str]:
    yield from entry.warnings
    if busy := _contended(entry):
        yield f"contended: other work used the CPUs of {busy} of {count(len(entry.processes), 'process')}"


def _contended(entry: Target | Side) -> int:
    """How many processes other work took the CPUs from. Those of an end-to-end run don't say it."""
    if not isinstance(entry, MeasuredTarget):
        return 0
    return sum(process.environment.contended for process in entry.processes)


def _check_equal(before: dict[str, Any], after: dict[str, Any], prefix: str, paths: tuple[Path, Path]) -> None:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise UserError(
                f"{prefix}{key} differs: {before.get(key)!r} in {str(paths[0])!r}, {after.get(key)!r} in "
                f"{str(paths[1])!r}; only results of one configuration can be compared"
            )


def _judge(
    old: Target | Side, new: Target | Side, paths: tuple[Path, Path], metric: Metric, gate: float | None
) -> Compared:
    """What two results say of one metric of one of their entries."""

    def refused(reason: str) -> Compared:
        return Compared(old.name, metric.name, Verdict(REFUSED, reason))

    for which, entry in (("before", old), ("after", new)):
        if not entry.valid or isinstance(entry, UnmeasuredTarget):
            return refused(f"invalid {which}: {'; '.join(entry.reasons) or 'it has no figures'}")
    if isinstance(old, UnmeasuredTarget) or isinstance(new, UnmeasuredTarget):
        raise AssertionError("they are refused")
    if isinstance(old, MeasuredTarget) and isinstance(new, MeasuredTarget):
        _check_equal(_same_work(old), _same_work(new), f"{old.label}: ", paths)
        if wrong := answers_differ(old, new):
            return refused(wrong)
    # The processes of an end-to-end run don't say whether anything else ran: the machine counts as a shared one.
    contended = any(not isinstance(entry, MeasuredTarget) or entry.contended for entry in (old, new))
    threshold = metric.threshold(contended) if gate is None else gate
    cost = metric.cost(old, new)
    if isinstance(cost, str):
        return refused(cost)
    processes = min(len(old.processes), len(new.processes))
    verdict = judge(cost, threshold, processes, lack(old, new), contended)
    ratio = cost.rate(1.0) if metric.name == SPEED else cost
    return Compared(old.name, metric.name, verdict, ratio, threshold)


def _same_work(entry: MeasuredTarget) -> dict[str, Any]:
    """What must be the same of a target beside its configuration; rule 9."""
    return {
        "policy.label": entry.policy.label,
        "model.sha256": entry.model.sha256,
        "data.sha256": entry.data.sha256,
    }
