"""Checks that tensors and batches arrive on the device whole and unchanged, and stay so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from ...backends import DTYPES, Backend
from ...kernels.packed import PackedBatch
from ..case import Checks, Device, Passed, ViolationError, require

# Dtypes that batches have, whatever a device computes in.
ALWAYS = (torch.bool, torch.int32, torch.int64)
# How many batches a prefetch may have read before they are used.
MOST_AHEAD = 16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

check = Checks("device")


def is_on(tensor: torch.Tensor, backend: Backend) -> bool:
    """Whether `tensor` is on the device of `backend`, which may leave its number open."""
    here, wanted = tensor.device, backend.device
    return here.type == wanted.type and wanted.index in (None, here.index)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors on the host have the same dtype, shape and bits. NaN is like NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.is_floating_point():
        one, other = (part.contiguous().view(_INTEGERS[part.element_size()]) for part in (one, other))
    return torch.equal(one, other)


def claimed_dtypes(device: Device) -> list[torch.dtype]:
    """The floating dtypes that the device has."""
    return [getattr(torch, dtype) for dtype in DTYPES if device.claims(dtype)]


def _values(dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """24 values of `dtype`, the extreme ones included."""
    if dtype == torch.bool:
        return torch.randint(0, 2, (24,), generator=generator).bool()
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        values = torch.randint(-1000, 1000, (24,), generator=generator, dtype=dtype)
        values[:4] = torch.tensor([limits.min, limits.max, 0, -1], dtype=dtype)
        return values
    exact = torch.finfo(dtype)
    values = torch.randn(24, generator=generator, dtype=torch.float64).to(dtype)
    special = [float("inf"), float("-inf"), float("nan"), -0.0, exact.max, exact.smallest_normal]
    values[:6] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return values


def _shapes(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of `values` in every form that a caller may give."""
    return {
        "0-dim": values[7],
        "empty": values[:0].reshape(0, 3),
        "contiguous": values.reshape(2, 3, 4),
        "transposed": values.reshape(4, 6).t(),
        "strided": values[1::2],
        "expanded": values[:4].expand(3, 4),
    }


@check("place-bits", "Placed tensors are on the device with their dtype, shape and bits; what was placed is unchanged.")
def keeps_bits(device: Device) -> Passed:
    generator = device.generator()
    for dtype in (*ALWAYS, *claimed_dtypes(device)):
        given = _shapes(_values(dtype, generator))
        before = {form: tensor.clone() for form, tensor in given.items()}
        placed = {form: device.backend.place(tensor) for form, tensor in given.items()}
        for form, tensor in placed.items():
            what = f"a placed {form} tensor of {dtype}"
            require(is_on(tensor, device.backend), f"{what} is on {tensor.device} instead of {device.backend.device}")
            _check_form(what, tensor, given[form])
        for form, got in zip(placed, device.read(*placed.values()), strict=True):
            require(same_bits(got, before[form]), f"a placed {form} tensor of {dtype} has other bits than its source")
            require(same_bits(given[form], before[form]), f"placing a {form} tensor of {dtype} changed it on the host")
    return Passed()


def _check_form(what: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
    require(got.dtype == wanted.dtype, f"{what} has the dtype {got.dtype} instead of {wanted.dtype}")
    shapes = tuple(got.shape), tuple(wanted.shape)
    require(shapes[0] == shapes[1], f"{what} has the shape {shapes[0]} instead of {shapes[1]}")


@check(
    "place-structure",
    "Dicts, lists, tuples and batches keep their types, order and contents; what has no device stays.",
)
def keeps_structure(device: Device) -> Passed:
    packed = PackedBatch.from_lists([[2, 5, 9], [2, 7]], [[0, 0, 1], [0, 1]])
    given: dict[str, Any] = {
        "z first": [torch.arange(3), (torch.ones(2), "a text", None, 7, 2.5, True)],
        "packed": packed,
        "padded": packed.to_padded(4),
        "nested": {"empty dict": {}, "empty list": [], "empty tuple": ()},
    }
    pairs: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    _match("the value", device.backend.place(given), given, pairs)
    for where, got, wanted in pairs:
        require(is_on(got, device.backend), f"{where} is on {got.device} instead of {device.backend.device}")
        _check_form(where, got, wanted)
    for (where, _, wanted), got in zip(pairs, device.read(*(pair[1] for pair in pairs)), strict=True):
        require(same_bits(got, wanted), f"{where} has other values than its source")
    return Passed()


def _match(where: str, got: Any, wanted: Any, pairs: list[tuple[str, torch.Tensor, torch.Tensor]]) -> None:
    """Requires that both have the same structure, and appends their tensors to `pairs`."""
    kinds = type(got).__name__, type(wanted).__name__
    if isinstance(got, torch.Tensor) and isinstance(wanted, torch.Tensor):
        pairs.append((where, got, wanted))
        return
    require(kinds[0] == kinds[1], f"{where} became a {kinds[0]} and was a {kinds[1]}")
    if isinstance(wanted, dict):
        require(list(got) == list(wanted), f"{where} has the keys {list(got)} instead of {list(wanted)}")
        for key, part in wanted.items():
            _match(f"{where}[{key!r}]", got[key], part, pairs)
    elif isinstance(wanted, (list, tuple)):
        require(len(got) == len(wanted), f"{where} has {len(got)} parts instead of {len(wanted)}")
        for place, part in enumerate(wanted):
            _match(f"{where}[{place}]", got[place], part, pairs)
    elif is_dataclass(wanted):
        for field in fields(wanted):
            _match(f"{where}.{field.name}", getattr(got, field.name), getattr(wanted, field.name), pairs)
    else:
        require(np.array_equal(got, wanted), f"{where} is {got!r} instead of {wanted!r}")


class _Tied(nn.Module):
    """An embedding and a product by the same weight, and a buffer."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, _weight=torch.randn(7, 4, generator=generator))
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight
        self.output.bias = nn.Parameter(torch.randn(7, generator=generator), requires_grad=False)
        self.register_buffer("counts", torch.arange(7))


@check(
    "place-module", "A placed module has all its parameters and buffers on the device; shared parameters stay shared."
)
def keeps_modules(device: Device) -> Passed:
    module = _Tied(device.generator()).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    placed = device.backend.place(module)
    state = placed.state_dict()
    require(list(state) == list(before), f"a placed module has the state {list(state)} instead of {list(before)}")
    for name, value in state.items():
        require(is_on(value, device.backend), f"{name} is on {value.device} instead of {device.backend.device}")
    for (name, wanted), got in zip(before.items(), device.read(*state.values()), strict=True):
        require(same_bits(got, wanted), f"{name} of a placed module has other values than before")
    require(placed.embedding.weight is placed.output.weight, "two layers of a placed module lost their shared weight")
    require(placed.embedding.weight.requires_grad, "a parameter of a placed module can't be trained any more")
    require(not placed.output.bias.requires_grad, "a frozen parameter of a placed module is trained")
    require(not placed.training, "a placed module is in training mode and was in evaluation mode")
    return Passed()


@check(
    "place-again", "A placed tensor keeps its values when others are placed, or when its source on the host changes."
)
def keeps_earlier(device: Device) -> Passed:
    backend = device.backend
    numbers = range(8)
    placed = [backend.place(torch.full((64,), float(number))) for number in numbers]
    for number, got in zip(numbers, device.read(*placed), strict=True):
        message = f"of 8 tensors that were placed, number {number} holds {float(got[0])} instead of {float(number)}"
        require(bool((got == number).all()), message)
    source = torch.arange(4096.0)
    copy = backend.place(source)
    if copy.device == source.device and copy.data_ptr() == source.data_ptr():
        return Passed(detail="placing on the host copies nothing")
    source.zero_()
    (got,) = device.read(copy)
    require(torch.equal(got, torch.arange(4096.0)), "a placed copy changed when its source on the host did")
    return Passed()


def _batches(count: int, first: int = 0) -> Iterator[dict[str, Any]]:
    for number in range(first, first + count):
        yield {"ids": torch.full((2, 3), number), "features": [torch.full((4,), number / 2)]}


@check(
    "prefetch-all",
    "Prefetched batches are those of the source in its order, the last one included, placed on the device.",
)
def prefetches_all(device: Device) -> Passed:
    for count in (0, 1, 2, 3, 7):
        got = [_checked(device, batch) for batch in device.backend.prefetch(_batches(count))]
        require(len(got) == count, f"of {count} batches, {len(got)} arrived")
        require(got == list(range(count)), f"{count} batches arrived in the order {got}")
    return Passed()


@check("prefetch-kept", "A prefetched batch keeps its values while later ones are fetched.")
def prefetches_apart(device: Device) -> Passed:
    kept = list(device.backend.prefetch(_batches(7)))
    got = [_checked(device, batch) for batch in kept]
    require(len(set(got)) == len(got), f"{len(got)} batches that were kept hold the values of batches {got}")
    return Passed()


@check("prefetch-own", "Each prefetch gives the batches of its own source, also beside one that is open or left early.")
def prefetches_own(device: Device) -> Passed:
    def numbers(batches: Iterator[dict[str, Any]]) -> list[int]:
        return [_checked(device, batch) for batch in batches]

    one, other = (iter(device.backend.prefetch(_batches(5, first))) for first in (0, 10))
    got: tuple[list[int], list[int]] = [], []
    for _ in range(5):
        for found, batches in zip(got, (one, other), strict=True):
            found += numbers(islice(batches, 1))
    wanted = list(range(5)), list(range(10, 15))
    require(got == wanted, f"two prefetches that were read in turn gave batches {got[0]} and {got[1]}")
    left = iter(device.backend.prefetch(_batches(7, 20)))
    numbers(islice(left, 2))

    def require_whole(first: int, state: str) -> None:
        after = numbers(device.backend.prefetch(_batches(3, first)))
        wrong = f"beside a prefetch that was left early and is {state}, batches {first} to {first + 2} became {after}"
        require(after == list(range(first, first + 3)), wrong)

    require_whole(30, "open")
    del left
    require_whole(40, "closed")
    return Passed()


def _checked(device: Device, batch: dict[str, Any]) -> int:
    """The number of a prefetched batch of `_batches`."""
    require(set(batch) == {"ids", "features"}, f"a prefetched batch has the keys {list(batch)}")
    tensors = [batch["ids"], *batch["features"]]
    for tensor in tensors:
        place = device.backend.device
        require(is_on(tensor, device.backend), f"a prefetched tensor is on {tensor.device} instead of {place}")
    ids, features = device.read(*tensors)
    number = int(ids[0, 0])
    whole = same_bits(ids, torch.full((2, 3), number)) and same_bits(features, torch.full((4,), number / 2))
    require(whole, f"a prefetched batch holds {ids.tolist()} and {features.tolist()}")
    return number


@check("prefetch-lazy", "A prefetch reads only a few batches ahead, and an error of the source arrives as it is.")
def prefetches_lazily(device: Device) -> Passed:
    used = 3

    def endless() -> Iterator[torch.Tensor]:
        for number in range(used + MOST_AHEAD):
            yield torch.full((2,), float(number))
        raise ViolationError(f"to give {used} batches, prefetch read {used + MOST_AHEAD} of an endless source")

    arrived = sum(1 for _ in islice(device.backend.prefetch(endless()), used))
    require(arrived == used, f"of an endless source, {arrived} batches arrived")

    def broken() -> Iterator[torch.Tensor]:
        yield torch.ones(2)
        raise KeyError("of the source")

    try:
        count = len(list(device.backend.prefetch(broken())))
    except KeyError as error:
        require(error.args == ("of the source",), f"the source raised another KeyError than {error}")
        return Passed()
    raise ViolationError(f"the source failed after 1 batch, and prefetch ended with {count} as if nothing had happened")


@check("on-host", "A module's copy on the host has the same values, and changing it changes nothing on the device.")
def copies_to_host(device: Device) -> Passed:
    module = nn.Linear(5, 3)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    placed = device.backend.place(module)
    copy = device.backend.on_host(placed)
    require(copy is not placed, "on_host returns the module itself")
    for parameter, wanted in zip(copy.parameters(), before, strict=True):
        require(parameter.is_cpu, f"a parameter of the copy on the host is on {parameter.device}")
        require(same_bits(parameter.detach(), wanted), "the copy on the host has other values")
        parameter.data.zero_()
    require(all(is_on(parameter, device.backend) for parameter in placed.parameters()), "on_host took the module along")
    for got, wanted in zip(device.read(*placed.parameters()), before, strict=True):
        require(same_bits(got, wanted), "changing the copy on the host changed the placed module")
    outputs = copy(torch.ones(2, 5)).shape
    require(tuple(outputs) == (2, 3), f"the copy on the host gives outputs of the shape {tuple(outputs)}")
    return Passed()


@check("results", "What is computed from placed tensors is on the device and has torch's shape and dtype.")
def gives_results(device: Device) -> Passed:
    left, right = torch.randn(4, 6, generator=device.generator()), torch.ones(6, 3)
    first, second = device.backend.place((left, right))
    for what, got, wanted in (
        ("a product", first @ second, left @ right),
        ("a sum", first.sum(), left.sum()),
        ("a comparison", first > 0, left > 0),
        ("a slice", first[1:3, :2], left[1:3, :2]),
        ("an index", first.argmax(dim=1), left.argmax(dim=1)),
    ):
        require(is_on(got, device.backend), f"{what} is on {got.device} instead of {device.backend.device}")
        _check_form(what, got, wanted)
    return Passed()
