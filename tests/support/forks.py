"""Python processes that start with isotrain's libraries imported, as the forks of a server that did it once.

A started command costs about 5 s of imports. A fork has none, and is a process of its own to its test: a child with its
own id, working folder, environment, streams and, where asked, session; signals, exit codes and locks are real. What
studies imports, the interpreter's start or its finalisation needs a real interpreter, as do variables that libraries
read when they are imported: `Popen` refuses those.
"""

from __future__ import annotations

import ctypes
import functools
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# What a run, a prediction and a comparison import.
PRELOADED = (
    "isotrain.cli.main",
    "isotrain.albert_core.inference.predict",
    "isotrain.albert_core.loop.train",
    "isotrain.benchmarks.parity.run",
    "isotrain.benchmarks.reports.terminal",
    "scipy.stats",
    "torch._dynamo",
    "torch.distributed.run",
    "transformers.models.albert.modeling_albert",
)
# Variables that libraries read when they are imported begin so.
READ_EARLY = (
    *("CUDA_", "HF_", "HOME", "HUGGINGFACE_", "LC_", "LD_", "MKL_", "MPL", "OMP_", "OPENBLAS_", "PYTHON"),
    *("TOKENIZERS_", "TRANSFORMERS_", "TRITON_", "XDG_"),
)
STREAMS = (0, 1, 2)
ORPHANED = b"."
_SET_CHILD_SUBREAPER = 36


class Popen(subprocess.Popen[str]):
    """`subprocess.Popen` of `[sys.executable, *arguments]`, as a fork. It knows no preexec_fn, shell, user or group.

    Args:
        arguments: "-c" and a program, "-m" and a module, or a script's path; then what they are given.
        closed: Standard streams that are closed in it, by number.
        options: Of `subprocess.Popen`.
    """

    def __init__(self, arguments: list[str], closed: tuple[int, ...] = (), **options: Any) -> None:
        self._closed = closed
        super().__init__([sys.executable, *arguments], **({"text": True} | options))

    def _execute_child(
        self, args: list[str], executable: None, preexec_fn: None, close_fds: bool, pass_fds: tuple[int, ...],
        cwd: Path | str | None, env: dict[str, str] | None, startupinfo: None, creationflags: int, shell: bool,
        p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int,
        restore_signals: bool, gid: None, gids: None, uid: None, umask: int, start_new_session: bool,
        process_group: int,
    ) -> None:  # fmt: skip
        """Instead of fork and exec: asks the server."""
        assert not any((preexec_fn, pass_fds, shell, process_group >= 0)), "only a real process has these"
        environment = dict(os.environ if env is None else env)
        request = {
            "arguments": args[1:],
            "folder": os.fspath(cwd or Path.cwd()),
            "environment": environment,
            "session": start_new_session,
            "closed": self._closed,
            "parent": os.getpid(),
        }
        connection, imported = _server()
        early = {name for name in environment | imported if name.startswith(READ_EARLY)}
        changed = [name for name in sorted(early) if environment.get(name) != imported.get(name)]
        assert not changed, f"{changed} may have been read by an import; start a real interpreter"
        given = zip((p2cread, c2pwrite, errwrite), STREAMS, strict=True)
        files = [stream if piped < 0 else piped for piped, stream in given]
        try:
            _adopt(True)
            socket.send_fds(connection, [len(message := json.dumps(request).encode()).to_bytes(4, "big")], files)
            connection.sendall(message)
            self.pid = int.from_bytes(_receive(connection, 4), "big")
            # By then the fork is ours.
            _receive(connection, len(ORPHANED))
            self._child_created = True
        finally:
            _adopt(False)
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]  # Popen's own, unlisted


def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(..., capture_output=True, text=True)` of a fork."""
    with Popen(arguments, **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options)) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """The server of this process, which ends with it, and the environment that it has imported everything in."""
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    with theirs:
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return ours, environment


def _adopt(wanted: bool) -> None:
    """Makes this process the parent of what its descendants leave behind, or no longer."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise EOFError("the other end is gone")
        received += part
    return received


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Forks for each request. Returns in the forks, with what they are to run."""
    while True:
        size, files, _, _ = socket.recv_fds(connection, 4, len(STREAMS))
        if not size:
            os._exit(0)
        request: dict[str, Any] = json.loads(_receive(connection, int.from_bytes(size, "big")))
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            connection.sendall(ORPHANED)
            for file in files:
                os.close(file)
            continue
        pid = os.fork()
        if pid:
            # The fork loses its parent and gets the nearest above that adopts: the process that asked for it.
            connection.sendall(pid.to_bytes(4, "big"))
            os._exit(0)
        connection.close()
        while os.getppid() != request["parent"]:
            time.sleep(0.001)
        _settle(request, files)
        return request


def _settle(request: dict[str, Any], files: list[int]) -> None:
    """Gives a fork what a started interpreter has."""
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, file in zip(STREAMS, files, strict=True):
        os.dup2(file, number)
        os.close(file)
    for number in request["closed"]:
        os.close(number)
    opened = [None if number in request["closed"] else _stream(number) for number in STREAMS]
    # typeshed calls the dunder streams final; a process that starts has just set them.
    sys.stdin = sys.__stdin__ = opened[0]  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = opened[1]  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = opened[2]  # type: ignore[misc]
    for module in ("random", "numpy.random"):
        import_module(module).seed()


def _stream(number: int) -> io.TextIOWrapper:
    file = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115 (for as long as the process lives)
    return io.TextIOWrapper(
        file,
        encoding="utf-8",
        errors="backslashreplace" if number == 2 else "strict",
        line_buffering=number == 2 or file.isatty(),
    )


def _execute(arguments: list[str]) -> None:
    kind, *rest = arguments
    sys.orig_argv = [sys.executable, *arguments]
    if kind == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0] = str(Path(kind).parent)
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        import_module(name)
    # As in the tests' own process (conftest.py).
    # No test cuts the power, so nothing needs the disk; it still fails for a descriptor that isn't open.
    os.fsync = os.fstat  # type: ignore[assignment]
    # Ctrl-C is for the tests; a fork has Python's own answer to it.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, interrupt)
    _execute(asked["arguments"])
