"""Signals at random moments, once and twice: the run stops, says how to go on, and goes on to the same end."""

from __future__ import annotations

import random
import signal

from .going_on import judged, life, to_the_end
from .job import BEGIN, Home
from .judge import Outcome, Verdict, is_complete, spoke
from .kills import REAL
from .process import start

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_STOPPED = 130


def plan(home: Home, tries: int) -> list[int]:
    del home
    return list(range(1, tries + 1))


def attempt(home: Home, number: int, chance: random.Random) -> Outcome:
    """One signal, or two of any kind; every third try sends two."""
    home.clear()
    really = number % REAL == 0
    first, second = SIGNALS[number % len(SIGNALS)], chance.choice(SIGNALS)
    running = start(BEGIN, home.folder, processes=home.variant.processes, really=really)
    if not running.wait(chance.uniform(0.0, 1.0 * life(home, really))):
        running.send(first)
        if number % 3 == 0 and not running.wait(chance.uniform(0.0, 0.05)):
            running.send(second)
    ended = running.end()
    if ended.code == 0:
        return judged(home, ended)
    if ended.code in (-first, -second) and (not home.run.exists() or is_complete(home.run)):
        # Before it has begun and after its end a signal's own way is right.
        return to_the_end(home, ended)
    outcome = spoke(ended, (_STOPPED,))
    if outcome.verdict is not Verdict.WELL:
        return Outcome(outcome.verdict, f"{first.name}, {second.name}: {outcome.seen}")
    # The checkpoint of the stop is one of the last that are kept.
    return to_the_end(home, ended, may_differ=("checkpoints",))
