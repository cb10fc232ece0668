"""Commands as processes that can be killed: forked from this one, which has imported everything, or really started."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

_COMMANDS_IMPORT = (
    "fsspec.implementations.local",
    "isotrain.albert_core.inference.export",
    "isotrain.albert_core.tasks.metrics",
    "isotrain.albert_core.inference.predict",
    "isotrain.albert_core.tasks.classification",
    "isotrain.albert_core.loop.train",
    "isotrain.backends.cpu",
    "isotrain.benchmarks.parity.compare",
    "isotrain.benchmarks.parity.recording.record",
    "isotrain.benchmarks.reports.terminal",
    "isotrain.cli.main",
    "isotrain.kernels.cpu",
    "peft",
    "rich.logging",
)
# A command that takes longer hangs.
PATIENCE = 180.0


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: killed by that signal; None: it hung), both streams, seconds."""

    code: int | None
    out: str
    err: str
    seconds: float
    processes: int = 1

    @property
    def said(self) -> str:
        """The last line of stderr, or of stdout."""
        lines = [line for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Running:
    """The processes of one command: one, or as many as torchrun would start. Their streams go to files in `streams`."""

    def __init__(self, pids: Sequence[int], streams: Path) -> None:
        self.streams = streams
        self._began = time.monotonic()
        self._codes: dict[int, int | None] = dict.fromkeys(pids)
        self._hung = False

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Waits until all have ended, `seconds` at most; whether they have."""
        deadline = time.monotonic() + seconds
        for pid in self._alive():
            descriptor = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            finally:
                os.close(descriptor)
            if not ready:
                return False
            self._codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return True

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        """Sends a signal to one process, or to all."""
        for position, pid in enumerate(self._codes):
            if self._codes[pid] is None and rank in (None, position):
                os.kill(pid, number)

    def end(self) -> Ended:
        """Waits for the end, which is forced where it doesn't come. The code is that of the first that failed."""
        if not self.wait():
            self._hung = True
            self.send(signal.SIGKILL)
            self.wait()
        codes = [code for code in self._codes.values() if code is not None]
        code = None if self._hung else next((code for code in codes if code), 0)
        out, err = (
            "".join(
                (self.streams / f"{rank}.{name}").read_text(encoding="utf-8", errors="replace")
                for rank in range(len(self._codes))
            )
            for name in ("out", "err")
        )
        return Ended(code, out, err, time.monotonic() - self._began, len(self._codes))

    def _alive(self) -> list[int]:
        return [pid for pid, code in self._codes.items() if code is None]


def start(
    arguments: Sequence[str],
    folder: Path,
    *,
    cache: Path | None = None,
    processes: int = 1,
    really: bool = False,
    prepare: Callable[[], None] = lambda: None,
) -> Running:
    """Starts ``isotrain`` with `arguments` in `folder`, in a group of `processes`.

    Args:
        cache: The folder of its token and feature caches; `folder` / "cache" unless it is given.
        really: Start Python anew, imports included, instead of forking this process.
        prepare: Called in each process just before the command, unless it is really started.
    """
    environment = {"ISOTRAIN_CACHE": str(cache or folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    port = _free_port() if processes > 1 else 0
    pids = []
    for rank in range(processes):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port} if port else {}
        own = environment | {name: str(value) for name, value in told.items()}
        for name in ("out", "err"):
            # Here, for the child may be killed before it does anything.
            (folder.parent / f"{rank}.{name}").write_bytes(b"")
        pid = os.fork()
        if pid == 0:
            _become(arguments, folder, own | ({"MASTER_ADDR": "127.0.0.1"} if port else {}), rank, really, prepare)
        pids.append(pid)
    return Running(pids, folder.parent)


def _become(
    arguments: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    rank: int,
    really: bool,
    prepare: Callable[[], None],
) -> None:
    """The child's part: never returns."""
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(folder.parent / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.update(environment)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if really:
            os.execv(sys.executable, [sys.executable, "-m", "isotrain.cli", *arguments])
        sys.argv = ["isotrain", *arguments]
        from isotrain.cli.main import main

        prepare()
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001 (as Python itself would end it)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def import_everything() -> None:
    """Imports what commands import, so that a forked one begins at once."""
    torch = import_module("torch")
    # Threads don't survive a fork: this process must never have more than one.
    torch.set_num_threads(1)
    for name in _COMMANDS_IMPORT:
        import_module(name)
    transformers = import_module("transformers")
    for name in ("AlbertModel", "BertModel", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    # What is here when a process is forked stays: its collector need not copy the pages to look at it.
    gc.freeze()
