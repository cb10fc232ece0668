"""The numerics of a Tenstorrent card, emulated on the host: the same configuration and losses, never its speed."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ... import UserError
from ..cpu import CpuBackend
from ..error_budget import ErrorBudget
from ..traits import TT_EMULATED
from ..types import Availability, CastPolicy, DeviceInfo, EnergyUse, unsupported_dtype
from .options import TtOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...kernels.tt.arithmetic import Arithmetic
    from ...kernels.weights import EncoderWeights
    from ..protocols import FrozenEncoder, HeadStep

T = TypeVar("T")

log = logging.getLogger("isotrain")


class TtEmulated(CpuBackend):
    """A card's arithmetic, computed by the host: in the frozen encoder, and forward and backward in what is trained.

    Heads have float32 tensors, of which only products are computed with less precision. The loss and the optimizer are
    float32 on the host, since tt-xla has float32 tensors there. `optimizer_dtype` bfloat16 rounds parameters and
    optimizer state after every step.
    """

    name = "tt-emulated"
    traits = TT_EMULATED
    Options = TtOptions

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        if index not in (None, 0):
            raise UserError(f"backend '{self.name}:{index}': the emulation is one device; write {self.name}")
        super().__init__(index, options or TtOptions())
        if self.options.device == "hardware":
            raise UserError("backend tt-emulated and tt.device: hardware contradict each other; keep one of them")

    @classmethod
    def probe(cls) -> Availability:
        from ...kernels.tt.native import engines

        return Availability(True, f"emulation on this host, exact arithmetic by {engines()[0]}; no card is used")

    def info(self) -> DeviceInfo:
        host = super().info()
        return replace(
            host,
            backend=self.name,
            name=f"{self.options.arch} emulated on {host.name}",
            features=(*host.features, self._mode()),
            emulated=True,
        )

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        del strict  # No dtype is replaced by another here.
        if dtype not in ("float32", "bfloat16"):
            raise unsupported_dtype(dtype, self.name, "float32", "bfloat16")
        mode = self._mode()
        reason = f"emulated, no card is used: frozen weights and activations in the card's formats, products at {mode}"
        distance = self.options.largest_distance(frozen=True)
        return CastPolicy(dtype, "bfloat16", "bfloat16", "float32", reason, f"{self.name} {mode}", distance)

    def whole_model_policy(self, policy: CastPolicy) -> CastPolicy:
        mode = f"{self.options.products}, {self.options.emulated(frozen=False)}"
        reason = f"emulated, no card is used: products at {mode}"
        distance = self.options.largest_distance(frozen=False)
        return replace(policy, reason=reason, mode=f"{self.name} {mode}", largest_distance=distance)

    def error_budget(self, policy: CastPolicy) -> ErrorBudget:
        return error_budget(self.options, policy)

    def place(self, value: T) -> T:
        """As on the host, but a module's linear layers use the card's arithmetic from now on."""
        placed = super().place(value)
        if isinstance(placed, nn.Module):
            from ...kernels.tt.modules import emulate_modules

            emulate_modules(placed, self._arithmetic(torch.float32), self.options.in_float32(frozen=False))
        return placed

    def on_host(self, module: nn.Module) -> nn.Module:
        from ...kernels.tt.modules import plain_modules

        return plain_modules(super().on_host(module))

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self.options.optimizer_dtype == "bfloat16":
            optimizer.register_step_post_hook(_round_to_bfloat16)

    def head_step(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> HeadStep | None:
        """None, since the host's fused step computes in float32."""
        del parameters, optimizer
        return None

    def measured_unit_tflops(self, dtype: str) -> None:
        """None, since the host's matrix unit says nothing about a card's."""
        del dtype

    def energy(self) -> EnergyUse:
        return EnergyUse(None, "unavailable: no card is used, and the host's energy says nothing about one's")

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        """The card's bfloat16 tensors and their operations, if all are emulated.

        Else it does nothing: linear layers read from float32 tensors what the matrix unit would read.
        """
        del policy
        if not self.options.whole(frozen=False):
            return nullcontext()
        from ...kernels.tt.modules import EmulatedOperations, active

        if active() is not None:
            # Inside of it already: a layer that gradient checkpointing computes again.
            return nullcontext()
        return EmulatedOperations(self._arithmetic(torch.float32), self.options.in_float32(frozen=False))

    def unknown_operations(self, run: Callable[[], object]) -> list[str]:
        from ...kernels.tt.modules import UnknownOperations

        with UnknownOperations(self._arithmetic(torch.float32)) as seen:
            run()
        return list(seen.names)

    def kernels(self) -> dict[str, Availability]:
        return {"emulated": Availability(True, f"{self.options.emulation} TT arithmetic")}

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        from ...kernels.tt.encoder import TtEncoder

        del policy, kernel
        gemm = getattr(torch, super().cast_policy("bfloat16").compute)
        options = self.options
        return TtEncoder(weights, self._arithmetic(gemm), options.weight_dtype, float32=options.in_float32(frozen=True))

    def _arithmetic(self, gemm_dtype: torch.dtype) -> Arithmetic:
        from ...kernels.tt.arithmetic import Arithmetic

        return Arithmetic(
            arch=self.options.arch,
            math_fidelity=self.options.math_fidelity,
            fp32_dest_acc_en=self.options.fp32_dest_acc_en,
            mode=self.options.emulation,
            gemm_dtype=gemm_dtype,
        )

    def _mode(self) -> str:
        options = self.options
        return f"{options.products}, frozen weights {options.weight_dtype}, {options.emulated(frozen=True)}"


def error_budget(options: TtOptions, policy: CastPolicy, all_operations: bool = False) -> ErrorBudget:
    """The fast emulation, since the backend "ideal" has no block formats and math fidelities.

    Args:
        options: Those of the card or the emulation.
        policy: What is computed.
        all_operations: Whether all operations are the card's whatever the options say, as on a card.
    """
    changed: dict[str, Any] = {"device": "emulated", "emulation": "fast"}
    if all_operations or options.whole(frozen=False):
        changed["emulate"] = "all"
    chosen = options.model_copy(update=changed).model_dump(exclude_defaults=True)
    return ErrorBudget("tt-emulated", policy.requested, chosen, draws=False)


@torch.no_grad()
def _round_to_bfloat16(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Rounds the values to what a bfloat16 optimizer would hold. The tensors stay float32."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            held = [value for name, value in optimizer.state[parameter].items() if name != "step"]
            for tensor in (parameter, *held):
                if isinstance(tensor, torch.Tensor):
                    tensor.copy_(tensor.to(torch.bfloat16))
