"""Turns of two processes that measure one target at the same time: one runs a block while the other waits.

The worker says a line when it is ready for its first step and hears one when it may run it. After its warm-up it says
"STEPS BLOCKS" and hears the numbers that both shall have. Then it hears a line before each block and says one after it.
A last line lets it go on when both have run all blocks; after its first word, older workers read nothing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

# What a checkout must offer to be measured beside another one.
PROTOCOL = 1

Descriptors = tuple[int, int]


def _numbers(line: str) -> tuple[int, int]:
    steps, blocks = map(int, line.split())
    return steps, blocks


class _Lines:
    """Lines on two pipes, given by the descriptors to read from and to write to.

    Both methods raise EOFError where the other side is gone.
    """

    def __init__(self, descriptors: Descriptors) -> None:
        self._heard, self._said = os.fdopen(descriptors[0]), descriptors[1]

    def say(self, line: str) -> None:
        try:
            os.write(self._said, f"{line}\n".encode())
        except BrokenPipeError as error:
            raise EOFError from error

    def hear(self) -> str:
        line = self._heard.readline()
        if not line:
            raise EOFError
        return line

    def close(self) -> None:
        self._heard.close()
        os.close(self._said)


class Turns:
    """The worker's side. Without pipes it never waits. waited: the seconds that it has waited so far.

    told: what `Partner.finish` told it; empty before that.
    """

    def __init__(self, descriptors: Descriptors | None = None) -> None:
        self._lines = None if descriptors is None else _Lines(descriptors)
        self.waited = 0.0
        self.told = ""

    @property
    def shared(self) -> bool:
        """Whether another process takes turns with this one."""
        return self._lines is not None

    def begin(self) -> None:
        """Waits until the other process is loaded, too, and neither warms up nor runs a block."""
        self._say("ready")
        self._hear()

    def agree(self, steps: int, blocks: int) -> tuple[int, int]:
        """The steps a block and the blocks that both processes run. The arguments are this one's choice."""
        self._say(f"{steps} {blocks}")
        answer = self._hear()
        return _numbers(answer) if answer else (steps, blocks)

    @contextmanager
    def block(self) -> Iterator[None]:
        """Waits for this process's turn, and ends it."""
        self._hear()
        yield
        self._say("done")

    def finish(self) -> None:
        """Waits until the other process has run its blocks, so that nothing disturbs them."""
        self.told = self._hear().partition(" ")[2].strip()

    def _say(self, line: str) -> None:
        if self._lines is not None:
            self._lines.say(line)

    def _hear(self) -> str:
        if self._lines is None:
            return ""
        start = time.perf_counter_ns()
        line = self._lines.hear()
        self.waited += (time.perf_counter_ns() - start) / 1e9
        return line


ALONE = Turns()


class Partner:
    """The parent's side of one worker. `ends` are the worker's descriptors, closed here once it has inherited them.

    Every method raises EOFError where the worker is gone; then `lost` is true.
    """

    def __init__(self) -> None:
        from_worker, said = os.pipe()
        heard, to_worker = os.pipe()
        self.ends: Descriptors = (heard, said)
        self.lost = False
        self._lines = _Lines((from_worker, to_worker))

    def __enter__(self) -> Partner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del kind, error, at
        self._lines.close()

    def inherited(self) -> None:
        for end in self.ends:
            os.close(end)

    def wait(self) -> None:
        """Waits until the worker is ready for its first step."""
        with self._noticed():
            self._lines.hear()

    def warm_up(self) -> tuple[int, int]:
        """Lets the worker warm up, and returns the steps a block and the number of blocks that it chose."""
        with self._noticed():
            self._lines.say("go")
            return _numbers(self._lines.hear())

    def settle(self, steps: int, blocks: int) -> None:
        with self._noticed():
            self._lines.say(f"{steps} {blocks}")

    def run_block(self) -> None:
        """Gives the worker its turn and waits for its end."""
        with self._noticed():
            self._lines.say("go")
            self._lines.hear()

    def finish(self, told: str = "") -> None:
        """Lets the worker end. told: in one line, what its partner found that it need not find again."""
        with self._noticed():
            self._lines.say(f"end {told}")

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            self.lost = True
            raise


def interleaved(targets: int, processes: int, seed: int) -> list[tuple[int, int]]:
    """The order of (target, process), in rounds: a random order of all targets, its reverse, the next random order.

    Rule 7, A B B A: a machine that steadily gets slower (or faster) during two rounds affects all targets alike.
    """
    generator = random.Random(seed)
    order: list[tuple[int, int]] = []
    current: list[int] = []
    for process in range(processes):
        if process % 2 == 0:
            current = list(range(targets))
            generator.shuffle(current)
        else:
            current = current[::-1]
        order.extend((target, process) for target in current)
    return order
