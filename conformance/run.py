"""Runs the checks of one backend: each in a process that is replaced if a check ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import UserError
from ..albert_core.config.backend import backend_options, resolved_backend
from ..albert_core.runs.files import write_json
from ..backends import BackendUnavailableError, is_built_in, list_backends
from ..benchmarks.harness.environment import versions
from ..benchmarks.outcome.conformance import CONFORMANCE, CheckResult, Conformance, Judged, Support
from ..kernels.names import check_name, check_range, meant
from .messages import SUPPORT, Described, Opening
from .process import COMMAND, LostError, Worker

if TYPE_CHECKING:
    from .case import Case, Mode

MODES: tuple[Mode, ...] = ("test", "grad", "perf")
# What runs if no mode is given: all that can pass or fail.
JUDGING: tuple[Mode, ...] = ("test", "grad")
# Importing torch takes half a minute on a busy disk, and opening an accelerator as long again.
OPEN_SECONDS = 120.0
# A device may need a while after it has lost a process.
MOST_REOPENINGS = 3


@dataclass(frozen=True)
class Target:
    """The backend under test.

    Attributes:
        backend: Its resolved name.
        options: `backend_options` of a configuration.
        seed: Of the values that it is tested with.
        time_limit: Seconds for each check, instead of the check's own limit.
        sets: Further options, as `--set` has them.
    """

    backend: str
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    time_limit: float | None = None
    sets: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, sets: Sequence[str] = (), seed: int = 0, time_limit: float | None = None) -> Target:
        """The target that a command names. A package's module is imported in a worker only, as a part of its test.

        Raises:
            UserError: The name is unknown, a number is out of range, or isotrain's backend can't take these options.
        """
        check_range("--seed", seed, 0, 2**63 - 1)
        if time_limit is not None:
            check_range("--time-limit", time_limit, 0.001, 10**7)
        base = name.partition(":")[0]
        if is_built_in(base):
            options = backend_options(sets)
            return cls(resolved_backend(name, options), options, seed, time_limit)
        check_name("--backend", base, list_backends())
        return cls(name, {}, seed, time_limit, tuple(sets))


def choose(cases: Sequence[Case], mode: str | None, only: str | None) -> list[Case]:
    """The cases of a mode (None: all that judge) with names that contain the pattern `only`.

    Raises:
        UserError: There is no such mode, or no such case.
    """
    if mode is not None:
        check_name("--mode", mode, MODES)
    modes = JUDGING if mode is None else (mode,)
    found = [case for case in cases if case.mode in modes and fnmatchcase(case.name, f"*{only or ''}*")]
    if not found:
        subjects = list(dict.fromkeys(case.subject for case in cases if case.mode in modes))
        wanted = "" if only is None else f"--only {only!r} matches no check"
        raise UserError(f"{wanted or 'there is no check'} of mode {' or '.join(modes)}; {_hint(only, subjects)}")
    return found


def _hint(only: str | None, subjects: Sequence[str]) -> str:
    return f"{meant(only or '', subjects)}there are checks of {', '.join(subjects) or 'other modes'}"


class Suite:
    """An open backend. As a context manager, it ends the process.

    Attributes:
        support: What the backend says of itself; None if it can't, and `problem` says why.
        options: All those that it was opened with.
        not_opened: How opening it failed, at first or MOST_REOPENINGS times in a row. Then no check can run.
    """

    def __init__(self, target: Target, command: Sequence[str] = COMMAND) -> None:
        self.target = target
        self.support: Support | None = None
        self.problem = ""
        self.options = target.options
        self.not_opened: Judged | None = None
        self._command = command
        self._worker: Worker | None = None
        self._has_opened = False
        # Since it was open.
        self._failures: list[Judged] = []

    def __enter__(self) -> Suite:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def open(self) -> Worker | None:
        """Starts a process if there is none, and opens the backend in it. Returns None if that failed.

        Raises:
            UserError: The backend can't run here, or the user asked for what doesn't exist.
        """
        if self._worker is not None or self.not_opened is not None:
            return self._worker
        target = self.target
        worker = Worker(target.backend, target.options, target.seed, self._command, target.sets)
        self._worker = worker.__enter__()
        try:
            opening = self._worker.hear(Opening, OPEN_SECONDS)
        except LostError as error:
            self._fail(Judged(status=error.status, detail=f"while it opened the backend, the process {error}"))
            return None
        if opening.status == "open":
            self._has_opened, self.options = True, opening.options
            self._failures.clear()
            if self.support is None and not self.problem:
                self._ask_support()
            return self._worker
        if not self._has_opened and opening.status == "absent":
            raise BackendUnavailableError.of(target.backend, opening.reason, opening.fix)
        if not self._has_opened and opening.status == "refused":
            raise UserError(opening.reason)
        self._fail(Judged(status="FAIL", detail=f"the backend can't be opened: {opening.reason}"))
        return None

    def _fail(self, found: Judged) -> None:
        self._failures.append(found)
        if not self._has_opened or len(self._failures) == MOST_REOPENINGS:
            self.not_opened = found
        self._end()

    def _ask_support(self) -> None:
        assert self._worker is not None, "it was opened"
        try:
            described = self._worker.ask(SUPPORT, Described, OPEN_SECONDS)
        except LostError as error:
            self.problem = f"the process {error}"
            self._end()
            self.open()
        else:
            self.support, self.problem = described.support, described.problem

    def run(self, case: Case) -> CheckResult:
        """Runs one check. If the process doesn't survive it, that is its result.

        Raises:
            UserError: As `open`.
        """
        worker = self.open()
        start = time.perf_counter_ns()
        if worker is None:
            judged = self._failures[-1]
        else:
            try:
                judged = worker.ask(case.name, Judged, self.target.time_limit or case.time_limit)
            except LostError as error:
                self._end()
                judged = Judged(status=error.status, detail=f"the process {error}")
        return CheckResult(
            name=case.name,
            group=case.group,
            subject=case.subject,
            dtype=case.dtype,
            mode=case.mode,
            clause=case.clause,
            seconds=(time.perf_counter_ns() - start) / 1e9,
            **judged.given(),
        )

    def result(self, checks: Sequence[CheckResult], total: int) -> Conformance:
        """The result of a run of `total` checks with these so far."""
        return Conformance(
            schema=CONFORMANCE,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            status="not opened" if self.not_opened else "complete" if len(checks) == total else "interrupted",
            backend=self.target.backend,
            options=self.options,
            seed=self.target.seed,
            versions=versions(),
            support=self.support,
            checks=list(checks),
        )

    def keep(self, checks: Sequence[CheckResult], total: int, path: Path | None) -> Conformance:
        """The `result`, written as JSON to `path`. Before the first check, it replaces that of an earlier run."""
        result = self.result(checks, total)
        if path is not None:
            write_json(path, result.document())
        return result

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.__exit__(None, None, None)


def run_checks(
    target: Target,
    cases: Sequence[Case],
    *,
    found: Callable[[CheckResult], object] = lambda _: None,
    path: Path | None = None,
    command: Sequence[str] = COMMAND,
) -> Conformance:
    """Runs `cases` in their order. Ctrl-C ends the run and keeps what it has found.

    Args:
        found: Called with each result, once it is written.
        path: A JSON file that gets the results so far, once the backend is open and after each check.
        command: Starts a worker.

    Raises:
        UserError: The backend can't run here, or the user asked for what doesn't exist.
    """
    checks: list[CheckResult] = []
    with Suite(target, command) as suite:
        try:
            suite.open()
            result = suite.keep(checks, len(cases), path)
            for case in cases:
                check = suite.run(case)
                checks.append(check)
                result = suite.keep(checks, len(cases), path)
                found(check)
                if suite.not_opened is not None:
                    break
        except KeyboardInterrupt:
            result = suite.keep(checks, len(cases), path)
    return result
