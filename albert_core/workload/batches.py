"""Batches of any form: placed, hashed, and described by their shapes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
from collections.abc import Callable, Hashable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from ...backends import Backend, CastPolicy
from .load import LoadedWorkload

# The shape and the dtype of each tensor of a batch, by its place in it.
Signature = tuple[tuple[str, tuple[int, ...], str], ...]


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


def placed(batch: Any, backend: Backend, policy: CastPolicy) -> Any:
    """A batch on the device. In float64, its floating-point tensors are float64, too."""
    wide = torch.float64 if policy.accumulate == "float64" else None

    def change(_: str, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and wide is not None and leaf.is_floating_point():
            leaf = leaf.to(wide)
        return backend.place(leaf)

    return mapped(batch, change)


def signature(batch: Any) -> Signature:
    """The shapes and dtypes of a batch. Batches with equal ones run the same program."""
    return tuple((place, tuple(tensor.shape), str(tensor.dtype)) for place, tensor in tensors(batch))


def cost_class(loaded: LoadedWorkload, batch: Any) -> Hashable:
    """Equal for batches that cost the same: what the workload says, by default the shapes."""
    own = loaded.optional("cost_class")
    return signature(batch) if own is None else own(batch)


def samples(loaded: LoadedWorkload, batch: Any) -> int:
    """The number of samples of a batch: what the workload says, by default the first dimension of its first tensor."""
    own = loaded.optional("samples")
    if own is not None:
        return int(own(batch))
    return next((len(tensor) for _, tensor in tensors(batch) if tensor.dim()), 1)


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
