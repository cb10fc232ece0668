"""One check of the conformance suite: what it runs, and what it can find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from ..backends import DTYPES, Backend, CastPolicy
from ..benchmarks.outcome.conformance import Rate

Mode = Literal["test", "grad", "perf"]


@dataclass(frozen=True)
class Passed:
    """The device holds the clause.

    Attributes:
        share: The largest error as a share of its budget, 0 to 1; None if the check has no error.
        detail: What was measured, in a few words with units.
        lacks: What wasn't checked, and why.
        rate: What a check that times something measured.
    """

    share: float | None = None
    detail: str = ""
    lacks: str = ""
    rate: Rate | None = None


class ViolationError(Exception):
    """The device breaks the clause. The message says what was seen and what was expected.

    Args:
        share: The error as a share of its budget, above 1; None if the check has no error.
    """

    def __init__(self, message: str, share: float | None = None) -> None:
        super().__init__(message)
        self.share = share


def require(holds: bool, otherwise: str) -> None:
    """Raises a ViolationError with the message `otherwise` unless the clause holds."""
    if not holds:
        raise ViolationError(otherwise)


class UnsupportedError(Exception):
    """The device doesn't claim what the check is about. The message says what it lacks."""


@contextmanager
def implemented(name: str) -> Iterator[None]:
    """Runs what needs the operator `name`.

    Raises:
        UnsupportedError: The device says that it doesn't have it: torch by NotImplementedError, torch_tpu by its base
            class.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, NotImplementedError) and "not implemented" not in str(error):
            raise
        raise UnsupportedError(f"{name}: {' '.join(str(error).split())[:200] or 'not implemented'}") from error


@dataclass(frozen=True)
class Device:
    """An opened backend under test, the seed of what it is tested with, and the name that opened it."""

    backend: Backend
    seed: int = 0
    registered: str = ""

    def generator(self) -> torch.Generator:
        """A generator on the host, the same for every device."""
        return torch.Generator().manual_seed(self.seed)

    def policy(self, dtype: str) -> CastPolicy:
        """What `dtype` means on the device; see `Backend.cast_policy`.

        Raises:
            UnsupportedError: The device doesn't have it.
        """
        from .. import UserError

        try:
            return self.backend.cast_policy(dtype)
        except UserError as error:
            raise UnsupportedError(str(error)) from error

    def claims(self, dtype: str) -> bool:
        """Whether the device has `dtype`."""
        try:
            self.policy(dtype)
        except UnsupportedError:
            return False
        return True

    def policies(self) -> list[CastPolicy]:
        """The policies of all dtypes that the device has, in the order of DTYPES.

        Raises:
            UnsupportedError: It has none.
        """
        found, refusals = [], []
        for dtype in DTYPES:
            try:
                found.append(self.policy(dtype))
            except UnsupportedError as error:
                refusals.append(error)
        if not found:
            raise refusals[0]
        return found

    def read(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The values of `tensors` on the host, as training reads them: the step ends, then the fence, then a copy."""
        self.backend.step_boundary()
        self.backend.synchronize(*tensors)
        return [tensor.detach().cpu() for tensor in tensors]


@dataclass(frozen=True)
class Case:
    """One check. Cases are listed without opening a device.

    Attributes:
        group: The room that it is from: "device", "operations", "encoder", "training" or "rates".
        subject: What it is about, "linear" or "prefetch".
        dtype: One of DTYPES, or "" if no dtype matters.
        clause: What a device must do, in one sentence.
        run: Returns `Passed`, or raises `ViolationError` or `UnsupportedError`. Any other exception is a violation.
        time_limit: Seconds after which the device counts as hanging.
    """

    group: str
    subject: str
    clause: str
    run: Callable[[Device], Passed]
    dtype: str = ""
    mode: Mode = "test"
    time_limit: float = 60.0

    @property
    def name(self) -> str:
        """Unique among all cases, and what --only matches: "operations/linear/bfloat16/grad"."""
        parts = [self.group, self.subject, self.dtype, "" if self.mode == "test" else self.mode]
        return "/".join(part for part in parts if part)


class Checks:
    """The cases of a group. Each is declared above its function: ``@check("memory", "memory() grows by ...")``."""

    def __init__(self, group: str, time_limit: float = 60.0) -> None:
        self.group, self.time_limit = group, time_limit
        self.cases: list[Case] = []

    def __call__(
        self, subject: str, clause: str, dtypes: Sequence[str] = ("",), time_limit: float | None = None
    ) -> Callable[[Callable[..., Passed]], Callable[..., Passed]]:
        """Declares a case, or one for each of `dtypes`, which the function takes as its argument `dtype`."""

        def declare(run: Callable[..., Passed]) -> Callable[..., Passed]:
            for dtype in dtypes:
                chosen = partial(run, dtype=dtype) if dtype else run
                limit = time_limit or self.time_limit
                self.cases.append(Case(self.group, subject, clause, chosen, dtype, time_limit=limit))
            return run

        return declare
