"""The processes that train one run together (started by torchrun): whose part is what, and what they tell each other.

Every process goes through the same windows of the same order and takes its share of each micro-batch, so a
configuration means the same for any number of them: `batch_size` is what all of them hold together. The first one
alone touches the run's folder. A process that ends, or does not answer, ends the others with a line that says so.
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

from .. import UserError
from ..backends import rank_backend, rank_group

T = TypeVar("T")

_SET_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# Words in the errors of torch's collectives, which are plain RuntimeErrors: a closed socket, a wait that ended.
_LOST = ("gloo", "NCCL", "pair closure", "Timed out waiting")


class LostRankError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`, number `local_rank` on its machine. One alone exchanges nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes, logs and answers."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """This process's part of the range [start, stop): contiguous, sizes differ by one at most; it may be empty."""
        length = stop - start
        return start + self.rank * length // self.size, start + (self.rank + 1) * length // self.size

    def backend(self, name: str) -> str:
        """The backend `name` with the device that is this process's. Raises UserError where it has one device."""
        return name if self.size == 1 else rank_backend(name, self.local_rank)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of every process's `tensor`, the same bits in each; `tensor` itself is left as it is."""
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
        """What `make` returns in the first process, in all of them. Where it raises UserError the others just end."""
        if self.size == 1:
            return make()
        sent: list[Any] = [None, True]
        if self.first:
            try:
                sent = [make(), False]
            except UserError:
                distributed.broadcast_object_list(sent)
                raise
        distributed.broadcast_object_list(sent)
        value, failed = sent
        if failed:
            # The first process says what was wrong.
            raise SystemExit(2)
        return value

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, or around it torch's DistributedDataParallel, which averages gradients while backward goes on."""
        if self.size == 1:
            return model
        with warnings.catch_warnings():
            # torch 2.13 has two new words for broadcast_buffers, which older ones don't know.
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


ALONE = Ranks()


def launched() -> Ranks:
    """Which process this is, by torchrun's environment variables; `ALONE` without them. Raises UserError for half."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return ALONE
    missing = [name for name in _SET_BY_TORCHRUN if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size} and {', '.join(missing)} not set; start by torchrun --nproc-per-node N -m "
            "isotrain.cli train CONFIG, or unset WORLD_SIZE"
        )
    return Ranks(int(os.environ["RANK"]), int(size), int(os.environ["LOCAL_RANK"]))


def starter(ranks: Ranks) -> str:
    """How a command like this process's begins: "isotrain", or torchrun with as many processes on this machine."""
    if ranks.size == 1:
        return "isotrain"
    here = os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size))
    return f"torchrun --nproc-per-node {here} -m isotrain.cli"


@contextmanager
def joined(ranks: Ranks, backend_name: str, batch_size: int, timeout: int) -> Iterator[None]:
    """The processes' group inside, over what the backend communicates with; each waits `timeout` seconds for another.
    A group that the caller has made already is used and left as it is.

    Raises UserError for a backend that trains in one process or a `batch_size` that leaves some without a text, and
    LostRankError where another process is lost.
    """
    if ranks.size == 1:
        yield
        return
    group = rank_group(backend_name)
    if group is None:
        raise UserError(f"backend {backend_name!r} trains in one process; start isotrain train without torchrun")
    if batch_size < ranks.size:
        raise UserError(
            f"batch_size {batch_size} can't be shared by {ranks.size} processes; raise it, or start fewer of them"
        )
    ours = not distributed.is_initialized()
    try:
        if ours:
            distributed.init_process_group(group, timeout=timedelta(seconds=timeout))
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or any(word in str(error) for word in _LOST)):
            raise
        # Without the source file that gloo begins with, and the advice that it ends with.
        reason = str(error).split("] ")[-1].split(". ")[0]
        raise LostRankError(
            f"process {ranks.rank} of {ranks.size}: another process of this run ended, or was silent for {timeout} s "
            f"(process_timeout): {reason}; what was saved is kept: go on by --resume with the run's folder"
        ) from error
    else:
        if ours:
            distributed.destroy_process_group()


def accumulating(model: nn.Module) -> AbstractContextManager[Any]:
    """Held around backward where more micro-batches follow: gradients are then exchanged once an optimizer step."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


class StopVote:
    """Lets every process stop after the same step, whichever of them a signal reached first.

    What each was told by a step is exchanged while the next one runs, so nobody waits for it: a stop comes one step
    after the signal.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._previous: tuple[torch.Tensor, Any] | None = None

    def agreed(self, requested: bool) -> bool:
        """Whether to stop now; every process calls it after every step."""
        if self._ranks.size == 1:
            return requested
        stop = self._answer()
        told = torch.tensor([int(requested)])
        self._previous = told, distributed.all_reduce(told, distributed.ReduceOp.MAX, async_op=True)
        return stop

    def close(self) -> None:
        """Waits for what is under way; to be called when the last step is done."""
        self._answer()

    def _answer(self) -> bool:
        if self._previous is None:
            return False
        told, work = self._previous
        self._previous = None
        work.wait()
        return bool(told.item())
