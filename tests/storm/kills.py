"""``kill -9`` at random moments of a run's whole life, again and again, until it is left alone to end."""

from __future__ import annotations

import random
import signal

from .going_on import life, next_command, to_the_end
from .job import AGAIN, BEGIN, Home
from .judge import Outcome
from .process import Ended, start

# One of so many tries kills a Python started anew, so that imports are killed too.
REAL = 12


def plan(home: Home, tries: int) -> list[int]:
    del home
    return list(range(1, tries + 1))


def attempt(home: Home, number: int, chance: random.Random) -> Outcome:
    """Kills up to three commands in a row, then goes on to the end; every second try by the same command each time."""
    home.clear()
    really = number % REAL == 0
    always = AGAIN if number % 2 else ()
    for nth in range(chance.randint(1, 3)):
        command = always or (next_command(home) if nth else BEGIN)
        _killed(home, command, chance, really and nth == 0)
    return to_the_end(home, always=always)


def _killed(home: Home, command: tuple[str, ...], chance: random.Random, really: bool) -> Ended:
    running = start(command, home.folder, processes=home.variant.processes, really=really)
    if not running.wait(chance.uniform(0.0, 1.1 * life(home, really))):
        alone = chance.randrange(2) if home.variant.processes > 1 and chance.random() < 0.15 else None
        running.send(signal.SIGKILL, alone)
    return running.end()
