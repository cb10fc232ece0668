"""Devices that break one clause each, in a way that a real one might, and right ones that look suspicious.

They are the host with one member replaced. `CLAUSE` of each is the check that must catch it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from isotrain import UserError
from isotrain.backends import Availability, CastPolicy, DeviceInfo, EnergyUse, MemoryUse, ShapeGrid, Traits
from isotrain.backends.base import Generator
from isotrain.backends.cpu import CpuBackend
from isotrain.backends.host.memory import process_memory
from isotrain.conformance.device import waiting
from pydantic import BaseModel, ConfigDict
from torch import nn

T = TypeVar("T")
LATE_SECONDS = 0.03


class Mutant(CpuBackend):
    """The host. CLAUSE: the checks that a mutant must fail, in the order of the suite; no others."""

    name = "mutant"
    traits = Traits(layouts=("padded", "bucketed"), kernels=("native", "portable"))
    CLAUSE: ClassVar[tuple[str, ...]] = ()


# Placing


class NarrowsFloats(Mutant):
    """place sends float64 as float32, as a driver without float64 does, and says nothing."""

    CLAUSE = ("place-bits",)

    def place(self, value: T) -> T:
        return _mapped(super().place(value), lambda tensor: tensor.float() if tensor.dtype == torch.float64 else tensor)


class FlushesSigns(Mutant):
    """The copy adds 0.0, which turns -0.0 into 0.0."""

    CLAUSE = ("place-bits",)

    def place(self, value: T) -> T:
        return _mapped(super().place(value), lambda tensor: tensor + 0.0 if tensor.is_floating_point() else tensor)


class LosesScalars(Mutant):
    """A 0-dim tensor arrives with one dimension."""

    CLAUSE = ("place-bits",)

    def place(self, value: T) -> T:
        return _mapped(super().place(value), lambda tensor: tensor.reshape(1) if tensor.dim() == 0 else tensor)


class CopiesMemory(Mutant):
    """place copies the bytes in the order of memory, and forgets strides."""

    CLAUSE = ("place-bits",)

    def place(self, value: T) -> T:
        def copied(tensor: torch.Tensor) -> torch.Tensor:
            if isinstance(tensor, nn.Parameter) or tensor.is_contiguous() or tensor.numel() == 0:
                return tensor
            storage = tensor.untyped_storage()
            flat = torch.empty(0, dtype=tensor.dtype).set_(storage)
            return flat[: tensor.numel()].reshape(tensor.shape) if len(flat) >= tensor.numel() else tensor

        return _mapped(super().place(value), copied)


class ForgetsTuples(Mutant):
    """Tuples arrive as lists."""

    CLAUSE = ("place-structure",)

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        return list(placed) if isinstance(placed, tuple) else placed  # type: ignore[return-value]  # the mutation


class SortsKeys(Mutant):
    """Dicts arrive in the order of their keys."""

    CLAUSE = ("place-structure",)

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        return dict(sorted(placed.items())) if isinstance(placed, dict) else placed  # type: ignore[return-value]  # the mutation


class UntiesWeights(Mutant):
    """Placing a module copies each parameter, so that a shared one becomes two."""

    CLAUSE = ("place-module",)

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        if isinstance(placed, nn.Module):
            for module in placed.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    setattr(module, name, copied)
        return placed


class ForgetsBuffers(Mutant):
    """Placing a module drops the buffers that no gradient needs."""

    CLAUSE = ("place-module",)

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        if isinstance(placed, nn.Module):
            for module in placed.modules():
                module._buffers.clear()
        return placed


class SharesStaging(Mutant):
    """Float tensors of one shape are sent through one buffer, and the buffer itself is returned."""

    CLAUSE = ("place-again", "prefetch-kept")

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._buffers: dict[torch.Size, torch.Tensor] = {}

    def place(self, value: T) -> T:
        def staged(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype != torch.float32 or tensor.dim() != 1 or tensor.requires_grad:
                return tensor
            return self._buffers.setdefault(tensor.shape, torch.empty(tensor.shape)).copy_(tensor)

        return _mapped(super().place(value), staged)


class PlacesElsewhere(Mutant):
    """The device is not the one where tensors arrive."""

    CLAUSE = (
        *("info", "place-bits", "place-structure", "place-module", "prefetch-all", "prefetch-kept", "on-host"),
        *("results", "memory"),
    )

    @property
    def device(self) -> torch.device:
        return torch.device("meta")

    def generators(self) -> dict[str, Generator]:
        return {"cpu": (torch.get_rng_state, torch.set_rng_state)}

    def synchronize(self, *tensors: torch.Tensor) -> None:
        pass

    def memory(self) -> MemoryUse:
        return process_memory()

    def place(self, value: T) -> T:
        return value


class DropsLastBatch(Mutant):
    """prefetch yields a batch when the next one is on its way; the last one has no next."""

    CLAUSE = ("prefetch-all",)

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        ahead = None
        for batch in super().prefetch(batches):
            if ahead is not None:
                yield ahead
            ahead = batch


class SwapsBatches(Mutant):
    """prefetch sends two batches at once and yields the newer one first."""

    CLAUSE = ("prefetch-all",)

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        pair: list[T] = []
        for batch in super().prefetch(batches):
            pair.append(batch)
            if len(pair) == 2:
                yield from reversed(pair)
                pair = []
        yield from pair


class ReusesBuffer(Mutant):
    """prefetch copies every batch into the memory of the first one."""

    CLAUSE = ("prefetch-kept",)

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        first: Any = None
        for batch in super().prefetch(batches):
            item: Any = batch
            if isinstance(item, dict):
                first = first or {"ids": item["ids"].clone(), "features": [item["features"][0].clone()]}
                first["ids"].copy_(item["ids"])
                first["features"][0].copy_(item["features"][0])
                item = {"ids": first["ids"], "features": [first["features"][0]]}
            yield item


class ReadsAll(Mutant):
    """prefetch reads the whole source before the first batch."""

    CLAUSE = ("prefetch-lazy",)

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        yield from [self.place(batch) for batch in batches]


class SwallowsErrors(Mutant):
    """prefetch takes any error of the source for its end."""

    CLAUSE = ("prefetch-lazy",)

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        source = iter(batches)
        while True:
            try:
                batch = next(source)
            except LookupError:
                return
            except StopIteration:
                return
            yield self.place(batch)


class MovesToHost(Mutant):
    """on_host gives the module itself."""

    CLAUSE = ("on-host",)

    def on_host(self, module: nn.Module) -> nn.Module:
        return module.to("cpu")


# Waiting


class LateCopies(Mutant):
    """A right device: copies take a while, and its fence waits for them."""

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._running: list[threading.Thread] = []

    def place(self, value: T) -> T:
        def later(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape != (256, 256):
                return tensor
            target = torch.zeros_like(tensor)
            self._start(lambda: target.copy_(tensor))
            return target

        return _mapped(super().place(value), later)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        for thread in self._running:
            thread.join()
        self._running.clear()

    def _start(self, work: Callable[[], object]) -> None:
        def late() -> None:
            time.sleep(LATE_SECONDS)
            work()

        self._running.append(threading.Thread(target=late, daemon=True))
        self._running[-1].start()


class NeverWaitsForCopies(LateCopies):
    """The fence returns at once."""

    CLAUSE = ("fence-copies",)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        pass


class LateSteps(LateCopies):
    """A right device: a step's update takes a while after its loss is there, and its fence waits for it."""

    def place(self, value: T) -> T:
        return CpuBackend.place(self, value)

    def capture_step(
        self, step: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[..., torch.Tensor]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def run(*tensors: torch.Tensor) -> torch.Tensor:
            self.synchronize()
            before = [parameter.detach().clone() for parameter in parameters]
            loss = step(*tensors)
            updated = [parameter.detach().clone() for parameter in parameters]
            _put(parameters, before)
            self._start(lambda: _put(parameters, updated))
            return loss

        return run


class WaitsForLoss(LateSteps):
    """The fence returns when the loss is there."""

    CLAUSE: ClassVar[tuple[str, ...]] = ("fence-parameters", "fence-all")

    def capture_step(
        self, step: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[..., torch.Tensor]:
        late = super().capture_step(step, optimizer)

        def run(*tensors: torch.Tensor) -> torch.Tensor:
            LateCopies.synchronize(self)
            return late(*tensors)

        return run

    def synchronize(self, *tensors: torch.Tensor) -> None:
        pass


class NeedsTensors(WaitsForLoss):
    """The fence waits for the tensors that it is given; without any it returns at once."""

    CLAUSE = ("fence-all",)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        if tensors:
            LateSteps.synchronize(self)


class _Unread(torch.Tensor):
    """A result whose reading waits for the work that the fence should have waited for."""

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(4 * LATE_SECONDS)
        return super().cpu(*args, **kwargs).as_subclass(torch.Tensor)


class EmptyFence(Mutant):
    """The fence returns at once; reading a large product waits for the work, as an asynchronous device's does."""

    CLAUSE = ("fence-work",)

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        if isinstance(placed, torch.Tensor) and placed.shape == (waiting.WIDTH, waiting.WIDTH):
            return (placed * 0).as_subclass(_Unread)  # type: ignore[return-value]  # the mutation
        return placed


# Counting


class ForgetsGenerator(Mutant):
    """set_rng_state restores nothing."""

    CLAUSE = ("generators-host", "generators-device", "recompute")

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        missing = set(self.generators()) - set(state)
        if missing:
            raise UserError(f"the saved state has no generator {sorted(missing)}")


class ForgetsDeviceGenerator(Mutant):
    """The device draws dropout from a generator of its own, which no saved state has."""

    CLAUSE = ("generators-device", "recompute")

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        if isinstance(placed, torch.Tensor) and placed.dtype == torch.float32 and placed.dim() in (1, 2):
            return placed.as_subclass(_OwnNoise)  # type: ignore[return-value]  # the mutation
        return placed


class _OwnNoise(torch.Tensor):
    """Tensors of a device whose dropout has a generator of its own."""

    _own: ClassVar[torch.Generator] = torch.Generator().manual_seed(5)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.dropout:
            given = args[0].as_subclass(torch.Tensor)
            kept = torch.rand(given.shape, generator=cls._own) >= kwargs["p"]
            return (given * kept / (1 - kwargs["p"])).as_subclass(cls)
        return super().__torch_function__(function, types, args, kwargs or {})


class SharedState(Mutant):
    """Every saved state is the same memory."""

    CLAUSE = ("generators-host",)
    _saved: ClassVar[torch.Tensor] = torch.get_rng_state()

    def generators(self) -> dict[str, Generator]:
        return {"cpu": (lambda: self._saved.copy_(torch.get_rng_state()), torch.set_rng_state)}


class ConstantDropout(Mutant):
    """Every fence puts the generator back, so that dropout drops the same values in every step."""

    CLAUSE = ("generators-device",)

    def step_boundary(self) -> None:
        torch.manual_seed(0)


class ZeroMemory(Mutant):
    """memory() counts nothing."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        return MemoryUse(0, 0, "nothing")


class Kibibytes(Mutant):
    """memory() is in KiB."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        use = super().memory()
        return replace(use, current_bytes=use.current_bytes // 1024, peak_bytes=use.peak_bytes // 1024)


class LowPeak(Mutant):
    """The peak is what was in use when the backend was opened."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        use = super().memory()
        return replace(use, peak_bytes=use.current_bytes // 2)


class FallingEnergy(Mutant):
    """A counter of 32 bits that wraps."""

    CLAUSE = ("energy",)
    _reading: ClassVar[float] = 100.0

    def energy(self) -> EnergyUse:
        type(self)._reading -= 1.0
        return EnergyUse(self._reading, "the board")


class SilentEnergy(Mutant):
    """No joules, and no reason."""

    CLAUSE = ("energy",)

    def energy(self) -> EnergyUse:
        return EnergyUse(None, "")


class _Compiling(Mutant):
    """A right device that compiles a program for each shape of what it is given to compile."""

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._programs: set[torch.Size] = set()

    @property
    def static_shapes(self) -> ShapeGrid | None:
        return ShapeGrid(1024)

    def compile(self, fn: Any, **options: Any) -> Any:
        def compiled(inputs: torch.Tensor) -> torch.Tensor:
            self._programs.add(inputs.shape)
            return fn(inputs)

        return compiled

    def device_compilations(self) -> int:
        return len(self._programs)


class StandingCounter(_Compiling):
    """The device compiles, and counts nothing."""

    CLAUSE = ("compile-count",)

    def device_compilations(self) -> int:
        return 0


class CountsCalls(_Compiling):
    """The counter counts executions."""

    CLAUSE = ("compile-count", "scalar")
    _count: ClassVar[int] = 0

    def device_compilations(self) -> int:
        type(self)._count += 1
        return self._count


class ForgetsTorch(Mutant):
    """compile_count is the device's own, without torch's."""

    CLAUSE = ("compile-count-torch",)

    def compile_count(self) -> int:
        return 0


class WrongScalar(Mutant):
    """A scalar goes through int."""

    CLAUSE = ("scalar",)

    def scalar(self, value: float) -> float:
        return float(int(value))


class KeepsOneThread(Mutant):
    """The threads aren't given back."""

    CLAUSE = ("threads",)

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        torch.set_num_threads(torch.get_num_threads() + 1)
        yield


# Promises


class OtherName(Mutant):
    """info() is copied from another backend."""

    CLAUSE = ("info",)

    def info(self) -> DeviceInfo:
        return replace(super().info(), backend="cpu")


class HiddenEmulation(Mutant):
    """An emulation whose info() says that it is a device."""

    CLAUSE = ("info",)
    traits = replace(Mutant.traits, emulated=True)


class UnknownLayout(Mutant):
    """Traits with a layout that nobody makes."""

    CLAUSE = ("traits",)
    traits = replace(Mutant.traits, layouts=("padded", "ragged"), whole_model_layout="padded")


class OtherKernels(Mutant):
    """Traits that name a kernel which kernels() doesn't have."""

    CLAUSE = ("traits",)
    traits = replace(Mutant.traits, kernels=("fast", "portable"))


class PackedGrid(_Compiling):
    """A device with a grid of shapes that accepts packed batches, each of another shape."""

    CLAUSE = ("traits",)
    traits = replace(Mutant.traits, layouts=("padded", "packed"), whole_model_layout="padded")


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
        known = dtype if dtype in ("float32", "float64", "bfloat16", "float16") else "float32"
        return super().cast_policy(known, strict=strict)


class KeyErrorDtype(Mutant):
    """Unknown dtypes raise a KeyError."""

    CLAUSE = ("unknown-dtype",)

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype not in ("float32", "float64", "bfloat16", "float16"):
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


class UnwrittenMemory(Mutant):
    """memory() isn't written yet."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        raise NotImplementedError("later")


def _put(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _mapped(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """`value` with `change` applied to the tensors in it, where `place` has left them."""
    item: Any = value
    if isinstance(item, torch.Tensor) and not isinstance(item, nn.Parameter):
        item = change(item)
    elif isinstance(item, dict):
        item = {key: _mapped(part, change) for key, part in item.items()}
    elif isinstance(item, (list, tuple)):
        item = type(item)(_mapped(part, change) for part in item)
    return item


MUTANTS = [
    kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Mutant) and kind is not Mutant
]
