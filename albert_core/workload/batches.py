"""Batches of any form: placed, hashed, and described by their shapes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from ...backends import Backend, CastPolicy
from .load import LoadedWorkload, WorkloadError

# The shape and the dtype of each tensor of a batch, by its place in it.
Signature = tuple[tuple[str, tuple[int, ...], str], ...]
T = TypeVar("T")


def mapped(value: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """`value` with every leaf replaced by ``change(place, leaf)``.

    Dicts and other mappings, lists, tuples, named tuples and dataclasses are kept, and everything else is a leaf.

    Args:
        value: A batch, or a part of one.
        change: Its `place` is the way to the leaf: "input_ids", "0.pixels".
        place: The place of `value` itself.
    """

    def part(name: object, item: Any) -> Any:
        return mapped(item, change, f"{place}.{name}" if place else str(name))

    if isinstance(value, dict):
        return {name: part(name, item) for name, item in value.items()}
    if isinstance(value, Mapping) and hasattr(value, "__setitem__"):
        changed: Any = copy.copy(value)
        for name in list(value):
            changed[name] = part(name, value[name])
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(part(*field) for field in zip(value._fields, value, strict=True)))
    if isinstance(value, (list, tuple)):
        return type(value)(part(number, item) for number, item in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        changed = copy.copy(value)
        for name, item in named:
            # A frozen dataclass refuses a plain assignment.
            object.__setattr__(changed, name, part(name, item))
        return changed
    return change(place, value)


def leaves(batch: Any) -> list[tuple[str, Any]]:
    """Every leaf of a batch with its place."""
    found: list[tuple[str, Any]] = []
    mapped(batch, lambda place, leaf: found.append((place, leaf)))
    return found


def tensors(batch: Any) -> list[tuple[str, torch.Tensor]]:
    """Every tensor of a batch with its place."""
    return [(place, leaf) for place, leaf in leaves(batch) if isinstance(leaf, torch.Tensor)]


def cast(batch: Any, policy: CastPolicy) -> Any:
    """A batch whose floating-point tensors are float64 if the policy computes in that; else the batch itself."""
    if policy.accumulate != "float64":
        return batch

    def change(_: str, leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return mapped(batch, change)


def placed(batch: Any, backend: Backend, policy: CastPolicy) -> Any:
    """A batch on the device, cast as the policy needs."""
    return mapped(cast(batch, policy), lambda _, leaf: backend.place(leaf))


def placed_ahead(batches: Iterable[T], backend: Backend, policy: CastPolicy) -> Iterator[T]:
    """Each of the batches, `placed`. Its tensors are copied ahead of their use if the device can do that."""
    on_host: deque[T] = deque()

    def read() -> Iterator[list[torch.Tensor]]:
        for batch in batches:
            on_host.append(cast(batch, policy))
            yield [tensor for _, tensor in tensors(on_host[-1])]

    for copied in backend.prefetch(read()):
        yield _with_tensors(on_host.popleft(), iter(copied), backend)


def _with_tensors(batch: T, copied: Iterator[torch.Tensor], backend: Backend) -> T:
    """A placed batch with these tensors, in their order."""

    found: T = mapped(batch, lambda _, leaf: next(copied) if isinstance(leaf, torch.Tensor) else backend.place(leaf))
    return found


def signature(batch: Any) -> Signature:
    """The shapes and dtypes of a batch. Batches with equal ones run the same program."""
    return tuple((place, tuple(tensor.shape), str(tensor.dtype)) for place, tensor in tensors(batch))


def cost_class(loaded: LoadedWorkload, batch: Any) -> Hashable:
    """Equal for batches that cost the same: what the workload says, by default the shapes."""
    own = loaded.optional("cost_class")
    if own is None:
        return signature(batch)
    with loaded.blamed("cost_class"):
        found = own(batch)
    if isinstance(found, (torch.Tensor, np.ndarray)):
        place = loaded.place_of("cost_class")
        raise WorkloadError(
            f"{place}: cost_class returned a {type(found).__name__}; return a number, a text or a tuple"
        )
    return found


def samples(loaded: LoadedWorkload, batch: Any) -> int:
    """The number of samples of a batch: what the workload says, by default the first dimension of its first tensor."""
    own = loaded.optional("samples")
    if own is None:
        return next((len(tensor) for _, tensor in tensors(batch) if tensor.dim()), 1)
    with loaded.blamed("samples"):
        found = int(own(batch))
    if found < 1:
        raise WorkloadError(f"{loaded.place_of('samples')}: samples returned {found}; return at least 1")
    return found


def digest_tensor(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and bits."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().flatten()
    found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return found.hexdigest()


def digest(batch: Any) -> str:
    """SHA-256 (hex) of everything in a batch."""
    found = hashlib.sha256()
    for place, leaf in leaves(batch):
        found.update(f"{place} {type(leaf).__name__} ".encode())
        if isinstance(leaf, torch.Tensor):
            found.update(digest_tensor(leaf).encode())
        elif isinstance(leaf, np.ndarray):
            found.update(f"{leaf.dtype} {leaf.shape} ".encode() + np.ascontiguousarray(leaf).tobytes())
        else:
            found.update(pickle.dumps(leaf))
    return found.hexdigest()


def digest_all(parts: list[str]) -> str:
    """SHA-256 (hex) of several digests."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def first(batches: Any, limit: int | None) -> list[Any]:
    """The first `limit` batches; all of them if it is None."""
    return list(islice(batches, limit))


def shape_advice(batches: Sequence[Any], backend: Backend) -> str:
    """How to need fewer programs on a device that compiles one for each shape; empty if no padding would help.

    The advice is a grid: the device's own lengths, or powers of two.
    """
    grid = backend.static_shapes
    found = list(dict.fromkeys(map(signature, batches)))
    if grid is None or len({tuple(place for place, _, _ in shapes) for shapes in found}) > 1:
        return ""

    def padded_to(size: int) -> int:
        lengths = grid.lengths or ()
        return next((length for length in lengths if length >= size), 1 << (size - 1).bit_length() if size else 0)

    sizes: dict[tuple[str, int], set[int]] = {}
    for shapes in found:
        for place, shape, _ in shapes:
            for dimension, size in enumerate(shape):
                sizes.setdefault((place, dimension), set()).add(size)
    varying = {key: sorted(seen) for key, seen in sizes.items() if len(seen) > 1}
    fewer = {
        tuple(
            tuple(padded_to(size) if (place, number) in varying else size for number, size in enumerate(shape))
            for place, shape, _ in shapes
        )
        for shapes in found
    }
    if len(fewer) >= len(found):
        return ""
    told = "; ".join(
        f"dimension {dimension} of {place or 'the batch'} is {', '.join(map(str, seen[:8]))}"
        f"{', ...' if len(seen) > 8 else ''}: pad it to {', '.join(map(str, sorted(set(map(padded_to, seen)))))}"
        for (place, dimension), seen in list(varying.items())[:3]
    )
    return f"{backend.name} compiles a program for each of {len(found)} batch shapes; {len(fewer)} would do: {told}"
