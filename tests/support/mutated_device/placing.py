"""Devices on which tensors, modules or batches arrive otherwise than they were sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from isotrain.backends import MemoryUse
from isotrain.backends.base import Generator
from isotrain.backends.host.memory import process_memory
from torch import nn

from .base import Mutant, mapped

T = TypeVar("T")


class NarrowsFloats(Mutant):
    """place sends float64 as float32, as a driver without float64 does, and says nothing."""

    CLAUSE = ("place-bits",)

    def place(self, value: T) -> T:
        return mapped(super().place(value), lambda tensor: tensor.float() if tensor.dtype == torch.float64 else tensor)


class FlushesSigns(Mutant):
    """The copy adds 0.0, which turns -0.0 into 0.0."""

    CLAUSE = ("place-bits",)

    def place(self, value: T) -> T:
        return mapped(super().place(value), lambda tensor: tensor + 0.0 if tensor.is_floating_point() else tensor)


class LosesScalars(Mutant):
    """A 0-dim tensor arrives with one dimension."""

    CLAUSE = ("place-bits",)

    def place(self, value: T) -> T:
        return mapped(super().place(value), lambda tensor: tensor.reshape(1) if tensor.dim() == 0 else tensor)


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

        return mapped(super().place(value), copied)


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

        return mapped(super().place(value), staged)


class PlacesElsewhere(Mutant):
    """The device is not the one where tensors arrive."""

    CLAUSE = (
        *("info", "place-bits", "place-structure", "place-module", "prefetch-all", "prefetch-kept", "prefetch-own"),
        *("on-host", "results", "memory"),
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

    CLAUSE = ("prefetch-all", "prefetch-own")

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        ahead = None
        for batch in super().prefetch(batches):
            if ahead is not None:
                yield ahead
            ahead = batch


class SwapsBatches(Mutant):
    """prefetch sends two batches at once and yields the newer one first."""

    CLAUSE = ("prefetch-all", "prefetch-own")

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


class OneQueue(Mutant):
    """All prefetches of a device have one queue of batches."""

    CLAUSE = ("prefetch-own",)

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._queue: deque[Any] = deque()

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        for batch in batches:
            self._queue.append(self.place(batch))
            if len(self._queue) > 2:
                yield self._queue.popleft()
        while self._queue:
            yield self._queue.popleft()


class KeepsUnread(Mutant):
    """A prefetch begins with the batch that was on its way when another one was closed."""

    CLAUSE = ("prefetch-own",)

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._unread: list[Any] = []

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        sent, self._unread = self._unread, []
        try:
            for batch in batches:
                sent.append(self.place(batch))
                if len(sent) == 2:
                    yield sent.pop(0)
            yield from sent
            sent = []
        finally:
            self._unread = sent


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
