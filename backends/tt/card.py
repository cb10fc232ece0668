"""The Tenstorrent backend: a card through torch_xla and the vendor's PJRT plugin.

The vendor's names are those of its plugin in 2026 (package pjrt-plugin-tt). This file has not been run on a card yet:
its tests use torch_xla's CPU device instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ... import UserError
from ...kernels.words import count
from ..base import Backend
from ..traits import TT
from ..types import Availability, BackendUnavailableError, CastPolicy, DeviceInfo, ShapeGrid, unsupported_dtype
from ..xla import DEVICE_BATCH_TOKENS, StaticEncoder, XlaBackend
from .options import TtOptions

if TYPE_CHECKING:
    import torch

    from ...kernels.packed import PackedBatch, PaddedBatch
    from ...kernels.weights import EncoderWeights
    from ..error_budget import ErrorBudget
    from ..protocols import FrozenEncoder

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("isotrain")

CARD_FOLDER = Path("/dev/tenstorrent")
PLUGIN_GROUP = "torch_xla.plugins"
DEVICE_TYPE = "TT"

# Multiples of the card's 32 x 32 tiles. They are few, since its compiler takes minutes per program.
LENGTHS = (32, 64, 128, 256, 512)

# For torch.compile(backend="tt"): keep torch_xla's lazy execution, so that a step stays one program.
COMPILE_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "tt_legacy_compile": True,
    "tt_lazy_execution": True,
    "tt_use_aot_autograd": False,
    "tt_enable_torch_fx_fusion_pass": False,
}


def hardware_availability() -> Availability:
    """Whether a card can be used. The reason says whether the plugin or the card is missing. Nothing is imported."""
    cards = sorted(CARD_FOLDER.glob("*")) if CARD_FOLDER.is_dir() else []
    plugin = any(entry.name == "tt" for entry in entry_points(group=PLUGIN_GROUP))
    if not plugin:
        here = f"a Tenstorrent card is here ({cards[0]}), but" if cards else "no Tenstorrent card is here, and"
        return Availability(
            False,
            f"{here} its PJRT plugin is not installed",
            "install pjrt-plugin-tt from Tenstorrent's package index into a separate environment (Python 3.12; it "
            "brings its own torch and torch_xla); or use --backend cpu",
        )
    if not cards:
        return Availability(
            False,
            f"the PJRT plugin is installed, but there is no Tenstorrent card: {CARD_FOLDER} is empty or missing",
            "install the card's kernel driver (tt-kmd) and check with tt-smi that it lists the card; or use "
            "--backend cpu",
        )
    return Availability(True, f"{count(len(cards), 'Tenstorrent card')} ({cards[0]})")


class TtBackend(XlaBackend):
    """One Tenstorrent card through torch_xla. The options may put frozen weights into a block format."""

    name = "tt"
    traits = TT
    Options = TtOptions

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        os.environ["PJRT_DEVICE"] = DEVICE_TYPE
        os.environ["XLA_STABLEHLO_COMPILE"] = "1"
        Backend.__init__(self, index, options or TtOptions())
        self._open(DEVICE_TYPE)
        self._check_arch()

    @classmethod
    def probe(cls) -> Availability:
        return hardware_availability()

    @classmethod
    def resolve(cls, options: TtOptions) -> str:
        """The card if there is one, else its emulation, unless the option `device` decides."""
        hardware = hardware_availability()
        if options.device == "hardware" and not hardware.ok:
            raise BackendUnavailableError(f"tt.device: hardware can't run here: {hardware.reason}; {hardware.fix}")
        if options.device == "auto" and not hardware.ok:
            _warn_emulated(hardware.reason)
        return "tt-emulated" if options.device == "emulated" or not hardware.ok else cls.name

    def _configure(self) -> None:
        try:
            # Registers the dynamo backend "tt".
            import_module("tt_torch")
        except ImportError as error:
            raise BackendUnavailableError(
                f"backend 'tt' can't load the vendor's compiler ({error}); install pjrt-plugin-tt whole, again"
            ) from error
        if not hasattr(self._xla, "set_custom_compile_options"):
            raise BackendUnavailableError(
                f"backend 'tt': torch_xla {self._xla.__version__} is not the vendor's torch_xla (it takes no compile "
                "options); install the one that pjrt-plugin-tt brings"
            )
        self._set_compile_options("")

    def _set_compile_options(self, weight_dtype: str) -> None:
        """Sets the compiler's options for every program that is compiled from now on."""
        self._xla.set_custom_compile_options(
            {
                "optimization_level": self.options.optimization_level,
                "math_fidelity": self.options.math_fidelity,
                "fp32_dest_acc_en": self.options.fp32_dest_acc_en,
                "enable_const_eval": False,
                "experimental_weight_dtype": weight_dtype,
            }
        )

    def _check_arch(self) -> None:
        found = self._arch()
        if found and not found.startswith(self.options.arch):
            raise UserError(
                f"tt.arch is {self.options.arch!r}, and the card is a {found!r}; set tt.arch to the card's "
                "(wormhole or blackhole)"
            )

    def _arch(self) -> str:
        """The card's architecture as the plugin names it, or an empty string."""
        attributes = self._runtime.global_runtime_device_attributes()[self.index or 0]
        return str(attributes.get("device_arch", "")).lower()

    @property
    def static_shapes(self) -> ShapeGrid | None:
        return ShapeGrid(DEVICE_BATCH_TOKENS, LENGTHS)

    def info(self) -> DeviceInfo:
        base = super().info()
        return DeviceInfo(
            backend=self.name,
            device=base.device,
            name=f"Tenstorrent {self._arch() or self.options.arch}",
            features=(*base.features, self._mode()),
            versions=base.versions,
            untested=self.traits.untested,
        )

    def _mode(self) -> str:
        weights = "" if self.options.weight_dtype == "bfloat16" else f", frozen weights {self.options.weight_dtype}"
        return f"{self.options.products}{weights}"

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        del strict  # No dtype is replaced by another here.
        if dtype not in ("float32", "bfloat16"):
            raise unsupported_dtype(dtype, "tt", "float32", "bfloat16")
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

    def compile(self, fn: F, mode: str | None = None) -> F:
        import torch

        super().compile(fn, mode)
        # torch's overloads don't accept a type variable bounded by a callable.
        function: Any = fn
        compiled: Any = torch.compile(function, backend="tt", options=COMPILE_OPTIONS)
        return compiled

    def step_boundary(self) -> None:
        self._run_pending(wait=True)

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        import torch

        from ...kernels.packed import PaddedBatch

        del kernel
        encoder = self._portable(weights, policy)

        def forward(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
            return encoder.padded_features(PaddedBatch(ids, mask, types))

        compiled = self.compile(forward)

        def run(batch: PackedBatch | PaddedBatch) -> torch.Tensor:
            assert isinstance(batch, PaddedBatch), "StaticEncoder lets padded batches through only"
            with self._frozen_weights(), torch.no_grad():
                return compiled(batch.input_ids, batch.attention_mask, batch.token_type_ids)

        return StaticEncoder(encoder, run)

    @contextmanager
    def _frozen_weights(self) -> Iterator[None]:
        """Compiles what is traced inside as a separate program, with the frozen weights' block format.

        The compiler's option is global and applies to all weights of a program, so trained weights must not be in it.
        """
        if self.options.weight_dtype == "bfloat16":
            yield
            return
        self.step_boundary()
        self._set_compile_options(self.options.weight_dtype)
        try:
            yield
            self.step_boundary()
        finally:
            self._set_compile_options("")


@cache
def _warn_emulated(reason: str) -> None:
    """Warns once per process."""
    log.warning("backend tt is tt-emulated here, its numerics computed by the host: %s", reason)
