"""Stops a run from outside without losing work. The first signal requests a stop, the second stops at once."""

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

# Sent by a user, a closing terminal, a scheduler or a limit of processor time before they kill.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StopRequest:
    """Set by one of the `STOPPING` signals. The loop checks it after each step and before each batch of an evaluation.

    Once a run is `over` and only its last lines are left to print, signals change nothing.
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
        """Before the first step there is nothing to save, and a second signal won't wait. Both end at once."""
        if self.over:
            return
        insists, self.signal = self.requested, number
        if _is_unraisable(frame):
            return
        if insists or not self.loop_started:
            self.interrupted = True
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the `STOPPING` signals into a request. In other threads than the main one, signals stay unchanged.

    An ignored SIGHUP stays ignored, as nohup requires. A nested block uses the request of the outer one.
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
            # Some libraries swallow an interruption and then fail over what it left undone.
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in previous.items():
            # A program that is over can't be interrupted any more.
            if not (request.over and handler is _interrupt):
                signal.signal(number, handler)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Lets SIGTERM and a closed terminal end the block like Ctrl-C, so that it can keep complete results and clean up.

    Only in the main thread, and not for a signal with another handler: nohup ignores SIGHUP.
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
    """The handler of `run_program` until the exit code is known."""
    del number
    if not _is_unraisable(frame):
        raise KeyboardInterrupt


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """What can't propagate, such as an exception in a callback: Python prints it, but not an interruption.

    A run has noted the interruption; other commands wait for the next signal. The handlers never interrupt this
    function: Python would print that, too.
    """
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)


def _is_unraisable(frame: FrameType | None) -> bool:
    """Whether a signal came while `_unraisable` ran."""
    while frame is not None and frame.f_code is not _unraisable.__code__:
        frame = frame.f_back
    return frame is not None


def run_program(command: Callable[[], NoReturn], stopped: int) -> NoReturn:
    """Runs a whole program. A `STOPPING` signal interrupts it, but no longer changes its exit code once that is known.

    From then on, a signal ends the process at once. Otherwise it would interrupt the clean-up of libraries at Python's
    exit with a traceback. After that clean-up the process ends without finalising its modules: before it does, Python
    restores the signal handlers, and it ends by SIGINT if a library saw the interruption first. A signal that is
    ignored from outside stays ignored, as nohup requires.

    Args:
        command: The program.
        stopped: The exit code of an interrupted program.

    Raises:
        SystemExit: What `command` raises, or `stopped` after an interruption.
    """
    numbers = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    codes: list[int] = []

    def ends_with(code: int) -> None:
        codes.append(code)
        for number in numbers:
            signal.signal(number, lambda *_: os._exit(code))

    def end() -> None:
        if codes:
            # Python itself reports what can't be written.
            with suppress(OSError, ValueError, RunError):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(codes[-1])

    # Registered first, so called last.
    atexit.register(end)
    for number in numbers:
        signal.signal(number, _interrupt)
    sys.unraisablehook = _unraisable
    # No function call between the two handlers: a signal would interrupt that call.
    try:
        try:
            command()
        except SystemExit as ended:
            ends_with(ended.code if isinstance(ended.code, int) else 0)
            raise
    except KeyboardInterrupt:
        ends_with(stopped)
        sys.exit(stopped)
