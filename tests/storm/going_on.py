"""How a user goes on after a run ended in whatever way, and the judge of where that leads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from .job import BEGIN, GO_ON, Home
from .judge import (
    Outcome,
    Verdict,
    checkpoints,
    compared,
    first_bad,
    is_complete,
    left_over,
    newest_step,
    result,
    spoke,
)
from .process import Ended

_PRINTED = re.compile(r"(?:continue(?: it)? (?:with|by):?|begin it by) `?(?:isotrain )?((?:train )?--resume [^`;\s]+)")
_RESUMED = re.compile(r"resumed from \S+ at step (\d+)")

# Seconds; a busy machine takes longer, and what is killed then is a beginning more often than an end.
_IMPORTS = 8.0


def next_command(home: Home, last: Ended | None = None) -> tuple[str, ...]:
    """What goes on: the command that the last one printed, else --resume for a run that is there, else the same."""
    printed = _PRINTED.search(last.out + last.err) if last is not None else None
    if printed:
        words = shlex.split(printed[1])
        return tuple(words) if words[0] == "train" else ("train", *words)
    return GO_ON if home.run.is_dir() else BEGIN


def to_the_end(
    home: Home, last: Ended | None = None, always: tuple[str, ...] = (), may_differ: tuple[str, ...] = ()
) -> Outcome:
    """Goes on until the run is complete and judges the result against an undisturbed run's.

    The commands are those that the tool says, or `always` one that begins and goes on alike.
    """
    for _ in range(3):
        before = 0 if is_complete(home.run) else newest_step(home.run)
        command = always or next_command(home, last)
        last = home.isotrain(command)
        resumed = _RESUMED.search(last.err)
        if before and last.code == 0 and (resumed is None or int(resumed[1]) < before):
            return Outcome(Verdict.LOST, f"a checkpoint of step {before} was there: {resumed and resumed[0]}")
        if last.code == 0:
            return judged(home, last, may_differ)
        outcome = Outcome(Verdict.DEAD_END, f"isotrain {' '.join(command)}: exit {last.code}: {last.said}")
        if always or next_command(home, last) == command:
            break
    return outcome


def judged(home: Home, last: Ended, may_differ: tuple[str, ...] = ()) -> Outcome:
    """The verdict on a completed run: its result, what is left over, what was said."""
    outcome = first_bad(compared(home.run, expected_of(home), may_differ), left_over(home.folder), spoke(last, (0,)))
    if outcome.verdict is Verdict.WELL and home.variant.settings.get("sync_to_storage"):
        return _remote(home)
    return outcome


def expected_of(home: Home) -> dict[str, object]:
    """The result of an undisturbed run, made once for all workers; also keeps how many seconds it took."""
    kept = home.shared / "expected"
    if not kept.exists():
        other = Home(home.shared / "undisturbed", home.variant, home.shared.parent)
        other.clear()
        (home.shared / "seconds").write_text(str(other.must(BEGIN).seconds))
        other.run.rename(kept)
    return result(kept)


def life(home: Home, really: bool = False) -> float:
    """About how many seconds an undisturbed run takes, from its own start or from that of a new Python."""
    expected_of(home)
    return float((home.shared / "seconds").read_text()) + (_IMPORTS if really else 0.0)


def _remote(home: Home) -> Outcome:
    """The newest checkpoint must be on the other storage too, and every one there must be one of the run's."""
    here, there = checkpoints(home.run / "checkpoints"), checkpoints(Path(home.folder / "remote"))
    newest = max(here)
    if there.get(newest) != here[newest]:
        return Outcome(Verdict.LOST, f"checkpoint {newest} is not on the remote storage, which has {', '.join(there)}")
    return Outcome(Verdict.WELL)
