"""A model of a device: the host computes with a dtype's rounding and no other error.

`isotrain parity` measures an arithmetic's error budget with it, so that a device is judged by the dtype it claims.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from .. import UserError
from .base import Backend, Generator
from .cpu import CpuBackend
from .traits import IDEAL
from .types import EIGHT_BIT, Availability, CastPolicy, DeviceInfo, EnergyUse, eight_bit_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..kernels.ideal import RandomRounding
    from ..kernels.weights import EncoderWeights
    from .protocols import FrozenEncoder, HeadStep


T = TypeVar("T")


class IdealBackend(CpuBackend):
    """The host with `kernels.ideal` as its encoder. "ideal:2" uses seed 2 for its random rounding.

    Heads and whole models train by plain autograd, with each linear layer's result rounded at random. In a user's own
    module every operation's is, inside `rounding`.
    """

    name = "ideal"
    traits = IDEAL

    def __init__(self, index: int | None = None) -> None:
        Backend.__init__(self, index)
        self._rounding = torch.Generator().manual_seed(self.index or 0)

    @classmethod
    def probe(cls) -> Availability:
        return Availability(True, "a model on this host: a dtype's rounding and no other error; for parity")

    def info(self) -> DeviceInfo:
        host = super().info()
        return replace(host, backend=self.name, name=f"ideal arithmetic on {host.name}")

    def energy(self) -> EnergyUse:
        return EnergyUse(None, "unavailable: a model of arithmetic uses none")

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        """Without `strict`, the policy of a device without narrow units: weights are rounded, products in float32."""
        if dtype not in IDEAL.dtypes:
            raise UserError(f"dtype {dtype!r} has no ideal; allowed are {', '.join(IDEAL.dtypes)}")
        if dtype in EIGHT_BIT:
            return eight_bit_policy(dtype, ", a model")
        wide = "float64" if dtype == "float64" else "float32"
        if strict or dtype == wide:
            return CastPolicy(dtype, dtype, dtype, wide, f"a model: {dtype} operands and results, {wide} sums")
        return CastPolicy(dtype, dtype, wide, wide, f"a model: weights rounded to {dtype}, products in {wide}")

    def generators(self) -> dict[str, Generator]:
        return {**super().generators(), self.name: (self._rounding.get_state, self._rounding.set_state)}

    def place(self, value: T) -> T:
        """As on the host, but a module's linear layers round their results at random from now on."""
        placed = super().place(value)
        if isinstance(placed, nn.Module):
            from ..kernels.ideal import round_linears

            round_linears(placed, self._rounding)
        return placed

    def rounding(self) -> RandomRounding:
        from ..kernels.ideal import RandomRounding

        return RandomRounding(self._rounding)

    def head_step(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> HeadStep | None:
        """None, since the model uses plain autograd."""
        del parameters, optimizer
        return None

    def measured_unit_tflops(self, dtype: str) -> None:
        """None, since a model has no speed."""
        del dtype

    def kernels(self) -> dict[str, Availability]:
        return {"ideal": Availability(True, "random rounding")}

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        from ..kernels.ideal import IdealEncoder

        del kernel
        return IdealEncoder(weights, getattr(torch, policy.param), policy.compute, self.index or 0)
