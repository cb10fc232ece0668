"""Kills before every single file event: of a new run, of a resume, of one with a changed key, of a run's finish."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable

from isotrain.albert_core.runs.manifest import MODEL, withdraw

from .going_on import judged, to_the_end
from .hook import kill_before, on_file_events, write_count
from .job import BEGIN, GO_ON, Home
from .judge import Outcome

CHANGED = (*GO_ON, "--set", "keep_last_n=2", "--set", "checkpoint_metric=eval/accuracy")
# By hundreds, so that a try's number says which: 100 + event of a new run, 1100 + event of a resume, ...
_SPAN = 1000


def _begin(home: Home) -> None:
    home.clear()


def _finishing(home: Home) -> None:
    """All steps are done and saved, the model isn't written: the disk of a run that was killed there."""

    def make() -> None:
        home.must(BEGIN)
        for name in ("model", "summary.json"):
            path = home.run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        # A model that isn't written isn't vouched for.
        withdraw(home.run, [MODEL])

    home.state("finishing", make)


SCENES: tuple[tuple[str, Callable[[Home], None], tuple[str, ...]], ...] = (
    ("new run", _begin, BEGIN),
    ("resume", Home.stopped, GO_ON),
    ("changed key", Home.stopped, CHANGED),
    ("finish", _finishing, GO_ON),
    ("completed", Home.completed, GO_ON),
)


def plan(home: Home, tries: int) -> list[int]:
    """Every event of every scene; of more than `tries`, as many, evenly spread."""
    numbers = []
    for position, (_, prepare, command) in enumerate(SCENES):
        prepare(home)
        file = home.root / "events.txt"
        home.isotrain(command, on_file_events(home.folder, write_count(file)))
        count = len({line.split()[0] for line in file.read_text().splitlines()})
        numbers += [position * _SPAN + event for event in range(1, count + 2)]
    return numbers if tries >= len(numbers) else [numbers[n * len(numbers) // tries] for n in range(tries)]


def attempt(home: Home, number: int, chance: random.Random) -> Outcome:
    """Kills before one event, then goes on to the end."""
    scene, event = divmod(number, _SPAN)
    name, prepare, command = SCENES[scene]
    prepare(home)
    ended = home.isotrain(command, on_file_events(home.folder, kill_before(event)))
    if ended.code == 0 and name != "changed key":
        return judged(home, ended)
    # What is best and kept follows the new key, or the old one where the kill came before that was written.
    return to_the_end(home, may_differ=("checkpoints", "summary") if name == "changed key" else ())
