"""The interface between the training loop and a device.

One class per device, one file per class. The loop, the benchmarks and the commands know only what stands here,
so adding a device touches one file (or an installed package with an entry point in the group ``isotrain.backends``).
"""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import UserError
from ..kernels.names import check_name
from .error_budget import ErrorBudget
from .traits import Traits
from .types import Availability, CastPolicy, DeviceInfo, EnergyUse, MemoryUse, ShapeGrid, UnitRate

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
    from torch import nn

    from ..kernels.packed import PackedBatch, PortableEncoder
    from ..kernels.weights import EncoderWeights
    from .protocols import FrozenEncoder, HeadStep, PackedAttention

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
# What reads a generator's state, and what puts it back.
Generator = tuple[Callable[[], "torch.Tensor"], Callable[["torch.Tensor"], object]]


class Backend(ABC):
    """A device that can train. Subclasses say how each of these is done on it."""

    name: str
    traits: ClassVar[Traits] = Traits()
    # The model of its section of a configuration, which it is opened with as `options`; None where it takes none.
    Options: ClassVar[type[BaseModel] | None] = None

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        """`index` picks one of several devices ("cuda:1"), `options` is an `Options`.

        Raises UserError where the device has no such index, or can't do what the options say.
        """
        self.index = index
        self.options = options

    @classmethod
    @abstractmethod
    def probe(cls) -> Availability:
        """Whether this backend can run here. Cheap, no side effects, imports nothing heavier than torch."""

    @classmethod
    def resolve(cls, options: Any) -> str:
        """The name of the backend that opens as this one with these options, where `traits.resolves`: its own, or that
        of one that stands in for it here. Says so once, and raises UserError for options that can't be met.
        """
        del options
        return cls.name

    @property
    def caveat(self) -> str:
        """The backend's name where it only emulates a device, for every figure must say so then; else empty."""
        return self.name if self.traits.emulated else ""

    @property
    def on_caveat(self) -> str:
        """What a label or a line of the log ends by: " on " and the `caveat`, or nothing."""
        return f" on {self.caveat}" if self.caveat else ""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The torch device that tensors are placed on."""

    @abstractmethod
    def info(self) -> DeviceInfo:
        """The device's name, memory, peaks and versions."""

    @abstractmethod
    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        """What `dtype` means on this device. `strict` refuses to compute in another dtype than the one asked for.

        Raises UserError for a dtype the device doesn't have.
        """

    def whole_model_policy(self, policy: CastPolicy) -> CastPolicy:
        """`policy` of a head and its encoder in one model: without what holds for a frozen encoder's weights alone."""
        return policy

    def error_budget(self, policy: CastPolicy) -> ErrorBudget:
        """The host's model of this device's arithmetic under `policy`, for parity: by default the dtype's own."""
        return ErrorBudget("ideal", policy.requested, compute=policy.compute)

    @abstractmethod
    def synchronize(self, *tensors: torch.Tensor) -> None:
        """A fence: returns only when the values of `tensors` (all work, when none are given) exist.

        Lazy devices need the tensors: hand over the *updated parameters* after a step, not the loss.
        """

    @abstractmethod
    def memory(self) -> MemoryUse:
        """Memory in use and its peak since the process began."""

    def energy(self) -> EnergyUse:
        """What the device's energy counter says now, everything that runs on it and its idle draw included.

        Read it every few minutes: a counter that starts anew unseen twice has lost what it counted.
        """
        return EnergyUse(None, f"unavailable: the {self.name} backend reads no energy counter")

    def generators(self) -> dict[str, Generator]:
        """The generators that training may draw from, by name: the host's, and the device's own where it has one."""
        import torch

        return {"cpu": (torch.get_rng_state, torch.set_rng_state)}

    def rng_state(self) -> dict[str, torch.Tensor]:
        """The state of every one of `generators`, as uint8 tensors on the host."""
        return {name: get() for name, (get, _) in self.generators().items()}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        """Puts back what `rng_state` returned; raises UserError when a generator is missing from `state`."""
        generators = self.generators()
        missing = sorted(set(generators) - set(state))
        if missing:
            raise UserError(
                f"the saved state has no generator {missing} (it has {sorted(state)}); resume on its backend"
            )
        for name, (_, put) in generators.items():
            put(state[name].cpu())

    def place(self, value: T) -> T:
        """`value` on this device: a tensor, a module, a dataclass with a `to` method, or a list/tuple/dict of them."""
        item: Any = value
        if isinstance(item, dict):
            item = {key: self.place(part) for key, part in item.items()}
        elif isinstance(item, (list, tuple)):
            item = type(item)(self.place(part) for part in item)
        elif hasattr(item, "to"):
            item = item.to(self.device)
        return item

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches` placed on the device, copied ahead of their use where the device can do that."""
        for batch in batches:
            yield self.place(batch)

    def compile(self, fn: F, **options: Any) -> F:
        """`fn` compiled for the device, or `fn` itself where eager execution is the device's normal way."""
        del options
        return fn

    def capture_step(
        self, step: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[..., torch.Tensor]:
        """`step` in the form that this device repeats with the least overhead; `step` itself where that is it.

        `step(*tensors)` is one whole optimizer step, from placed tensors to the update and `zero_grad`, and returns one
        tensor; it must read nothing back and depend on nothing but those tensors, the parameters and the optimizer's
        state. What it does beside device work may happen only the first times. The learning rate is taken from
        `optimizer.param_groups` at every call.
        """
        del optimizer
        return step

    def compile_count(self) -> int:
        """How many compilations have happened so far, torch's and the device's; a timed block must not move it."""
        return _torch_compilations() + self.device_compilations()

    def device_compilations(self) -> int:
        """How many of them were the device's own, which torch.compile and inductor don't count."""
        return 0

    def step_boundary(self) -> None:
        """Ends a step: lazy devices cut the graph and start executing; eager ones have nothing to do."""
        return

    @property
    def static_shapes(self) -> ShapeGrid | None:
        """The grid that every batch's shape must lie on, or None where shapes cost nothing."""
        return None

    def scalar(self, value: float) -> float | torch.Tensor:
        """A number that changes from step to step, as operations on this device should get it.

        Where a compiled program would have it built in, that is a float32 tensor of no dimension on the device.
        """
        return value

    def on_host(self, module: nn.Module) -> nn.Module:
        """A copy of a placed module on the host, where it computes as torch does, whatever it did in its place."""
        return copy.deepcopy(module).to("cpu")

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Makes `rate` the learning rate of the next step, whatever form the device's step needs it in."""
        for group in optimizer.param_groups:
            group["lr"] = rate

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Called once, before the first step: where state that appears in that step would cost a compilation."""
        del optimizer

    def adam_options(self) -> dict[str, Any]:
        """Keywords for torch's Adam and AdamW that this device runs fastest, or only, with (fused, capturable)."""
        return {}

    def single_threaded(self) -> AbstractContextManager[Any]:
        """Held around a loop whose steps are too small to share among threads, such as a head on cached features."""
        return nullcontext()

    def head_step(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> HeadStep | None:
        """One fused step of a head with these parameters (hidden weight, bias, output weight, bias), or None.

        It leaves in the parameters and in the optimizer's state what forward, backward and `optimizer.step` would, to
        rounding. None: this device, or this optimizer, has no such step, and autograd does the work.
        """
        del parameters, optimizer
        return None

    @abstractmethod
    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        """Mixed precision for whole-model training: products in the policy's compute dtype, parameters as they are."""

    def grad_scaler(self, policy: CastPolicy) -> torch.amp.GradScaler | None:
        """What scales the loss so that gradients in the policy's compute dtype don't underflow, or None.

        Whole-model training in float16 needs one (Micikevicius et al. 2017, 1710.03740).
        """
        del policy
        return None

    def packed_attention(self, batch: PackedBatch) -> PackedAttention:
        """The attention of a whole model's layers on `batch`, placed, its sequences in order of length."""
        from ..kernels.packed.attention import GroupedAttention

        return GroupedAttention(batch.host_lengths)

    def kernels(self) -> dict[str, Availability]:
        """The names that `frozen_encoder` takes besides "auto", fastest first, and whether each can run here."""
        return {"portable": Availability(True, "torch operators")}

    def measured_unit_tflops(self) -> UnitRate | None:
        """The matrix unit's own rate, measured now (it may take a second); None where nothing here can measure it."""
        return None

    def frozen_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str = "auto") -> FrozenEncoder:
        """The fastest correct frozen forward this device has for `weights`; `kernel` forces one by name.

        Raises UserError when the kernel is unknown or can't run these weights here.
        """
        check_name("kernel", kernel, ("auto", *(self.traits.kernels or self.kernels())), f"on backend {self.name}")
        return self.build_encoder(weights, policy, kernel)

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        """What `frozen_encoder` returns, of a `kernel` that is "auto" or one of `kernels`."""
        del kernel
        return self.portable_encoder(weights, policy)

    def portable_encoder(self, weights: EncoderWeights, policy: CastPolicy, **options: Any) -> PortableEncoder:
        """The kernel "portable", packed on the host and placed; `options` are `PortableEncoder`'s."""
        import torch

        from ..kernels.packed import PortableEncoder
        from ..kernels.weights import check_finite

        # torch's attention gives 0, and not NaN, for a head whose scores are NaN.
        check_finite(weights)
        encoder = PortableEncoder(
            weights.to(dtype=getattr(torch, policy.param)),
            compute_dtype=getattr(torch, policy.compute),
            accumulate_dtype=getattr(torch, policy.accumulate),
            **options,
        )
        return encoder if encoder.device == self.device else encoder.to(self.device)


def _torch_compilations() -> int:
    """Frames that torch.compile has traced and graphs that inductor has compiled: a late backward graph has no frame.

    Without the import of torch._dynamo, which takes seconds: where nobody has imported it, nothing was compiled.
    """
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return 0
    return int(utils.counters["frames"]["total"]) + len(utils.compilation_time_metrics.get("compile_fx_inner", ()))
