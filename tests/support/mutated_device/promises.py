"""Devices that describe themselves wrongly, or answer wrong requests with no error or an unclear one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from isotrain import UserError
from isotrain.backends import DTYPES, EIGHT_BIT, Availability, CastPolicy, DeviceInfo
from isotrain.backends.host.choices import Chosen
from pydantic import BaseModel, ConfigDict

from .base import Compiling, Mutant

KNOWN = (*DTYPES, *EIGHT_BIT)


class OtherName(Mutant):
    """info() is copied from another backend."""

    CLAUSE = ("info",)

    def info(self) -> DeviceInfo:
        return replace(super().info(), backend="cpu")


class HiddenEmulation(Mutant):
    """An emulation whose info() says that it is a device."""

    CLAUSE = ("info",)
    traits = replace(Mutant.traits, emulated=True)


class UnknownExperience(Mutant):
    """An untested backend whose results don't say it."""

    CLAUSE = ("info",)
    traits = replace(Mutant.traits, untested=True)


class NoVersions(Mutant):
    """A device without a dictionary of versions, which no result can have."""

    CLAUSE = ("info",)

    def info(self) -> DeviceInfo:
        return replace(super().info(), versions=cast(Any, None))


class LostChoices(Mutant):
    """What it chose before can't be read any more."""

    CLAUSE = ("info",)

    def choices(self, *, kept: bool = False) -> list[Chosen]:
        raise KeyError("choices")


class HiddenDtype(Mutant):
    """A device that has a dtype which its traits don't name."""

    CLAUSE = ("traits",)
    traits = replace(Mutant.traits, dtypes=("float32", "float64"))


class UnknownLayout(Mutant):
    """Traits with a layout that nobody makes."""

    CLAUSE = ("traits",)
    traits = replace(Mutant.traits, layouts=("padded", "ragged"))


class OtherKernels(Mutant):
    """Traits that name a kernel which kernels() doesn't have."""

    CLAUSE = ("traits",)
    traits = replace(Mutant.traits, kernels=("fast", "portable"))


class PackedGrid(Compiling):
    """A device with a grid of shapes that accepts packed batches, each of another shape."""

    CLAUSE = ("traits",)
    traits = replace(Mutant.traits, layouts=("padded", "bucketed", "packed"))


class WideCompute(Mutant):
    """A policy with sums narrower than products."""

    CLAUSE = ("cast-policy",)

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        policy = super().cast_policy(dtype, strict=strict)
        return replace(policy, compute="float32", accumulate="bfloat16") if dtype == "bfloat16" else policy


class MislabelledPolicy(Mutant):
    """A policy that hides which dtype was requested."""

    CLAUSE = ("cast-policy",)

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        return replace(super().cast_policy(dtype, strict=strict), requested="float32")


class NoKernel(Mutant):
    """No kernel can run."""

    CLAUSE = ("kernels",)

    def kernels(self) -> dict[str, Availability]:
        return {name: Availability(False, "none today") for name in super().kernels()}


class AnyDtype(Mutant):
    """Unknown dtypes are float32."""

    CLAUSE = ("unknown-dtype",)

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        known = dtype if dtype in KNOWN else "float32"
        return super().cast_policy(known, strict=strict)


class KeyErrorDtype(Mutant):
    """Unknown dtypes raise a KeyError."""

    CLAUSE = ("unknown-dtype",)

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype not in KNOWN:
            raise KeyError(dtype)
        return super().cast_policy(dtype, strict=strict)


class AnyKernel(Mutant):
    """Unknown kernels are the portable one."""

    CLAUSE = ("unknown-kernel",)

    def frozen_encoder(self, weights: Any, policy: CastPolicy, kernel: str = "auto") -> Any:
        return super().frozen_encoder(weights, policy, kernel if kernel in self.kernels() else "auto")


class BareIndexError(Mutant):
    """A device number that doesn't exist raises an IndexError."""

    CLAUSE = ("unknown-index",)

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__([None][index or 0], options)


class Pair(Mutant):
    """A right backend with two devices, which torch doesn't number."""

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        if index is not None and index > 1:
            raise UserError(f"device {index}: there are 2 devices; use 0 or 1")
        super().__init__(None, options)
        self.index = index

    def info(self) -> DeviceInfo:
        return replace(super().info(), name=f"core {self.index or 0}")


class OneTooMany(Pair):
    """The number of devices is accepted as one of their numbers, and the first one is opened."""

    CLAUSE = ("unknown-index",)

    def info(self) -> DeviceInfo:
        return Mutant.info(self)


class NotThere(Pair):
    """The number of devices is accepted as one of their numbers, and nothing is opened."""

    CLAUSE = ("unknown-index",)

    @property
    def device(self) -> torch.device:
        return torch.device("meta", 1) if self.index else torch.device("cpu")


class LowestBit(Mutant):
    """Of a number, only the lowest bit is looked at."""

    CLAUSE = ("unknown-index",)

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(None if index is None else index & 1, options)


class LooseOptions(Mutant):
    """Misspelt options are ignored."""

    CLAUSE = ("unknown-option",)

    class Options(BaseModel):
        precision: str = "high"


class StrictOptions(Mutant):
    """A right device with options."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")

        precision: str = "high"


class KeyErrorState(Mutant):
    """A missing generator raises a KeyError."""

    CLAUSE = ("missing-generator",)

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
