"""Ending a run from outside without losing work: the first signal asks, the second insists."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# What a user, a closing terminal, a scheduler and a limit of processor time send before they kill.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StopRequest:
    """Set by one of the `STOPPING` signals; the loop looks at it after each optimizer step and before each batch of an
    evaluation.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.loop_started = False

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Before the first step there is nothing to save, and a second signal won't wait: both end at once."""
        del frame
        if self.requested or not self.loop_started:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the `STOPPING` signals into a request, in the main thread; elsewhere signals stay as they are.

    SIGHUP stays ignored where it is, as nohup asks for.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    hung_up = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in STOPPING if not (number == signal.SIGHUP and hung_up)]
    previous = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does, so that it can keep what is complete and clean up.

    In the main thread, and where nothing else is said of the signal: nohup ignores SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) == signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_of_a_program(stopped: int) -> Iterator[None]:
    """Around a whole program: a `STOPPING` signal interrupts it, and once its exit code is known no longer changes it.

    From then on a signal only ends the process at once: Python's own end runs the clean-up of libraries, which a
    signal would tear into a traceback. In its last moments Python takes its signal handlers away, so by then signals
    are ignored. A signal that is ignored from outside stays so, as nohup asks for.

    Args:
        stopped: The exit code of a program that was interrupted.

    Raises:
        SystemExit: The program was interrupted.
    """
    numbers = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]

    def answer(handler: Any) -> None:
        for number in numbers:
            signal.signal(number, handler)

    # The first to be registered is the last to be called.
    atexit.register(answer, signal.SIG_IGN)
    answer(signal.default_int_handler)
    try:
        try:
            yield
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
            answer(lambda *_: os._exit(code))
            raise
    except KeyboardInterrupt:
        answer(lambda *_: os._exit(stopped))
        with suppress(OSError):
            sys.stdout.flush()
        sys.exit(stopped)
