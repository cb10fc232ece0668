"""Ending a run from outside without losing work: the first signal asks, the second insists."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ... import RunError

# What a user, a closing terminal, a scheduler and a limit of processor time send before they kill.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StopRequest:
    """Set by one of the `STOPPING` signals; the loop looks at it after each optimizer step and before each batch of an
    evaluation. Once a run is `over`, and its last lines are left to print, signals change nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.loop_started = False
        self.interrupted = False
        self.over = False

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Before the first step there is nothing to save, and a second signal won't wait: both end at once."""
        del frame
        if self.over:
            return
        insists, self.signal = self.requested, number
        if insists or not self.loop_started:
            self.interrupted = True
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the `STOPPING` signals into a request, in the main thread; elsewhere signals stay as they are.

    SIGHUP stays ignored where it is, as nohup asks for. Inside another such block, the request is that one's.
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, StopRequest):
        yield outer
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    hung_up = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in STOPPING if not (number == signal.SIGHUP and hung_up)]
    previous = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    except Exception as error:
        if request.interrupted:
            # Some libraries swallow an interruption and trip over what it left undone.
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in previous.items():
            # A program that is over has nothing left to be interrupted in.
            if not (request.over and handler is _interrupt):
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    """What `run_program` does until it knows the exit code."""
    del number, frame
    raise KeyboardInterrupt


def run_program(command: Callable[[], NoReturn], stopped: int) -> NoReturn:
    """A whole program: a `STOPPING` signal interrupts it, and once its exit code is known no longer changes it.

    From then on a signal ends the process at once. Otherwise it would tear the clean-up of libraries, which Python's
    own end runs, into a traceback. After that clean-up the process ends without taking its modules apart: Python gives
    signal handlers up before it does, and ends by SIGINT where a library saw the interruption first.
    A signal that is ignored from outside stays so, as nohup asks for.

    Args:
        command: The program.
        stopped: The exit code of a program that was interrupted.

    Raises:
        SystemExit: What `command` raises, or that it was interrupted.
    """
    numbers = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    codes: list[int] = []

    def ends_with(code: int) -> None:
        codes.append(code)
        for number in numbers:
            signal.signal(number, lambda *_: os._exit(code))

    def end() -> None:
        if codes:
            # What can't be written is Python's to complain of.
            with suppress(OSError, ValueError, RunError):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(codes[-1])

    # The first to be registered is the last to be called.
    atexit.register(end)
    for number in numbers:
        signal.signal(number, _interrupt)
    said = sys.unraisablehook
    # Raised in a callback, an interruption goes no further; a run has noted it, any other command waits for the next.
    sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else said(lost)
    # No function may stand between the two handlers: a signal would interrupt that one.
    try:
        try:
            command()
        except SystemExit as ended:
            ends_with(ended.code if isinstance(ended.code, int) else 0)
            raise
    except KeyboardInterrupt:
        ends_with(stopped)
        sys.exit(stopped)
