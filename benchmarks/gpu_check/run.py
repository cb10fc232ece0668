"""Runs the stages one after the other. What is done is on the disk, whatever happens to the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from ... import UserError
from ...albert_core.processes.signals import interrupted_by_signals
from ...albert_core.runs.files import make_folder, make_folders, remove, write_json
from ...albert_core.terminal.invocation import command
from ..harness.answer import read_answer
from ..harness.document import Device, Part, Refused
from ..harness.runner import how, last_words, run_process
from .result import GPU_CHECK, GpuCheck, Opened, Operators, StageResult, Throughput
from .stages import PROCESS, Asked, Command, Stage, stages

RESULT = "gpu-check.json"
# In less time, no process gets to its first measurement.
LEAST_SECONDS = 5.0

P = TypeVar("P", bound=Part)


def run_check(asked: Asked, tell: Callable[[str], object], process: Sequence[str] = PROCESS) -> GpuCheck:
    """Runs all stages that have not passed in `asked.out` yet.

    Args:
        tell: Called with lines for the user.
        process: Starts a stage.

    Raises:
        UserError: The backend can't run here, or the folder has other results.
        KeyboardInterrupt: The user or a scheduler stopped it. The message says how to go on.
    """
    make_folders(asked.out, "--out")
    check = _Check(asked, tell, tuple(process), _before(asked))
    advice = f"continue with: {continuation(asked)}"
    try:
        with interrupted_by_signals():
            for stage in stages(asked):
                check.run(stage)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(advice) from interrupt
    return check.result()


def continuation(asked: Asked) -> str:
    """The command line that goes on with a check."""
    reference = ["--reference", str(asked.reference)] if asked.reference else []
    tiny = ["--tiny"] if asked.tiny else []
    return command("gpu-check", "--backend", asked.backend, "--out", str(asked.out), *reference, *tiny)


@dataclass
class _Check:
    """The state of a check: what each stage has found so far, by name."""

    asked: Asked
    tell: Callable[[str], object]
    process: tuple[str, ...]
    before: GpuCheck | None
    began: float = field(default_factory=time.monotonic)
    found: dict[str, StageResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found = {} if self.before is None else {stage.name: stage for stage in self.before.stages}

    def run(self, stage: Stage) -> None:
        earlier = self.found.get(stage.name)
        # The first stage is short, and finds out whether this is the same device.
        if earlier is not None and earlier.status == "passed" and stage.name != "peaks":
            self.tell(f"{earlier.line()} (before)")
            return
        left = self.asked.seconds - (time.monotonic() - self.began)
        limit = min(stage.share * self.asked.seconds, left)
        if stage.missing:
            self._keep(StageResult(name=stage.name, status="skipped", seconds=0.0, detail=stage.missing))
        elif limit < LEAST_SECONDS:
            why = f"of {self.asked.seconds:g} s, {max(0.0, left):.0f} s are left; go on with {continuation(self.asked)}"
            self._keep(StageResult(name=stage.name, status="out of time", seconds=0.0, detail=why))
        else:
            remove(stage.folder(self.asked))
            make_folder(stage.folder(self.asked))
            # Who reads this was killed before there was another result.
            self._write(StageResult(name=stage.name, status="unfinished", seconds=0.0, detail="it was killed"))
            self._keep(self._processes(stage, limit))
        for line in _lines(self.asked, stage.name):
            self.tell(line)

    def _processes(self, stage: Stage, limit: float) -> StageResult:
        began, problems, in_time = time.monotonic(), [], True
        for number, one in enumerate(stage.commands):
            left = limit - (time.monotonic() - began)
            log = stage.folder(self.asked) / f"log-{number}.txt"
            ended = run_process((*self.process, *one.arguments), one.spec, log, None, max(0.1, left))
            in_time = not ended.timed_out
            if not in_time:
                problems.append(f"ended at its limit of {limit:.0f} s{last_words(log)}")
                break
            if problem := _problem(one, ended.code, f"{how(ended)}{last_words(log)}"):
                problems.append(problem)
            if stage.name == "peaks" and ended.code == 2:
                self._write(StageResult(name=stage.name, status="failed", seconds=0.0, detail=problem))
                raise UserError(problem)
        if stage.name == "peaks" and not problems:
            self._check_device()
        seconds = time.monotonic() - began
        status = "out of time" if not in_time else "failed" if problems else "passed"
        return StageResult.model_validate(
            {"name": stage.name, "status": status, "seconds": seconds, "detail": "; ".join(problems)}
        )

    def _check_device(self) -> None:
        now, before = _device(self.asked), None if self.before is None else self.before.device
        if now is not None and before is not None and now.name != before.name:
            raise UserError(
                f"--out {str(self.asked.out)!r} has results of {before.name}, and this is {now.name}; give another one"
            )

    def _keep(self, found: StageResult) -> None:
        self._write(found)
        self.tell(found.line())

    def _write(self, found: StageResult) -> None:
        self.found[found.name] = found
        write_json(self.asked.out / RESULT, self.result().document())

    def result(self) -> GpuCheck:
        before = None if self.before is None else self.before.device
        return GpuCheck(
            schema=GPU_CHECK,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            backend=self.asked.backend,
            tiny=self.asked.tiny,
            device=_device(self.asked) or before,
            stages=[self.found[stage.name] for stage in stages(self.asked) if stage.name in self.found],
            figures=[figure for found in _throughputs(self.asked) for figure in found.figures()],
        )


def _before(asked: Asked) -> GpuCheck | None:
    """What an earlier check left in the folder."""
    path = asked.out / RESULT
    try:
        before = GpuCheck.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is no result of gpu-check; give another --out") from error
    if (before.backend, before.tiny) != (asked.backend, asked.tiny):
        raise UserError(
            f"--out {str(asked.out)!r} has {'a dry run' if before.tiny else 'results'} of {before.backend}; give "
            "another folder"
        )
    return before


def _problem(one: Command, code: int, ended: str) -> str:
    """What is wrong with a process that has ended; empty if nothing is."""
    if one.spec is None:
        return "" if code == 0 else f"{one.arguments[0]} {ended}"
    try:
        found = read_answer(Path(one.spec.result), Throughput if one.spec.what == "throughput" else Part)
    except (FileNotFoundError, ValueError):
        return f"{one.spec.what} {ended}"
    if isinstance(found, Refused):
        return found.message
    if code:
        return f"{one.spec.what} {ended}"
    return "; ".join(found.problems) if isinstance(found, Throughput) else ""


def _measured(path: Path, kind: type[P]) -> P | None:
    """A measurement's result, if there is one."""
    try:
        found = read_answer(path, kind)
    except (FileNotFoundError, ValueError):
        return None
    return None if isinstance(found, Refused) else found


def _device(asked: Asked) -> Device | None:
    opened = _measured(asked.out / "peaks" / "peaks.json", Opened)
    return None if opened is None else opened.device


def _throughputs(asked: Asked) -> Iterator[Throughput]:
    for stage in ("throughput", "compiled"):
        if found := _measured(asked.out / stage / "throughput.json", Throughput):
            yield found


def _lines(asked: Asked, stage: str) -> Iterator[str]:
    """What a stage has measured."""
    kinds: dict[str, type[Opened | Throughput | Operators]] = {
        "peaks": Opened,
        "throughput": Throughput,
        "operators": Operators,
    }
    for name, kind in kinds.items():
        if found := _measured(asked.out / stage / f"{name}.json", kind):
            yield from (f"  {line}" for line in found.lines())
