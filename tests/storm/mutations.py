"""Files changed behind a run's back: every file of runs, caches, checkpoints, traces and results, in many ways.

Whoever reads a changed file must give the answer it would have given (it doesn't need the file, or makes it anew), or
end with exit code 2 and one line that names the file. Another answer without a word is the worst that can happen.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .job import BEGIN, GO_ON, Home
from .judge import Outcome, Verdict, differences, result, spoke
from .process import Ended, start
from .ways import WAYS

ON = ("cached", "whole", "adapters", "pretrained", "keep-one", "remote")
_RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
# Records that people read and no command computes from.
_RECORDS = ("train.log", "metrics.jsonl", ".lock")


@dataclass(frozen=True)
class Target:
    """A state, the folder in it whose files are changed, and the commands that read them.

    `trains`: the commands go on with a run, whose result counts; of the others what they print does.
    """

    name: str
    prepare: Callable[[Home], None]
    files: str
    commands: tuple[tuple[str, ...], ...]
    trains: bool = False
    writes: str = ""


def _cache(home: Home) -> None:
    home.completed()
    shutil.rmtree(home.folder / "runs")


def _elsewhere(home: Home) -> None:
    """The remote storage of a run that was stopped, on a machine that has nothing else."""
    home.stopped()
    shutil.rmtree(home.folder / "runs")


def _traces(home: Home) -> None:
    kept = home.shared / "traces"
    if not kept.exists():
        home.clear()
        record = ("parity", "record", "job.yaml", "--steps", "4", "--set", "run_name=null")
        home.must((*record, "--dtype", "float64", "--out", "traces/reference"))
        home.must((*record, "--dtype", "float32", "--replay-from", "traces/reference", "--out", "traces/here"))
        shutil.copytree(home.folder / "traces", kept)
        return
    home.clear()
    shutil.copytree(kept, home.folder / "traces")


def _results(home: Home) -> None:
    home.clear()
    (home.folder / "results").mkdir()
    for path in sorted(_RESULTS.glob("*.json")):
        shutil.copy(path, home.folder / "results")
    shutil.copy(_RESULTS / _OLD, home.folder / "results" / _NEW)


_RUN = "runs/run"
_OLD, _NEW = "2026-11-25-zen4-portable.json", "newer.json"
TARGETS = (
    Target(
        "run",
        Home.completed,
        _RUN,
        (
            ("predict", _RUN, "--csv", "data/test.csv", "--json"),
            ("predict", _RUN, "--csv", "data/test.csv", "--json", "--checkpoint", "best"),
            ("export", _RUN, "--format", "safetensors", "--out", "exported"),
            ("report", "runs", "-o", "page.html"),
        ),
        writes="exported",
    ),
    Target("finished run", Home.completed, _RUN, (GO_ON,), trains=True),
    Target("stopped run", Home.stopped, _RUN, (GO_ON,), trains=True),
    Target("cache", _cache, "cache", (BEGIN,), trains=True),
    Target("traces", _traces, "traces", (("parity", "compare", "traces/reference", "traces/here"),)),
    Target(
        "results",
        _results,
        "results",
        (
            ("compare", f"results/{_OLD}", f"results/{_NEW}"),
            ("history", "results"),
            ("report", "results", "-o", "page.html"),
        ),
    ),
    Target(
        "remote",
        _elsewhere,
        "remote",
        ((*BEGIN, "--set", "load_from_storage=true", "--set", "resume_from_checkpoint=true"),),
        trains=True,
    ),
)
# These don't differ between variants.
_ONCE = ("traces", "results", "cache")


@dataclass(frozen=True)
class Case:
    """One file, one way to change it, one command."""

    target: Target
    command: tuple[str, ...]
    file: str
    way: str


def cases(home: Home) -> list[Case]:
    """All there are for this variant, in an order that is always the same and mixes them."""
    found = []
    for target in TARGETS:
        if target.name in _ONCE and home.variant.name != "cached":
            continue
        if target.name == "remote" and home.variant.name != "remote":
            continue
        target.prepare(home)
        root = home.folder / target.files
        files = sorted(path.relative_to(home.folder).as_posix() for path in root.rglob("*") if path.is_file())
        found += [Case(target, command, file, way) for command in target.commands for file in files for way in WAYS]
    random.Random(home.variant.name).shuffle(found)
    return found


def plan(home: Home, tries: int) -> list[int]:
    """As many cases as wanted; more than there are repeat them with other chances."""
    count = len(cases(home))
    (home.shared / "count").write_text(str(count))
    _other(home)
    return list(range(tries))


def attempt(home: Home, number: int, chance: random.Random) -> Outcome:
    """Changes one file, runs one command and judges its answer."""
    known = _KNOWN.setdefault(str(home.root), cases(home))
    case = known[number % len(known)]
    expected = _answer_unharmed(home, case)
    case.target.prepare(home)
    path = home.folder / case.file
    described = WAYS[case.way](path, _other(home) / case.file, chance)
    if described is None:
        return Outcome(Verdict.SKIPPED, "nothing to change")
    outcome = _judged(home, case, described, _run(home, case), expected)
    if outcome.verdict is Verdict.WELL:
        return outcome
    return Outcome(outcome.verdict, f"{case.file}: {described}; {' '.join(case.command)}: {outcome.seen}")


_KNOWN: dict[str, list[Case]] = {}
_UNHARMED: dict[tuple[str, str, tuple[str, ...]], dict[str, Any]] = {}


def _run(home: Home, case: Case) -> Ended:
    return home.isotrain(case.command)


def _answer_unharmed(home: Home, case: Case) -> dict[str, Any]:
    key = (str(home.root), case.target.name, case.command)
    if key not in _UNHARMED:
        case.target.prepare(home)
        ended = _run(home, case)
        if ended.code not in (0, 1):
            raise RuntimeError(f"isotrain {' '.join(case.command)}: exit {ended.code}: {ended.err}")
        _UNHARMED[key] = _answer(home, case, ended)
    return _UNHARMED[key]


def _answer(home: Home, case: Case, ended: Ended) -> dict[str, Any]:
    """What the command answered: a run's result, or its exit code, what it printed and the weights it wrote."""
    if case.target.trains:
        return result(home.run)
    if case.target.name == "results" or case.command[0] == "report":
        # Results are what they say: no checksum vouches for them.
        return {}
    written = sorted((home.folder / "exported").rglob("*.safetensors"))
    return {"code": ended.code, "printed": ended.out, "weights": [path.read_bytes() for path in written]}


def _judged(home: Home, case: Case, described: str, ended: Ended, expected: dict[str, Any]) -> Outcome:
    # A comparison that finds a difference ends with 1.
    usual = (0, 2, 1) if expected.get("code") == 1 else (0, 2)
    # A comparison says in its table what it couldn't compare.
    tabled = case.command[:2] == ("parity", "compare") and ended.code in (1, 2) and not ended.err
    outcome = spoke(ended if not tabled else replace(ended, code=0), usual)
    if outcome.verdict is not Verdict.WELL:
        return outcome
    if ended.code == 2:
        return _named(case, described, ended.err + ended.out)
    try:
        found = _answer(home, case, ended)
    except (OSError, ValueError, KeyError) as error:
        return Outcome(Verdict.WRONG, f"{type(error).__name__}: {error}")
    different = differences(*(_without(case, answer) for answer in (found, expected)))
    if not different or (case.target.trains and _is_said(case, ended, different)):
        return Outcome(Verdict.WELL)
    return Outcome(Verdict.SILENT, different)


def _without(case: Case, answer: dict[str, Any]) -> dict[str, Any]:
    """A run's result without the checkpoint that was changed: one that nothing was read from stays as it is."""
    changed = Path(case.file).parent.name.removeprefix("step-")
    if "checkpoints" not in answer:
        return answer
    kept = {step: files for step, files in answer["checkpoints"].items() if step != changed}
    return answer | {"checkpoints": kept}


def _is_said(case: Case, ended: Ended, different: str) -> bool:
    """A changed config.yaml is a changed key, which a resume names; records are nobody's input."""
    if Path(case.file).name in _RECORDS:
        return different.startswith("metrics differ")
    return "resumed with other values" in ended.err and case.file.endswith("config.yaml")


def _named(case: Case, described: str, said: str) -> Outcome:
    """The line must name the file; of a configuration it may name the key."""
    path = Path(case.file)
    key = described.split()[0] if path.name == "config.yaml" else path.name
    if path.name in said or path.parent.name in said or key in said:
        return Outcome(Verdict.WELL)
    return Outcome(Verdict.MESSAGE, f"names no file: {said.splitlines()[-1][:300]}")


def _other(home: Home) -> Path:
    """Another run's folder, with the same names in it: other data, other weights."""
    kept = home.shared / "other"
    if kept.exists():
        return kept
    other = Home(home.shared / "making", home.variant, home.shared.parent)
    other.clear()
    _reverse_labels(other.folder / "data")
    more: Sequence[str] = ("--set", "seed=5", "--set", "learning_rate=0.02")
    start((*BEGIN, *more), other.folder).end()
    other.folder.rename(kept)
    return kept


def _reverse_labels(data: Path) -> None:
    """Each text gets the label of the text that stands as far from the end."""
    for file in data.glob("*.csv"):
        header, *lines = file.read_text().splitlines()
        labels = [line.rpartition(",")[2] for line in lines][::-1]
        texts = [line.rpartition(",")[0] for line in lines]
        file.write_text("\n".join([header, *map(",".join, zip(texts, labels, strict=True))]) + "\n")
