"""What a card computes, whatever drives it: dtypes, shapes, the encoder's program, and its options for the compiler."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from ... import UserError
from ..base import Backend
from ..types import CastPolicy, DeviceInfo, ShapeGrid, unsupported_dtype
from ..xla import DEVICE_BATCH_TOKENS, StaticEncoder
from .options import TtOptions

if TYPE_CHECKING:
    import torch

    from ...kernels.packed import PackedBatch, PaddedBatch
    from ...kernels.weights import EncoderWeights
    from ..error_budget import ErrorBudget
    from ..protocols import FrozenEncoder

# Multiples of the card's 32 x 32 tiles. They are few, since its compiler takes minutes per program.
LENGTHS = (32, 64, 128, 256, 512)


class Card(Backend):
    """One Tenstorrent card. The options may put frozen weights into a block format."""

    Options = TtOptions

    @abstractmethod
    def arch(self) -> str:
        """The card's architecture as its plugin names it, or an empty string."""

    @abstractmethod
    def one_program(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`function`, compiled as a whole."""

    @abstractmethod
    def frozen_weights(self) -> AbstractContextManager[None]:
        """Compiles what is traced inside as a separate program, with the frozen weights' block format."""

    def compiler_options(self, weight_dtype: str) -> dict[str, str | int | bool]:
        """The options of the vendor's compiler. A `weight_dtype` of "" leaves weights in their own dtype."""
        return {
            "optimization_level": self.options.optimization_level,
            "math_fidelity": self.options.math_fidelity,
            "fp32_dest_acc_en": self.options.fp32_dest_acc_en,
            "enable_const_eval": False,
            "experimental_weight_dtype": weight_dtype,
        }

    def check_options(self) -> None:
        """Raises UserError if the options ask for another card, or for none."""
        if self.options.device == "emulated":
            raise UserError(f"backend {self.name} and tt.device: emulated contradict each other; keep one of them")
        found = self.arch()
        if found and not found.startswith(self.options.arch):
            raise UserError(
                f"tt.arch is {self.options.arch!r}, and the card is a {found!r}; set tt.arch to the card's "
                "(wormhole or blackhole)"
            )

    @property
    def static_shapes(self) -> ShapeGrid | None:
        return ShapeGrid(DEVICE_BATCH_TOKENS, LENGTHS)

    def info(self) -> DeviceInfo:
        base = super().info()
        return replace(
            base,
            name=f"Tenstorrent {self.arch() or self.options.arch}",
            features=(*base.features, self._mode()),
            untested=self.traits.untested,
        )

    def _mode(self) -> str:
        weights = "" if self.options.weight_dtype == "bfloat16" else f", frozen weights {self.options.weight_dtype}"
        return f"{self.options.products}{weights}"

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        del strict  # No dtype is replaced by another here.
        if dtype not in ("float32", "bfloat16"):
            raise unsupported_dtype(dtype, self.name, "float32", "bfloat16")
        reason = f"{dtype} tensors; products at the matrix unit's {self._mode()}"
        distance = self.options.largest_distance(frozen=True)
        return CastPolicy(dtype, dtype, dtype, "float32", reason, self._mode(), distance)

    def whole_model_policy(self, policy: CastPolicy) -> CastPolicy:
        mode = self.options.products
        reason = f"{policy.compute} tensors; products at the matrix unit's {mode}"
        return replace(policy, reason=reason, mode=mode, largest_distance=self.options.largest_distance(frozen=False))

    def error_budget(self, policy: CastPolicy) -> ErrorBudget:
        from .emulated import error_budget

        return error_budget(self.options, policy, all_operations=True)

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        import torch

        from ...kernels.packed import PaddedBatch

        del kernel
        encoder = self.portable_encoder(weights, policy, chunk_tokens=4 * DEVICE_BATCH_TOKENS)

        def forward(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
            return encoder.padded_features(PaddedBatch(ids, mask, types))

        compiled = self.one_program(forward)

        def run(batch: PackedBatch | PaddedBatch) -> torch.Tensor:
            assert isinstance(batch, PaddedBatch), "StaticEncoder lets padded batches through only"
            with self.frozen_weights(), torch.no_grad():
                return compiled(batch.input_ids, batch.attention_mask, batch.token_type_ids)

        return StaticEncoder(encoder, run)
