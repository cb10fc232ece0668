"""A result of `isotrain conformance` as blocks, and two of them beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from .. import UserError
from ..albert_core.config.parsing import read_json
from ..albert_core.terminal.text import duration
from ..backends import UNTESTED
from ..benchmarks.outcome.conformance import CONFORMANCE, CheckResult, Conformance, Support
from ..benchmarks.outcome.load import lack
from ..benchmarks.outcome.upgrade import schema_of
from ..benchmarks.reports.blocks import Block, Column, Heading, Table, Words, word_columns
from ..kernels.words import count

MOST_NAMES = 4
# Of an error's share of its budget, and of a rate. Short measurements of the same device differ by less.
LARGEST_CHANGE, LARGEST_RATE_CHANGE = 2.0, 1.25

# The checks of one subject and dtype.
Row = list[CheckResult]


def result_blocks(result: Conformance) -> list[Block]:
    """One table of all checks, and then what fails and what isn't supported, with the reasons.

    A result of --mode support has no checks, and is shown as what the backend says of itself.
    """
    if result.support is not None and result.status == "complete" and not result.checks:
        return support_blocks(result.backend, result.support)
    seconds = duration(sum(check.seconds for check in result.checks))
    name = result.backend if result.support is None else f"{result.backend}: {result.support.device.name}"
    blocks: list[Block] = [Heading(name), *_untested(result.support)]
    blocks += [*_checks_table(result.checks), *_rates_table(result.checks)]
    if result.broken:
        blocks.append(Heading("what fails"))
        for check in result.broken:
            blocks += [Words(f"{check.name}: {check.clause}", "red"), Words(f"  {check.status}: {check.detail}")]
    lacking = [check for check in result.checks if check.status == "unsupported"]
    blocks += _by_reason("what isn't supported", lacking, lambda check: check.detail)
    partly = [check for check in result.checks if check.status == "pass" and check.lacks]
    blocks += _by_reason("what passing checks leave out", partly, lambda check: check.lacks)
    passed = sum(check.status == "pass" for check in result.checks)
    verdict = f"{passed} pass, {len(result.broken)} fail, {len(lacking)} unsupported"
    ended = {"complete": "", "interrupted": "; interrupted", "not opened": "; the others can't run"}[result.status]
    blocks.append(Words(f"{count(len(result.checks), 'check')} in {seconds}: {verdict}{ended}"))
    return blocks


def _untested(support: Support | None) -> list[Block]:
    return [Words(f"This backend was {UNTESTED}.")] if support is not None and support.device.untested else []


def _by_reason(heading: str, checks: Sequence[CheckResult], reason: Callable[[CheckResult], str]) -> list[Block]:
    """The checks that have the same reason in one paragraph."""
    groups = groupby(sorted(checks, key=reason), key=reason)
    words: list[Block] = [Words(f"{_named([check.name for check in same])}: {why}") for why, same in groups]
    return [Heading(heading), *words] if words else []


def _named(names: Sequence[str]) -> str:
    """A few names, or how many there are. The table has them all."""
    return ", ".join(names) if len(names) <= MOST_NAMES else count(len(names), "check")


def _rows(checks: Sequence[CheckResult]) -> list[Row]:
    rows: dict[tuple[str, str, str], Row] = {}
    for check in checks:
        rows.setdefault((check.group, check.subject, check.dtype), []).append(check)
    return list(rows.values())


def _checks_table(checks: Sequence[CheckResult]) -> list[Block]:
    rows = _rows([check for check in checks if check.mode != "perf"])
    columns = (
        Column[Row]("check", lambda row: f"{row[0].group}/{row[0].subject}", numeric=False),
        Column[Row]("dtype", lambda row: row[0].dtype, numeric=False),
        Column[Row]("test", lambda row: _cell(row, "test"), numeric=False),
        Column[Row]("grad", lambda row: _cell(row, "grad"), numeric=False),
    )
    table: list[Block] = [Table("", columns, rows, _style).without_empty_columns()] if rows else []
    if any(check.share is not None for row in rows for check in row):
        table.insert(0, Words("A figure is the largest error as a share of the error budget."))
    return table


def _rates_table(checks: Sequence[CheckResult]) -> list[Block]:
    rows = [[check] for check in checks if check.mode == "perf"]
    columns = (
        Column[Row]("rate", lambda row: f"{row[0].group}/{row[0].subject}", numeric=False),
        Column[Row]("dtype", lambda row: row[0].dtype, numeric=False),
        Column[Row]("measured", lambda row: row[0].detail if row[0].status == "pass" else row[0].status, numeric=False),
    )
    return [Table("", columns, rows, _style)] if rows else []


def _cell(row: Row, mode: str) -> str:
    return next((outcome_words(check) for check in row if check.mode == mode), "")


def outcome_words(check: CheckResult) -> str:
    """The status of a check, and the share of the error budget or the rate if it has one."""
    if check.rate is not None:
        return f"{check.status} {check.rate.value:.3g} {check.rate.unit}"
    if check.share is None:
        return check.status
    return f"{check.status} {check.share:.0%}" if check.share < 10 else f"{check.status} {check.share:.2g} times"


def _style(row: Row) -> str:
    if any(check.is_broken for check in row):
        return "red"
    return "dim" if all(check.status == "unsupported" for check in row) else ""


def support_blocks(backend: str, support: Support) -> list[Block]:
    """What the backend says of itself."""
    rows = []
    for dtype, policy in support.dtypes.items():
        if isinstance(policy, str):
            rows.append((dtype, "", "", policy))
        else:
            rows.append((dtype, policy.compute, policy.accumulate, policy.reason))
    return [
        Heading(f"{backend}: {support.device.name}"),
        *_untested(support),
        Table("", word_columns("dtype", "products", "sums", "why"), rows),
        Table("", word_columns("kernel", "state"), list(support.kernels.items())),
        *(Words(f"not offered: {lacking}") for lacking in support.lacks),
        *(Words(f"chosen: {choice.line()}") for choice in support.choices),
    ]


def load_conformance(path: Path) -> Conformance:
    """Reads a result of `isotrain conformance`.

    Raises:
        UserError: The file contains anything else.
    """
    fix = "give one that isotrain conformance --json wrote"
    document = read_json(path, fix)
    kind = schema_of(document)
    why = f"its schema is {kind!r} instead of {CONFORMANCE}"
    if kind == CONFORMANCE:
        try:
            return Conformance.model_validate(document)
        except ValidationError as error:
            why = lack(error)
    raise UserError(f"{str(path)!r} is no result of isotrain conformance: {why}; {fix}")


def comparison_blocks(before: Conformance, after: Conformance) -> list[Block]:
    """The checks that ended differently, whose error is twice as large or half, or whose rate is a quarter off."""
    earlier = {check.name: check for check in before.checks}
    later = {check.name: check for check in after.checks}
    rows = []
    for name in dict.fromkeys((*earlier, *later)):
        pair = earlier.get(name), later.get(name)
        if _differ(*pair):
            rows.append((name, *("not run" if check is None else outcome_words(check) for check in pair)))
    if not rows:
        return [Words(f"the same in all {count(len(later), 'check')}")]
    columns = word_columns("check", f"before ({before.backend})", f"now ({after.backend})")
    return [Table(f"different from before: {len(rows)} of {count(len(earlier | later), 'check')}", columns, rows)]


def _differ(before: CheckResult | None, after: CheckResult | None) -> bool:
    if before is None or after is None or before.status != after.status:
        return True
    if before.rate is not None and after.rate is not None:
        slower, faster = sorted((before.rate.value, after.rate.value))
        return faster > LARGEST_RATE_CHANGE * slower
    if before.share is None or after.share is None:
        return before.share != after.share
    smaller, larger = sorted((before.share, after.share))
    return larger > LARGEST_CHANGE * smaller and larger > 0.1
