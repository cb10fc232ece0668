"""What an operation is to the suite, and how its results and gradients are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ...backends import Backend, get_backend, options_section
from ..case import Device, Passed, ViolationError, implemented
from .uncertain import Precision, Uncertain

# How a matrix lies in memory: row by row, column by column, or as the middle columns of a wider one, as
# ``qkv.chunk(3, dim=-1)`` gives it.
Layout = Literal["rows", "transposed", "columns"]


@dataclass(frozen=True)
class Example:
    """The inputs of one call.

    Attributes:
        label: Its shape in words.
        inputs: On the host. Floating-point values are float64, and are rounded to the dtype under test.
        layout: Of the matrices among the inputs, and of the gradient of the result.
        summed: Whether gradients are those of the sum of the result: its own gradient is a single 1, expanded.
    """

    label: str
    inputs: tuple[torch.Tensor, ...]
    layout: Layout = "rows"
    summed: bool = False

    def rounded(self, dtype: torch.dtype) -> list[torch.Tensor]:
        return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in self.inputs]


def laid_out(*inputs: torch.Tensor) -> Iterator[Example]:
    """The same inputs where matrices don't lie row by row, and for the gradients of a sum."""
    yield Example("transposed views", inputs, "transposed")
    yield Example("columns of wider matrices", inputs, "columns")
    yield Example("gradient of a sum", inputs, summed=True)


@dataclass(frozen=True)
class Numerics:
    """What a cast policy promises of an operation.

    Attributes:
        dtype: Of the tensors.
        compute: The precision of `dtype`, which every tensor on the device is rounded to.
        accumulate: The precision of sums, normalisation and softmax.
    """

    dtype: torch.dtype
    compute: Precision
    accumulate: Precision

    def product(self, left: Uncertain, right: Uncertain) -> Uncertain:
        """A matrix product: sums in the accumulate dtype, then one rounding to the compute dtype."""
        return (left.at(self.accumulate) @ right.at(self.accumulate)).stored(self.compute)

    def wide(self, value: Uncertain) -> Uncertain:
        return value.at(self.accumulate)

    def narrow(self, value: Uncertain) -> Uncertain:
        return value.stored(self.compute)

    def uncertain(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """Floating-point tensors as exact inputs; ids and masks as they are."""
        return [Uncertain.exact(one, self.compute) if one.is_floating_point() else one for one in tensors]


@dataclass(frozen=True)
class Operation:
    """An operation with a definition of its own in float64, from which the error budget follows.

    Attributes:
        name: As in torch.
        definition: What it computes, in words.
        examples: The calls that are made, from random numbers of the generator.
        run: ``run(backend, *tensors)`` on the device. Returns one tensor.
        expected: ``expected(numerics, *inputs)``, the result as an `Uncertain`.
        gradients: ``gradients(numerics, upstream, *inputs)``, those of the floating-point inputs, in order. None: it
            has none.
    """

    name: str
    definition: str
    examples: Callable[[torch.Generator], Iterable[Example]]
    run: Callable[..., torch.Tensor]
    expected: Callable[..., Uncertain]
    gradients: Callable[..., Sequence[Uncertain]] | None = None


@dataclass
class Worst:
    """The largest error so far, as a share of its budget."""

    share: float = 0.0
    words: str = ""

    def add(self, label: str, want: Uncertain, found: torch.Tensor) -> None:
        """Judges one tensor. `label` says what it is."""
        shares = want.share(found).flatten()
        if not shares.numel() or float(shares.max()) <= self.share:
            return
        place = int(shares.argmax())
        self.share = float(shares[place])
        value, expected, budget = (float(one.flatten()[place]) for one in (found, want.value, want.budget()))
        self.words = f"{label}: {value:.6g} instead of {expected:.6g} at element {place}, budget {budget:.1e}"

    def passed(self) -> Passed:
        """The outcome.

        Raises:
            ViolationError: The error exceeds its budget.
        """
        if not self.share <= 1.0:
            raise ViolationError(self.words, self.share)
        return Passed(self.share)


def promised(dtype: str, device: Device) -> Numerics:
    """The numerics of operations on tensors of the dtype that the device computes `dtype` in.

    Raises:
        UnsupportedError: The device doesn't claim the dtype.
    """
    policy = device.policy(dtype)
    compute, accumulate = (getattr(torch, name) for name in (policy.compute, policy.accumulate))
    return Numerics(compute, Precision.of(compute), Precision.of(accumulate))


def model_of(dtype: str, device: Device) -> Device | None:
    """The host's model of the device's arithmetic, if more than dtypes decides its numbers (`CastPolicy.mode`)."""
    policy = device.policy(dtype)
    if not policy.mode:
        return None
    budget = device.backend.error_budget(policy)
    section = options_section(budget.backend)
    model = get_backend(budget.backend, {section: budget.options} if section else None)
    return Device(model, device.seed)


def widened(want: Uncertain, modelled: torch.Tensor) -> Uncertain:
    """`want` with the model's error added: that of each element, and the root mean square of all elements."""
    squares = (modelled.double() - want.value).square()
    return replace(want, variance=want.variance + squares + (squares.mean() if squares.numel() else 0.0))


def place(backend: Backend, tensor: torch.Tensor, layout: Layout = "rows") -> torch.Tensor:
    """A copy of `tensor` on the device, where a matrix lies as `layout` says."""
    if layout == "transposed" and tensor.dim() > 1:
        return backend.place(tensor.mT.clone(memory_format=torch.contiguous_format)).mT
    if layout == "columns" and tensor.dim() > 1:
        others = tensor.flip(-1)
        return backend.place(torch.cat((others, tensor, others), dim=-1)).chunk(3, dim=-1)[1]
    return backend.place(tensor.clone(memory_format=torch.contiguous_format))


def check_form(label: str, found: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raises ViolationError if a result has another shape or dtype."""
    if tuple(found.shape) != tuple(shape) or found.dtype != dtype:
        raise ViolationError(
            f"{label}: the result is {found.dtype} {list(found.shape)} instead of {dtype} {list(shape)}"
        )


def on_device(label: str, backend: Backend, *tensors: torch.Tensor) -> None:
    """Raises ViolationError if a result isn't on the backend's device."""
    for tensor in tensors:
        if tensor.device.type != backend.device.type:
            raise ViolationError(f"{label}: the result is on {tensor.device} instead of {backend.device}")


def check_result(operation: Operation, dtype: str, device: Device) -> Passed:
    """Compares results with float64, and the inputs with what they were before."""
    with torch.no_grad():
        return _check(operation, dtype, device, _expected_result, _result)


def check_gradients(operation: Operation, dtype: str, device: Device) -> Passed:
    """Compares the gradient of each floating-point input with float64."""
    return _check(operation, dtype, device, _expected_gradients, _gradients)


def _check(
    operation: Operation,
    dtype: str,
    device: Device,
    expect: Callable[[Operation, Example, Numerics, int], dict[str, Uncertain]],
    find: Callable[[Operation, Example, Numerics, Device], list[torch.Tensor]],
) -> Passed:
    numerics, model = promised(dtype, device), model_of(dtype, device)
    worst = Worst()
    for example in operation.examples(device.generator()):
        expected = expect(operation, example, numerics, device.seed)
        with implemented(operation.name):
            found = find(operation, example, numerics, device)
        for got, (label, want) in zip(found, expected.items(), strict=True):
            check_form(label, got, want.value.shape, numerics.dtype)
        if model is not None:
            modelled = find(operation, example, numerics, model)
            expected = {key: widened(expected[key], one) for key, one in zip(expected, modelled, strict=True)}
        for got, (label, want) in zip(found, expected.items(), strict=True):
            worst.add(label, want, got)
    return worst.passed()


def _expected_result(operation: Operation, example: Example, numerics: Numerics, seed: int) -> dict[str, Uncertain]:
    del seed
    inputs = numerics.uncertain(example.rounded(numerics.dtype))
    return {example.label: operation.expected(numerics, *inputs)}


def _result(operation: Operation, example: Example, numerics: Numerics, device: Device) -> list[torch.Tensor]:
    inputs = example.rounded(numerics.dtype)
    placed = [place(device.backend, tensor, example.layout) for tensor in inputs]
    result = operation.run(device.backend, *placed)
    on_device(example.label, device.backend, result)
    found, *after = device.read(result, *placed)
    if any(not torch.equal(left, given) for left, given in zip(after, inputs, strict=True)):
        raise ViolationError(f"{example.label}: it changes its inputs")
    return [found]


def _upstream(example: Example, shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """The gradient of the loss by the result."""
    if example.summed:
        return torch.ones((), dtype=dtype).expand(tuple(shape))
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(dtype)


def _expected_gradients(operation: Operation, example: Example, numerics: Numerics, seed: int) -> dict[str, Uncertain]:
    assert operation.gradients is not None
    inputs = numerics.uncertain(example.rounded(numerics.dtype))
    shape = operation.expected(numerics, *inputs).value.shape
    upstream = Uncertain.exact(_upstream(example, shape, numerics.dtype, seed), numerics.compute)
    found = operation.gradients(numerics, upstream, *inputs)
    return {f"{example.label}, gradient {number}": one for number, one in enumerate(found, start=1)}


def _gradients(operation: Operation, example: Example, numerics: Numerics, device: Device) -> list[torch.Tensor]:
    backend = device.backend
    placed = [place(backend, tensor, example.layout) for tensor in example.rounded(numerics.dtype)]
    leaves = [tensor.detach().requires_grad_() for tensor in placed if tensor.is_floating_point()]
    rest = iter(leaves)
    result = operation.run(backend, *(next(rest) if tensor.is_floating_point() else tensor for tensor in placed))
    upstream = _upstream(example, result.shape, numerics.dtype, device.seed)
    if example.summed:
        result.backward(place(backend, torch.ones((), dtype=numerics.dtype)).expand_as(upstream))
    else:
        result.backward(place(backend, upstream, example.layout))
    for number, leaf in enumerate(leaves, start=1):
        if leaf.grad is None:
            raise ViolationError(f"{example.label}: there is no gradient {number}")
    return device.read(*(leaf.grad for leaf in leaves if leaf.grad is not None))
