"""``python -m storm``: plans the tries, shares them among processes, prints what ended badly and a table.

Ctrl-C ends it early, with the table so far.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from . import disks, events, inputs, kills, mutations, signals
from .going_on import expected_of
from .job import VARIANTS, Home
from .judge import Outcome, Verdict
from .process import import_everything
from .table import as_markdown, as_text

KINDS: dict[str, ModuleType] = {
    "kills": kills,
    "events": events,
    "signals": signals,
    "disks": disks,
    "mutations": mutations,
    "inputs": inputs,
}


@dataclass(frozen=True)
class Try:
    """One try: its kind, the run's variant, its number (which means what its kind says) and the seed of its chances."""

    kind: str
    variant: str
    number: int
    seed: int

    def command(self) -> str:
        """What repeats it."""
        chosen = f"--only {self.kind} --variant {self.variant} --seed {self.seed} --number {self.number}"
        return f"make storm ARGS='{chosen} --keep'"


def attempt(root: str, one: Try) -> tuple[Try, Outcome, float]:
    """Makes one try in this worker's own folder."""
    began = time.monotonic()
    home = home_of(Path(root), f"worker-{os.getpid()}", one.kind, one.variant)
    chance = random.Random(f"{one.seed} {one.kind} {one.variant} {one.number}")
    try:
        outcome = KINDS[one.kind].attempt(home, one.number, chance)
    except RuntimeError as error:
        # A run that nothing was done to failed.
        outcome = Outcome(Verdict.WRONG, str(error))
    return one, outcome, time.monotonic() - began


def home_of(root: Path, worker: str, kind: str, variant: str) -> Home:
    home = Home(root / worker / kind, VARIANTS[variant], root / "shared")
    for folder in (home.root, home.shared):
        folder.mkdir(parents=True, exist_ok=True)
    return home


def planned(root: str, arguments: argparse.Namespace, variant: str) -> list[Try]:
    """The tries of every kind asked for, with one variant of the run; makes what they share."""
    tries = []
    for kind in arguments.only:
        if variant in getattr(KINDS[kind], "ON", VARIANTS):
            home = home_of(Path(root), "plan", kind, variant)
            expected_of(home)
            numbers = arguments.number or KINDS[kind].plan(home, arguments.tries)
            tries += [Try(kind, variant, number, arguments.seed) for number in numbers]
    return tries


def main() -> int:
    parser = argparse.ArgumentParser(prog="storm", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of harm")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="ways to train")
    parser.add_argument("--tries", type=int, default=60, help="tries of each kind and variant")
    parser.add_argument("--number", type=int, nargs="+", help="these tries alone, by their numbers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that make tries")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the tries and say where they are")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--json", type=Path, help="write every try there")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="storm-"))
    try:
        return _run(arguments, root)
    finally:
        if arguments.keep:
            print(f"kept in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)


def _run(arguments: argparse.Namespace, root: Path) -> int:
    import_everything()
    began = time.monotonic()
    ended: list[tuple[Try, Outcome, float]] = []
    # A terminal's Ctrl-C is for this process alone.
    workers = multiprocessing.get_context("fork").Pool(
        arguments.jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    with workers as pool, suppress(KeyboardInterrupt):
        plans = pool.imap(partial(planned, str(root), arguments), arguments.variant)
        tries = [one for plan in plans for one in plan]
        # Mixed, so that one that is interrupted has tried something of everything.
        random.Random(arguments.seed).shuffle(tries)
        print(f"storm: {len(tries)} tries in {arguments.jobs} processes", flush=True)
        for one, outcome, seconds in pool.imap_unordered(partial(attempt, str(root)), tries):
            ended.append((one, outcome, seconds))
            if outcome.verdict.is_bad:
                print(f"{one.kind} {one.variant}: {outcome.verdict}: {outcome.seen}\n  {one.command()}", flush=True)
            if len(ended) % 100 == 0:
                print(f"storm: {len(ended)} of {len(tries)} after {time.monotonic() - began:.0f} s", flush=True)
    ended.sort(key=lambda end: (arguments.only.index(end[0].kind), arguments.variant.index(end[0].variant)))
    rows = [(one.kind, one.variant, outcome.verdict) for one, outcome, _ in ended]
    print(as_text(rows))
    if arguments.markdown:
        arguments.markdown.write_text(as_markdown(rows))
    if arguments.json:
        done = [{**asdict(one), **asdict(outcome), "seconds": round(spent, 2)} for one, outcome, spent in ended]
        arguments.json.write_text(json.dumps(done, indent=1) + "\n")
    return int(any(verdict.is_bad for *_, verdict in rows))


if __name__ == "__main__":
    sys.exit(main())
