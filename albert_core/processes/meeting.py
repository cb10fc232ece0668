"""How the processes of one run find each other: through a store at an address, under a name that is new each time.

torchrun keeps its store when it restarts processes, including everything that the dead ones wrote. Nothing that may be
old is therefore read. Each process takes a number that no other has had, and the first process answers every number
with the name of this meeting. A count of restarts would not work, because torchrun counts them per machine.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import time
from collections.abc import Iterable
from datetime import timedelta
from queue import Empty, Queue
from threading import Thread

from torch.distributed import PrefixStore, Store, TCPStore

from ... import RunError

# Seconds between two reads of the store or attempts at the address.
_PAUSE = 0.1
# A name that can't be resolved is tried again for this long, or for a quarter of the whole limit if that is shorter.
_NAME_SECONDS = 10.0


def meet(rank: int, size: int, timeout: int) -> Store:
    """Waits until all processes are there.

    Args:
        rank: This process's number.
        size: The number of processes.
        timeout: Seconds to wait for the address and for the others.

    Returns:
        A store that they share and that nobody has used before.

    Raises:
        RunError: The address can't be reached or used, or a process did not come. The message says which.
    """
    address = _Address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, size)
    deadline = time.monotonic() + timeout
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not of_torchrun
    listener = address.listen() if serves else None
    if listener is None:
        address.reach(deadline, timeout, retry=not of_torchrun)
    try:
        store = _open(address, listener, deadline, timeout)
        if rank == 0:
            name = _gather(store, address, deadline, timeout)
        else:
            name = _come(store, address, deadline, timeout, is_new=not of_torchrun)
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"{address} answered and then broke off ({reason(error)}); another program may use this port, or process "
            f"0 has ended; {address.advice}"
        ) from error
    return PrefixStore(name, store)


def reason(error: BaseException) -> str:
    """The message of torch or gloo without the source file at its beginning and the advice and stack at its end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split("] ")[-1].split(". ")[0].strip()


class _Address:
    """The meeting address, from MASTER_ADDR and MASTER_PORT. `str` is the beginning of a message."""

    def __init__(self, host: str, port: int, rank: int, size: int) -> None:
        self.host, self.port, self.rank, self.size = host, port, rank, size
        self.advice = f"check that all {size} processes were started, with the same MASTER_ADDR and MASTER_PORT"

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}: {self.host}:{self.port} (MASTER_ADDR, MASTER_PORT)"

    def listen(self) -> socket.socket:
        """A socket that accepts connections at the port. Raises RunError if that is refused."""
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", self.port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", self.port))
        except OSError as error:
            raise RunError(
                f"{self} can't be listened at ({_words(error)}); another run may use this port: choose another "
                "MASTER_PORT, or start by torchrun --standalone, which finds a free one"
            ) from error

    def reach(self, deadline: float, timeout: int, *, retry: bool) -> None:
        """Waits until something listens there. With `retry`, it may not listen yet. Raises RunError at the deadline."""
        resolved_by = time.monotonic() + min(_NAME_SECONDS, timeout / 4)
        while True:
            now = time.monotonic()
            try:
                socket.create_connection((self.host, self.port), timeout=max(_PAUSE, min(5, deadline - now))).close()
            except (socket.gaierror, UnicodeError) as error:
                if now > resolved_by:
                    raise RunError(f"{self}: the name can't be resolved ({_words(error)}); {self.advice}") from error
            except OSError as error:
                if not retry and isinstance(error, ConnectionRefusedError):
                    raise RunError(
                        f"{self} is torchrun's and refuses ({_words(error)}): torchrun has ended, or the name means "
                        "another machine here"
                    ) from error
                if now > deadline:
                    raise RunError(
                        f"{self} was not reached within {timeout} s (process_timeout): {_words(error)}; {self.advice}"
                    ) from error
            else:
                return
            time.sleep(_PAUSE)


def _open(address: _Address, listener: socket.socket | None, deadline: float, timeout: int) -> TCPStore:
    """The store at the address, served by this process if there is a `listener`.

    Opened in a thread, because torch waits forever and ignores signals if what listens there is no store.
    """
    opened: Queue[TCPStore | RuntimeError] = Queue()
    descriptor = None if listener is None else listener.detach()

    def connect() -> None:
        limit = timedelta(seconds=timeout)
        try:
            store = TCPStore(
                address.host,
                address.port,
                is_master=descriptor is not None,
                timeout=limit,
                wait_for_workers=False,
                master_listen_fd=descriptor,
            )
        except RuntimeError as error:
            opened.put(error)
        else:
            opened.put(store)

    Thread(target=connect, daemon=True).start()
    try:
        store = opened.get(timeout=max(5.0, deadline - time.monotonic()))
    except Empty as error:
        raise RunError(
            f"{address} answers, but not as torch's store does; another program may use this port; {address.advice}"
        ) from error
    if isinstance(store, RuntimeError):
        raise store
    return store


def _gather(store: TCPStore, address: _Address, deadline: float, timeout: int) -> str:
    """The first process's side. Answers every number until all processes have confirmed. Returns the meeting's name."""
    name, answered = secrets.token_hex(8), 0
    missing = list(range(1, address.size))
    while missing:
        taken = store.add("numbers", 0)
        for number in range(answered + 1, taken + 1):
            store.set(f"answer/{number}", name)
        answered = taken
        missing = [rank for rank in missing if not store.check([f"{name}/came/{rank}"])]
        if missing and time.monotonic() > deadline:
            text = _did_not_come(missing, address, timeout)
            store.set(f"{name}/failed", text)
            # Time for the others to read it before the store ends with this process.
            time.sleep(5 * _PAUSE)
            raise RunError(f"{address}: {text}")
        time.sleep(_PAUSE / 2)
    store.set(f"{name}/formed", name)
    store.set("formed", name)
    return name


def _come(store: TCPStore, address: _Address, deadline: float, timeout: int, *, is_new: bool) -> str:
    """The side of the other processes. If the store `is_new`, it also shows whether this process is too late."""
    number = store.add("numbers", 1)
    answer, late = f"answer/{number}", ["formed"] if is_new else []
    if _wait(store, [answer, *late], address, deadline, timeout) == "formed":
        raise RunError(
            f"{address} is in use by processes that have met already; another run may use this port, or this process "
            f"was started twice; {address.advice}"
        )
    name = store.get(answer).decode()
    if store.add(f"{name}/came/{address.rank}", 1) > 1:
        raise RunError(f"{address}: another process came as number {address.rank}, too; give each a RANK of its own")
    formed, failed = f"{name}/formed", f"{name}/failed"
    if _wait(store, [formed, failed], address, deadline, timeout) == failed:
        raise RunError(f"{address}: {store.get(failed).decode()}")
    return name


def _wait(store: TCPStore, keys: Iterable[str], address: _Address, deadline: float, timeout: int) -> str:
    """The first of `keys` to appear in the store. It polls, so that a signal can interrupt it."""
    while True:
        for key in keys:
            if store.check([key]):
                return key
        # Process 0 ends first if others are missing, and says which.
        if time.monotonic() > deadline + 10 * _PAUSE:
            raise RunError(f"{address}: {_did_not_come([0], address, timeout)}")
        time.sleep(_PAUSE)


def _did_not_come(missing: Iterable[int], address: _Address, timeout: int) -> str:
    which = ", ".join(str(rank) for rank in missing)
    return f"process {which} did not come within {timeout} s (process_timeout); {address.advice}"


def _words(error: OSError | UnicodeError) -> str:
    """The system's reason without the address that Python sometimes adds. Errors of names have their own numbering."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno in errno.errorcode and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno or 0)
    return error.strerror or str(error)
