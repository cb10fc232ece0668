"""The processes that train one run together (started by torchrun): how they share the work and communicate.

Every process iterates over the same windows in the same order and computes its share of each micro-batch. `batch_size`
counts the samples of all processes, so a configuration means the same for any number of them. Only the first process
writes to the run's folder. If a process ends or does not answer, the others end with a message that says so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from ... import RunError, UserError
from ...backends import backend_traits, rank_backend
from ..terminal.invocation import program
from ..terminal.text import quoted
from .meeting import meet, reason
from .sharding import unsynchronized

T = TypeVar("T")

_SET_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_ADVICE = "start by torchrun --nproc-per-node N -m isotrain.cli train CONFIG, or unset WORLD_SIZE"

# Words in the errors of torch's collectives, which are plain RuntimeErrors: a closed socket, a timeout.
_LOST = ("gloo", "NCCL", "pair closure", "Timed out waiting")


class LostRankError(RunError):
    """Another process of the run ended, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`, with number `local_rank` on its machine. A single process exchanges nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and prints."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """This process's part of the range [start, stop): contiguous, maybe empty. Sizes differ by at most one."""
        length = stop - start
        return start + self.rank * length // self.size, start + (self.rank + 1) * length // self.size

    def backend(self, name: str) -> str:
        """The backend `name` with this process's device. Raises UserError if the backend has only one device."""
        return name if self.size == 1 else rank_backend(name, self.local_rank)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all processes, with the same bits in each. `tensor` is not changed."""
        if self.size == 1:
            return tensor
        summed = tensor.detach().clone()
        distributed.all_reduce(summed)
        return summed

    def gather(self, value: T) -> list[T]:
        """Every process's `value` (anything that can be pickled), by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in all processes. If it raises an error, the others just end."""
        if self.size == 1:
            return make()
        sent: list[Any] = [None, 0]
        if self.first:
            try:
                sent[0] = make()
            except (UserError, RunError) as error:
                sent[1] = 2 if isinstance(error, UserError) else 1
                distributed.broadcast_object_list(sent)
                raise
        distributed.broadcast_object_list(sent)
        value, code = sent
        if code:
            # The first process reports the error.
            raise SystemExit(code)
        return value

    def parallel(self, model: nn.Module, *, unused: bool = False) -> nn.Module:
        """`model`, in torch's DistributedDataParallel if there are several processes. It averages gradients in
        backward.

        Args:
            unused: Whether the loss may not depend on some of its parameters.
        """
        if self.size == 1:
            return model
        with warnings.catch_warnings():
            # torch 2.13 has two new arguments instead of broadcast_buffers. Older versions don't know them.
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=unused)


ALONE = Ranks()


def launched() -> Ranks:
    """This process's ranks according to torchrun's environment variables, or `ALONE` without them.

    Raises:
        UserError: Only some are set, or a value is invalid.
    """
    if "WORLD_SIZE" not in os.environ:
        if os.environ.get("RANK", "0") != "0":
            raise UserError(f"RANK is {quoted(os.environ['RANK'])} and WORLD_SIZE is not set; {_ADVICE}")
        return ALONE
    size = _number("WORLD_SIZE", 1, None)
    if size == 1:
        return ALONE
    missing = [name for name in _SET_BY_TORCHRUN if not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE is {size} and {', '.join(missing)} not set; {_ADVICE}")
    _number("MASTER_PORT", 1, 65535)
    return Ranks(_number("RANK", 0, size - 1), size, _number("LOCAL_RANK", 0, size - 1))


def _number(name: str, least: int, most: int | None) -> int:
    """The environment variable `name` as a whole number from `least` to `most`. Raises UserError."""
    text = os.environ[name]
    allowed = f"from {least} to {most}" if most is not None else f"from {least}"
    if most is not None and name != "MASTER_PORT":
        allowed += " (below WORLD_SIZE)"
    if not (text.isascii() and text.isdecimal() and least <= int(text[:20]) <= (most or 10**6)):
        raise UserError(f"{name} is {quoted(text)}, allowed are whole numbers {allowed}; {_ADVICE}")
    return int(text)


def starter(ranks: Ranks) -> str:
    """The beginning of a command for this kind of run: isotrain, or torchrun with as many processes on this machine."""
    if ranks.size == 1:
        return program()
    here = os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size))
    return f"torchrun --nproc-per-node {here} -m isotrain.cli"


@contextmanager
def joined(ranks: Ranks, backend_name: str, shared: tuple[str, int], timeout: int) -> Iterator[None]:
    """Forms the process group for the block, by the backend's way to communicate. Each process waits `timeout` seconds.

    A group that already exists is used and kept.

    Raises:
        UserError: The backend trains in one process, or some processes would have nothing to do.
        RunError: The group can't be formed.
        LostRankError: Another process is lost (see `watching`).
    """
    if ranks.size == 1:
        yield
        return
    group = backend_traits(backend_name).process_group
    if group is None:
        raise UserError(f"backend {backend_name!r} trains in one process; start isotrain train without torchrun")
    key, parts = shared
    if parts < ranks.size:
        raise UserError(f"{key} {parts} can't be shared by {ranks.size} processes; raise it, or start fewer of them")
    ours = not distributed.is_initialized()
    if ours:
        _form(ranks, group, timeout)
    with watching(ranks, timeout, "the run had not begun: start it again"):
        yield
    if ours:
        distributed.destroy_process_group()


def _form(ranks: Ranks, group: str, timeout: int) -> None:
    """Creates the group `group` ("gloo", "cpu:gloo,cuda:nccl") of all processes. Raises RunError if that fails."""
    store = meet(ranks.rank, ranks.size, timeout)
    try:
        distributed.init_process_group(
            group, store=store, rank=ranks.rank, world_size=ranks.size, timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError) as error:
        names = [f"{part.rpartition(':')[2].upper()}_SOCKET_IFNAME" for part in group.split(",")]
        variables = f"{names[0]} names" if len(names) == 1 else f"{' and '.join(names)} name"
        raise RunError(
            f"process {ranks.rank} of {ranks.size} met the others and can't exchange data with them over {group} "
            f"({reason(error)}); {variables} the network interface to use"
        ) from error


@contextmanager
def watching(ranks: Ranks, timeout: int, advice: str) -> Iterator[None]:
    """Turns the error of a collective, when another process is lost, into one clear line that ends with `advice`.

    Raises:
        LostRankError: Another process ended, or was silent for `timeout` seconds.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or any(word in str(error) for word in _LOST)
        if ranks.size == 1 or isinstance(error, RunError) or not lost:
            raise
        raise LostRankError(
            f"process {ranks.rank} of {ranks.size}: another process of this run ended, or was silent for {timeout} s "
            f"(process_timeout): {reason(error)}; {advice}"
        ) from error


def accumulating(model: nn.Module) -> AbstractContextManager[Any]:
    """For backward of all but the last micro-batch, so that gradients are exchanged once per optimizer step."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return unsynchronized(model) if hasattr(model, "set_requires_gradient_sync") else nullcontext()


class StopVote:
    """Lets every process stop after the same step, whichever of them received a signal first.

    The votes of a step are exchanged while the next one runs, so no process waits for them. A stop comes one step after
    the signal.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._previous: tuple[torch.Tensor, Any] | None = None

    def agreed(self, requested: bool) -> bool:
        """Whether to stop now. Every process calls it after every step."""
        if self._ranks.size == 1:
            return requested
        stop = self._answer()
        vote = torch.tensor([int(requested)])
        self._previous = vote, distributed.all_reduce(vote, distributed.ReduceOp.MAX, async_op=True)
        return stop

    def close(self) -> None:
        """Waits for a pending exchange, after the last step."""
        self._answer()

    def _answer(self) -> bool:
        if self._previous is None:
            return False
        vote, work = self._previous
        self._previous = None
        work.wait()
        return bool(vote.item())
