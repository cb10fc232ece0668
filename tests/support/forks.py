"""Python processes that start with isotrain's libraries imported, as the forks of a server that did it once.

A started command costs about 5 s of imports. A fork has none, and is a process of its own to its test: a child with its
own id, working folder, environment, streams and, where asked, session; signals, exit codes and locks are real. What
studies imports, the interpreter's start or its finalisation needs a real interpreter, as do variables that libraries
read when they are imported: `Popen` refuses those.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import gc
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

# What a run, a prediction, a comparison and the workers of measurements import.
LIBRARIES = (
    "pydantic",
    "rich.console",
    "torch._dynamo",
    "torch.distributed.run",
    "transformers.models.albert.modeling_albert",
    "typer",
)
PRELOADED = (
    "isotrain.cli.main",
    "isotrain.albert_core.inference.predict",
    "isotrain.albert_core.loop.train",
    "isotrain.benchmarks.parity.recording.record",
    "isotrain.benchmarks.parity.run",
    "isotrain.benchmarks.reports.terminal",
    *LIBRARIES,
)
# Where the tests' own modules come from. A process with another path has a server that has imported only libraries.
PATH = os.environ.get("PYTHONPATH", "")
# Variables that libraries read when they are imported begin so.
READ_EARLY = (
    *("CUDA_", "HF_", "HOME", "HUGGINGFACE_", "LC_", "LD_", "MKL_", "MPL", "OMP_", "OPENBLAS_", "PYTHON"),
    *("TOKENIZERS_", "TRANSFORMERS_", "TRITON_", "XDG_"),
)
# It decides whether bars are drawn, which no file of results has.
HARMLESS = "HF_HUB_DISABLE_PROGRESS_BARS"
SERVER_NAME = "fork-server"
STREAMS = (0, 1, 2)
ORPHANED = b"."
# Received files wait above the numbers that they are to have.
_FREE_NUMBERS = 200
_MOST_FILES = 16
_SET_NAME = 15
_SET_CHILD_SUBREAPER = 36
_PRCTL = ctypes.CDLL(None).prctl
_START = vars(subprocess.Popen)["_execute_child"]
_START_ARGUMENTS = inspect.signature(_START)
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def _paths(listed: str) -> list[str]:
    """The folders in a value of PYTHONPATH."""
    return [str(Path(one).absolute()) for one in listed.split(os.pathsep) if one]


# The interpreter's own folders of modules.
_OWN_PATH = [one for one in sys.path[1:] if one not in _paths(PATH)]


class _Started(subprocess.Popen[bytes]):
    """A real process, whatever `forked_children` does."""

    _execute_child = _START


class Popen(subprocess.Popen[str]):
    """`subprocess.Popen` of `[sys.executable, *arguments]`, as a fork. It knows no preexec_fn, shell, user or group.

    Args:
        arguments: "-c" and a program, "-m" and a module, or a script's path; then what they are given.
        closed: Standard streams that are closed in it, by number.
        forking: Whether the Python processes that it starts are forks, too, wherever they can be.
        options: Of `subprocess.Popen`.
    """

    def __init__(
        self, arguments: list[str], closed: tuple[int, ...] = (), forking: bool = False, **options: Any
    ) -> None:
        self._own = {"closed": closed, "forking": forking}
        super().__init__([sys.executable, *arguments], **({"text": True} | options))

    def _execute_child(self, *given: Any) -> None:
        asked = _START_ARGUMENTS.bind(self, *given).arguments
        server = _server_for(asked)
        reason = _why_started(asked, server)
        assert not reason, f"{reason}; start a real interpreter"
        _fork(self, asked, server, self._own)


def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(..., capture_output=True, text=True)` of a fork."""
    with Popen(arguments, **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options)) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def forked_children() -> Iterator[None]:
    """Meanwhile, the Python processes that this process starts are forks, wherever they can be."""
    _fork_children(_server_for)
    try:
        yield
    finally:
        subprocess.Popen._execute_child = _START  # type: ignore[attr-defined]  # as in _fork_children


@dataclass(frozen=True)
class _Server:
    """Where to ask for forks, what they have imported, and the environment in which it was."""

    connection: socket.socket
    modules: tuple[str, ...]
    imported: dict[str, str]


def _fork_children(server_for: Callable[[dict[str, Any]], _Server]) -> None:
    """From now on, the Python processes that this process starts are forks, wherever they can be."""

    def start(process: Any, *given: Any) -> None:
        asked = _START_ARGUMENTS.bind(process, *given).arguments
        server = server_for(asked)
        if _why_started(asked, server):
            _START(process, *given)
        else:
            _fork(process, asked, server, {"closed": (), "forking": False})

    subprocess.Popen._execute_child = start  # type: ignore[attr-defined]  # Popen's own, unlisted


def _why_started(asked: dict[str, Any], server: _Server) -> str:
    """Why this process can't be a fork; empty if it can."""
    if isinstance(asked["args"], str | bytes | os.PathLike):
        return "it is no list of arguments"
    program, *words = map(os.fspath, asked["args"])
    if asked["executable"] or program != sys.executable:
        return f"{program} is another program"
    if asked["preexec_fn"] or asked["shell"] or asked["process_group"] >= 0:
        return "only a real process has these options"
    _, words = _flags(words)
    if not words or (words[0].startswith("-") and words[0] not in ("-c", "-m")):
        return f"a fork doesn't know the options {words[:1]}"
    environment = _environment(asked)
    harmless = (HARMLESS, *(("PYTHONPATH",) if server.modules == LIBRARIES else ()))
    early = {name for name in {*environment, *server.imported} if name.startswith(READ_EARLY)} - {*harmless}
    changed = [name for name in sorted(early) if environment.get(name) != server.imported.get(name)]
    return f"{changed} may have been read by an import" if changed else ""


def _environment(asked: dict[str, Any]) -> Mapping[str, str]:
    return os.environ if asked["env"] is None else asked["env"]


def _flags(words: list[str]) -> tuple[list[str], list[str]]:
    """The options of an interpreter for unbuffered streams and for no path of the program's own, and what follows."""
    count = next((place for place, word in enumerate(words) if word not in ("-u", "-P")), len(words))
    return words[:count], words[count:]


def _fork(process: Any, asked: dict[str, Any], server: _Server, own: dict[str, Any]) -> None:
    """Instead of fork and exec: asks the server."""
    piped = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
    kept = [int(file) for file in asked["pass_fds"]]
    request = own | {
        "arguments": [os.fspath(word) for word in asked["args"][1:]],
        "folder": os.fspath(asked["cwd"] or Path.cwd()),
        "environment": dict(_environment(asked)),
        "session": asked["start_new_session"],
        "kept": kept,
        "parent": os.getpid(),
    }
    files = [*(stream if file < 0 else file for file, stream in zip(piped, STREAMS, strict=True)), *kept]
    connection = server.connection
    try:
        _PRCTL(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        socket.send_fds(connection, [len(message := json.dumps(request).encode()).to_bytes(4, "big")], files)
        connection.sendall(message)
        process.pid = int.from_bytes(_receive(connection, 4), "big")
        # By then the fork is ours.
        _receive(connection, len(ORPHANED))
        process._child_created = True
    finally:
        _PRCTL(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        process._close_pipe_fds(*(asked[name] for name in _PIPES))


def _server_for(asked: dict[str, Any]) -> _Server:
    """The server of this process for what was asked."""
    return _server(PRELOADED if _environment(asked).get("PYTHONPATH", "") == PATH else LIBRARIES)


@functools.cache
def _server(modules: tuple[str, ...]) -> _Server:
    """The server of this process whose forks have imported `modules`. It ends with this process."""
    ours, theirs = socket.socketpair()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": PATH} if PATH else {}
    with theirs:
        _Started(
            [sys.executable, __file__, str(theirs.fileno()), *modules],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return _Server(ours, modules, environment)


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
        size, files, _, _ = socket.recv_fds(connection, 4, _MOST_FILES)
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
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, _FREE_NUMBERS) for file in files]
    for file in files:
        os.close(file)
    for number, file in zip((*STREAMS, *request["kept"]), moved, strict=True):
        os.dup2(file, number)
        os.close(file)
    for number in request["closed"]:
        os.close(number)
    sys.path[:] = ["", *_paths(os.environ.get("PYTHONPATH", "")), *_OWN_PATH]
    unbuffered = "-u" in _flags(request["arguments"])[0]
    opened = [None if number in request["closed"] else _stream(number, unbuffered) for number in STREAMS]
    # typeshed calls the dunder streams final; a process that starts has just set them.
    sys.stdin = sys.__stdin__ = opened[0]  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = opened[1]  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = opened[2]  # type: ignore[misc]
    # Of the environment that it was first asked in.
    tempfile.tempdir = None
    for module in ("random", "numpy.random"):
        import_module(module).seed()


def _stream(number: int, unbuffered: bool) -> io.TextIOWrapper:
    size = 0 if unbuffered and number else -1
    mode = "wb" if number else "rb"
    file = open(number, mode, size, closefd=False)  # noqa: SIM115 (for as long as the process lives)
    return io.TextIOWrapper(
        file,
        encoding="utf-8",
        errors="backslashreplace" if number == 2 else "strict",
        line_buffering=number == 2 or file.isatty(),
        write_through=unbuffered,
    )


def _execute(arguments: list[str]) -> None:
    sys.orig_argv = [sys.executable, *arguments]
    flags, (kind, *rest) = _flags(arguments)
    sys.path[0] = str(Path.cwd() if kind == "-m" else Path(kind).parent) if kind != "-c" else ""
    if "-P" in flags:
        del sys.path[0]
    if kind == "-m":
        sys.argv = rest
        # It was imported, and now runs a second time, as a program.
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning, "runpy")
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def _code_of(arguments: list[str]) -> int:
    """Runs a program and returns its exit code. What ends it is said as Python says it."""
    try:
        _execute(arguments)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return int(ended.code or 0)
        print(ended.code, file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 (as Python itself would end it; an interruption is left to Python)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Ends as Python does, but takes no modules apart: with all that is imported, that costs a third of a second."""
    # Python's own, for its end alone.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):
        # Python has words and a code for it.
        sys.exit(code)
    os._exit(code & 0xFF)


def _above_streams(end: socket.socket) -> socket.socket:
    """The same connection under a number that no stream has, for the program is to find closed streams closed."""
    with end:
        return socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FREE_NUMBERS))


def _serve_own_children(modules: tuple[str, ...]) -> dict[str, Any] | None:
    """Forks a server for what this process starts. Returns None here, and in its forks what they are to run.

    It is made before the program runs, for threads don't survive a fork.
    """
    ours, theirs = (_above_streams(end) for end in socket.socketpair())
    if os.fork():
        theirs.close()
        server = _Server(ours, modules, dict(os.environ))
        _fork_children(lambda _: server)
        return None
    ours.close()
    own_name = Path("/proc/self/comm").read_bytes().strip()
    _PRCTL(_SET_NAME, SERVER_NAME.encode(), 0, 0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in STREAMS:
        os.dup2(nothing, number)
    # They are for the process that it serves, with which it ends.
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in stopping}
    request = _serve(theirs)
    _PRCTL(_SET_NAME, own_name, 0, 0, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    return request


def main(connection: socket.socket, modules: tuple[str, ...]) -> None:
    """Imports `modules` and serves the process at the other end. In its forks, runs what that asked for."""
    for name in modules:
        import_module(name)
    # As in the tests' own process (conftest.py).
    # No test cuts the power, so nothing needs the disk; it still fails for a descriptor that isn't open.
    os.fsync = os.fstat  # type: ignore[assignment]
    # What is here when a process is forked stays: its collector need not copy the pages to look at it.
    gc.freeze()
    # Ctrl-C is for the tests; a fork has Python's own answer to it.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = _serve(connection)
    signal.signal(signal.SIGINT, interrupt)
    if request["forking"]:
        request = _serve_own_children(modules) or request
    _end(_code_of(request["arguments"]))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), tuple(sys.argv[2:]))
