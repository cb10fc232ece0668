"""A worker as its parent sees it: it answers requests within their time limits, or it is lost."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from ..albert_core.terminal.text import quoted
from ..benchmarks.harness.document import Part
from ..benchmarks.harness.runner import GRACE_SECONDS, Ended, how, last_words, running
from .messages import WorkerSpec

COMMAND = (sys.executable, "-m", "isotrain.conformance.worker")
# How often a wait looks whether the process is still there.
POLL_SECONDS = 0.5

Answer = TypeVar("Answer", bound=Part)


class LostError(Exception):
    """The process ended, hung, or answered with what is no result. The message is a verb phrase.

    last_words: the last line that it printed, as the end of a sentence.
    """

    def __init__(self, status: Literal["crash", "hang"], what: str, last_words: str = "") -> None:
        super().__init__(f"{what}{last_words}")
        self.status = status
        self.last_words = last_words


class Worker:
    """A process with one open backend. As a context manager, it starts the process and ends it.

    Its first message, which nobody has to request, says whether the backend is open.
    """

    def __init__(
        self,
        backend: str,
        options: dict[str, Any],
        seed: int,
        command: Sequence[str] = COMMAND,
        sets: Sequence[str] = (),
    ) -> None:
        self._spec = partial(WorkerSpec, backend=backend, options=options, seed=seed, sets=list(sets))
        self._command = command
        self._received = b""

    def __enter__(self) -> Worker:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="isotrain-conformance-"))
            self._log = Path(folder, "log")
            requests, self._requests = os.pipe()
            stack.callback(os.close, self._requests)
            self._answers, answers = os.pipe()
            stack.callback(os.close, self._answers)
            spec = self._spec(requests=requests, answers=answers)
            ends = (requests, answers)
            try:
                self._process = stack.enter_context(running(self._command, spec, self._log, None, pass_fds=ends))
            finally:
                for end in ends:
                    os.close(end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def ask(self, request: str, kind: type[Answer], limit: float) -> Answer:
        """Sends a request and returns its answer. See `hear`."""
        # If the process is gone, `hear` says how.
        with suppress(BrokenPipeError):
            os.write(self._requests, f"{request}\n".encode())
        return self.hear(kind, limit)

    def hear(self, kind: type[Answer], limit: float) -> Answer:
        """The next message of the process.

        Args:
            kind: The model of the message.
            limit: Seconds to wait for it.

        Raises:
            LostError: There is none. The process can't be used any more.
        """
        line = self._line(limit)
        try:
            return kind.model_validate_json(line)
        except ValueError as error:
            raise LostError("crash", f"answered with what is no result: {quoted(line)}") from error

    def _line(self, limit: float) -> str:
        deadline = time.monotonic() + limit
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LostError("hang", f"took longer than {limit:g} s", last_words(self._log))
            readable, _, _ = select.select([self._answers], [], [], min(left, POLL_SECONDS))
            part = os.read(self._answers, 65536) if readable else b""
            if not part and (readable or self._process.poll() is not None):
                raise self._ended()
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace")

    def _ended(self) -> LostError:
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return LostError("crash", "closed its pipe", last_words(self._log))
        return LostError("crash", how(Ended(code, 0.0, False, self._log)), last_words(self._log))
