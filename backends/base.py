"""The interface between the training loop and a device.

Each device is one class in one file. The loop, the benchmarks and the commands use only this interface, so a new device
touches one file, or an installed package with an entry point in the group ``isotrain.backends``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import UserError
from ..kernels.names import check_name
from .error_budget import ErrorBudget
from .traits import Traits
from .types import Availability, CastPolicy, DeviceInfo, EnergyUse, MemoryUse, ShapeGrid, UnitRate, versions

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
    from torch import nn

    from ..kernels.packed import PackedBatch, PortableEncoder
    from ..kernels.weights import EncoderWeights
    from .host.choices import Choice, Chosen
    from .protocols import FrozenEncoder, HeadStep, PackedAttention, TrainedEncoder
    from .training.session import Session

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
# Functions that read a generator's state and restore it.
Generator = tuple[Callable[[], "torch.Tensor"], Callable[["torch.Tensor"], object]]


class Backend(ABC):
    """A device that can train."""

    name: str
    traits: ClassVar[Traits] = Traits()
    # The model of the backend's section of a configuration; None if it takes no options.
    Options: ClassVar[type[BaseModel] | None] = None

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        """Opens the device.

        Args:
            index: One of several devices, 1 for "cuda:1".
            options: An instance of `Options`.

        Raises:
            UserError: There is no device with this index, or it can't do what the options say.
        """
        self.index = index
        self.options = options

    @classmethod
    @abstractmethod
    def probe(cls) -> Availability:
        """Whether this backend can run here. Cheap, without side effects, and imports nothing heavier than torch."""

    @classmethod
    def resolve(cls, options: Any) -> str:
        """The name of the backend that is opened instead of this one, or its own. Used if `traits.resolves` is set.

        It logs once that another backend stands in.

        Raises:
            UserError: The options can't be met here.
        """
        del options
        return cls.name

    @classmethod
    def foreseen_caveat(cls) -> str:
        """What `caveat` will be on this machine. Overridden only if `traits.stands_in` is set."""
        return cls.name if cls.traits.emulated else ""

    @property
    def caveat(self) -> str:
        """What every figure must say if the device isn't the one that the backend is named after; else empty."""
        return self.foreseen_caveat()

    @property
    def on_caveat(self) -> str:
        """The end of a label or a log line: " on " and the `caveat`, or nothing."""
        return f" on {self.caveat}" if self.caveat else ""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The torch device that tensors are placed on."""

    def info(self) -> DeviceInfo:
        """The device's name, memory, peaks and versions."""
        name = f"{self.name} device {self.index or 0}"
        found = DeviceInfo(self.name, str(self.device), name, versions=versions())
        return replace(found, emulated=bool(self.caveat), untested=self.traits.untested)

    @abstractmethod
    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        """What `dtype` means on this device.

        Args:
            strict: Compute in `dtype` even if the device only emulates it.

        Raises:
            UserError: The device doesn't have this dtype.
        """

    def whole_model_policy(self, policy: CastPolicy) -> CastPolicy:
        """`policy` for a model that is trained whole: without what holds only for a frozen encoder's weights.

        Raises:
            UserError: Nothing can be trained in the dtype.
        """
        return policy.trainable()

    def error_budget(self, policy: CastPolicy) -> ErrorBudget:
        """The host's model of this device's arithmetic under `policy`, for parity: by default the dtype's own."""
        return ErrorBudget("ideal", policy.requested, compute=policy.compute)

    @abstractmethod
    def synchronize(self, *tensors: torch.Tensor) -> None:
        """A fence: returns when the values of `tensors` exist, or when all work is done if none are given.

        Lazy devices need the tensors. After a step, pass the *updated parameters*, not the loss.
        """

    @abstractmethod
    def memory(self) -> MemoryUse:
        """Memory in use and its peak since the process began."""

    def energy(self) -> EnergyUse:
        """The device's energy counter. It includes everything that runs on the device, and its idle power.

        Read it every few minutes, since a counter that wraps twice between two readings loses energy.
        """
        return EnergyUse(None, f"unavailable: the {self.name} backend reads no energy counter")

    def generators(self) -> dict[str, Generator]:
        """The generators that training may draw from, by name: the host's, and the device's if it has one."""
        import torch

        return {"cpu": (torch.get_rng_state, torch.set_rng_state)}

    def unsaved_generator(self) -> str:
        """Why the device draws from a generator that isn't among `generators`; empty if it doesn't."""
        return ""

    def rng_state(self) -> dict[str, torch.Tensor]:
        """The state of each of the `generators`, as uint8 tensors on the host."""
        return {name: get() for name, (get, _) in self.generators().items()}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `rng_state` returned.

        Raises:
            UserError: A generator is missing from `state`.
        """
        generators = self.generators()
        missing = sorted(set(generators) - set(state))
        if missing:
            raise UserError(f"the saved state has no generator {missing}, only {sorted(state)}; resume on its backend")
        for name, (_, put) in generators.items():
            put(state[name].cpu())

    def place(self, value: T) -> T:
        """`value` on this device: a tensor, a module, a dataclass with a `to` method, or a list/tuple/dict of them."""
        from .training.placement import placed

        return placed(value, self.device, self.place)

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields `batches` placed on the device, copied ahead of their use if the device can do that."""
        yield from map(self.place, batches)

    def check_compile_mode(self, mode: str) -> None:
        """Checks that `compile` can use this mode here.

        Raises:
            UserError: It can't.
        """
        self.traits.check_compile_mode("torch_compile", mode, self.name)

    def compile(self, fn: F, mode: str | None = None) -> F:
        """`fn` as the device normally executes it, compiled or `fn` itself, or compiled by torch.compile.

        torch.compile makes a program for each shape, so that a step has the same bits after a resume.

        Args:
            mode: One of torch.compile's, if `traits.torch_compile` is set.

        Raises:
            UserError: The mode can't be used here. The compiled function raises it if `fn` can't be compiled.
        """
        if mode is not None:
            self.check_compile_mode(mode)
        return fn

    def capture_step(
        self, step: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[..., torch.Tensor]:
        """`step` in the form that this device repeats with the least overhead, which may be `step` itself.

        Args:
            step: `step(*tensors)` makes one whole optimizer step, from placed tensors to the update and `zero_grad`,
                and returns one tensor. It reads nothing back. It depends only on those tensors, the parameters, the
                optimizer's state and dropout, which draws anew at each call. What it does on the host may be skipped
                after the first calls.
            optimizer: The learning rate is read from its `param_groups` at each call.
        """
        del optimizer
        return step

    def compile_count(self) -> int:
        """The number of compilations so far, by torch and by the device. A timed block must not change it."""
        from ..kernels.inductor import compilations

        return compilations() + self.device_compilations()

    def device_compilations(self) -> int:
        """The number of the device's own compilations, which torch.compile and inductor don't count."""
        return 0

    def step_boundary(self) -> None:
        """Ends a step. Lazy devices cut the graph and start executing; eager ones have nothing to do."""
        return

    @property
    def static_shapes(self) -> ShapeGrid | None:
        """The grid that contains every batch's shape, or None if new shapes cost nothing."""
        return None

    def scalar(self, value: float) -> float | torch.Tensor:
        """A number that changes from step to step, as operations on this device should get it.

        If a compiled program would otherwise contain it as a constant, it is a float32 scalar tensor on the device.
        """
        return value

    def on_host(self, module: nn.Module) -> nn.Module:
        """A copy of a placed module on the host, with torch's own arithmetic."""
        return copy.deepcopy(module).to("cpu")

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, *rates: float) -> None:
        """Sets the learning rate of the next step, one for all groups or one for each, in the form that it needs."""
        groups = optimizer.param_groups
        for group, rate in zip(groups, rates * (len(groups) // len(rates)), strict=True):
            group["lr"] = rate

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Called once before the first step, so that new optimizer state costs no compilation in it."""
        del optimizer

    def adam_options(self) -> dict[str, Any]:
        """Keywords for torch's Adam and AdamW that this device needs or is fastest with (fused, capturable)."""
        return {}

    def single_threaded(self) -> AbstractContextManager[Any]:
        """A context for steps that are too small to share among threads, such as a head's on cached features."""
        return nullcontext()

    def head_step(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> HeadStep | None:
        """A fused step of a head, or None if this device has none for this optimizer.

        Up to rounding, it changes the parameters and the optimizer's state as forward, backward and `optimizer.step`
        would.

        Args:
            parameters: Hidden weight, hidden bias, output weight, output bias.
        """
        del parameters, optimizer
        return None

    def session(self, model: nn.Module, optimizer: Any, dtype: str = "float32") -> Session:
        """What one's own loop calls to train `model` on this device; the arguments are those of `Session`."""
        from .training.session import Session

        return Session(self, model, optimizer, dtype)

    def named_range(self, name: str) -> AbstractContextManager[Any]:
        """A part of a step, by name in the trace of a profiler. It costs nothing unless one records."""
        import torch

        # torch.compile can't trace the profiler's state.
        if torch.compiler.is_compiling() or not torch.autograd._profiler_enabled():
            return nullcontext()
        return torch.profiler.record_function(name)

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        """Mixed precision for whole-model training: products in the policy's compute dtype, parameters unchanged."""
        import torch

        return torch.autocast(self.device.type, getattr(torch, policy.compute), policy.compute != policy.accumulate)

    def rounding(self) -> AbstractContextManager[Any]:
        """A context in which a model of an arithmetic rounds what the host computes. A device does nothing."""
        return nullcontext()

    def unknown_operations(self, run: Callable[[], object]) -> list[str]:
        """The operations in `run` that an emulation doesn't know and computes in float32. A device has none."""
        del run
        return []

    def grad_scaler(self, policy: CastPolicy) -> torch.amp.GradScaler | None:
        """Scales the loss so that gradients in the policy's compute dtype don't underflow; None if it isn't needed.

        Whole-model training in float16 needs it (Micikevicius et al. 2017, 1710.03740).
        """
        del policy
        return None

    def packed_attention(self, batch: PackedBatch) -> PackedAttention:
        """The attention of a whole model's layers on a placed batch with its sequences in order of length."""
        from ..kernels.packed.attention import GroupedAttention

        return GroupedAttention(batch.host_lengths, self.attention())

    def attention(self) -> Callable[..., torch.Tensor] | None:
        """The attention of a whole model's layers on sequences of one length; None: torch's own operator."""
        return None

    def kernels(self) -> dict[str, Availability]:
        """The names that `frozen_encoder` accepts besides "auto", fastest first, and whether each can run here."""
        return {"portable": Availability(True, "torch operators")}

    def measured_unit_tflops(self, dtype: str) -> UnitRate | None:
        """The rate of the matrix unit itself, measured now within about a second; None if it can't be measured.

        If the unit doesn't multiply `dtype`, the rate of its own dtype is returned.
        """
        del dtype
        return None

    def frozen_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str = "auto") -> FrozenEncoder:
        """The device's fastest correct frozen forward pass for `weights`.

        Args:
            kernel: "auto", or the kernel to use.

        Raises:
            UserError: The kernel is unknown or can't run these weights here, or the weights are NaN or infinite.
        """
        from ..kernels.weights import check_finite

        check_name("kernel", kernel, ("auto", *(self.traits.kernels or self.kernels())), f"on backend {self.name}")
        # Some kernels give finite features for them: torch's attention returns 0 for a head with NaN scores.
        check_finite(weights)
        return self.build_encoder(weights, policy, kernel)

    def choose(self, choice: Choice) -> str:
        """The way to do one thing here: by default the first one, without a measurement. "": none computes right."""
        return next(iter(choice.ways))

    def choices(self, *, kept: bool = False) -> list[Chosen]:
        """How choices were made by measuring: those of this process, or all that are `kept` and hold on this device."""
        del kept
        return []

    def trained_encoder(
        self, weights: EncoderWeights, policy: CastPolicy, kernel: str, words: nn.Embedding, recompute: bool
    ) -> TrainedEncoder | None:
        """Trains an encoder on packed batches by `kernel` ("auto": if one can). None: train its module.

        Args:
            weights: The trained parameters themselves.
            words: Its table; `padding_idx` is not trained, and with `sparse` the gradient has the rows that are used.
            recompute: Whether backward computes activations again.
        """
        raise NotImplementedError  # Called only if there are trained_kernels.

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        """Builds what `frozen_encoder` returns. `kernel` is "auto" or one of `kernels`."""
        del kernel
        return self.portable_encoder(weights, policy)

    def portable_encoder(
        self, weights: EncoderWeights, policy: CastPolicy, kind: type[PortableEncoder] | None = None, **options: Any
    ) -> PortableEncoder:
        """The kernel "portable", or a `kind` of it, packed on the host and placed. `options` are its constructor's."""
        import torch

        from ..kernels.packed import PortableEncoder

        compute = policy.compute
        if policy.eight_bit:
            from ..kernels.packed.smoothing import eight_bit_options

            options, compute = options | eight_bit_options(compute, weights), policy.param
        encoder = (kind or PortableEncoder)(
            weights.to(dtype=getattr(torch, policy.param)),
            compute_dtype=getattr(torch, compute),
            accumulate_dtype=getattr(torch, policy.accumulate),
            **options,
        )
        return encoder if encoder.device == self.device else encoder.to(self.device)
