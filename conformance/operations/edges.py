"""What surrounds an output, and values that aren't ordinary numbers: NaN, infinities, subnormal numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from ..case import Device, Passed, UnsupportedError, ViolationError, implemented
from .operation import check_form, on_device, place, promised
from .rows import EPSILON, normal
from .updates import OPTIMIZERS, random_steps, run_steps

# Elements on either side of an output, and what they hold. Every dtype represents it.
MARGIN, SENTINEL = 64, 1024.0
INF, NAN = math.inf, math.nan
# Of no element, and yet dropout draws its mask.
HARDLY_ANY = 1e-30
UNWATCHED = "layer_norm and fused attention aren't watched: torch can't tell them where to write"
aten = torch.ops.aten


@dataclass(frozen=True)
class _Write:
    """An operator that writes where it is told: ``call(*inputs, out)``, and the same one that returns its result."""

    name: str
    call: Callable[..., object]
    plain: Callable[..., torch.Tensor]
    shapes: tuple[tuple[int, ...], ...]


def _writes() -> Iterator[_Write]:
    matrices, square = ((17, 127), (127, 3)), ((17, 127),)
    yield _Write("matmul", lambda a, b, out: aten.mm.out(a, b, out=out), torch.mm, matrices)
    yield _Write(
        "addmm",
        lambda a, b, c, out: aten.addmm.out(c, a, b, out=out),
        lambda a, b, c: torch.addmm(c, a, b),
        (*matrices, (3,)),
    )
    batches = ((3, 17, 127), (3, 127, 1))
    yield _Write("bmm", lambda a, b, out: aten.bmm.out(a, b, out=out), torch.bmm, batches)
    yield _Write("tanh", lambda x, out: aten.tanh.out(x, out=out), torch.tanh, square)
    yield _Write(
        "tanh gradient",
        lambda g, y, out: aten.tanh_backward.grad_input(g, y, grad_input=out),
        aten.tanh_backward,
        square * 2,
    )
    for form, name in (("none", "gelu-erf"), ("tanh", "gelu-tanh")):
        yield _Write(
            name,
            lambda x, out, form=form: aten.gelu.out(x, approximate=form, out=out),
            partial(functional.gelu, approximate=form),
            square,
        )
        yield _Write(
            f"{name} gradient",
            lambda g, x, out, form=form: aten.gelu_backward.grad_input(g, x, approximate=form, grad_input=out),
            partial(aten.gelu_backward, approximate=form),
            square * 2,
        )
    yield _Write(
        "softmax", lambda x, out: aten._softmax.out(x, -1, False, out=out), lambda x: torch.softmax(x, -1), square
    )
    yield _Write(
        "softmax gradient",
        lambda g, y, out: aten._softmax_backward_data.out(g, y, -1, g.dtype, grad_input=out),
        lambda g, y: aten._softmax_backward_data(g, y, -1, g.dtype),
        square * 2,
    )
    yield _Write(
        "log_softmax",
        lambda x, out: aten._log_softmax.out(x, -1, False, out=out),
        lambda x: torch.log_softmax(x, -1),
        square,
    )
    yield _Write(
        "log_softmax gradient",
        lambda g, y, out: aten._log_softmax_backward_data.out(g, y, -1, g.dtype, out=out),
        lambda g, y: aten._log_softmax_backward_data(g, y, -1, g.dtype),
        square * 2,
    )
    yield _Write(
        "nll_loss",
        lambda x, out: aten.nll_loss.out(x, _numbers(x), None, 0, out=out),
        lambda x: functional.nll_loss(x, _numbers(x), reduction="none"),
        square,
    )
    yield _Write(
        "embedding", lambda table, out: aten.index_select.out(table, 0, _numbers(table), out=out), torch.clone, square
    )
    yield _Write(
        "dropout", lambda x, out: functional.dropout(out.copy_(x), HARDLY_ANY, inplace=True), torch.clone, square
    )
    yield _Write("added gradient", _add_gradient, lambda x: x + x, square)
    yield _Write("sum", lambda x, out: aten.sum.IntList_out(x, [-1], out=out), lambda x: x.sum(-1), square)
    yield _Write("mean", lambda x, out: aten.mean.out(x, [-1], out=out), lambda x: x.mean(-1), square)
    yield _Write("add", lambda x, y, out: aten.add.out(x, y, out=out), torch.add, (*square, (127,)))
    yield _Write("mul_", lambda x, y, out: out.copy_(x).mul_(y), torch.mul, (*square, (127,)))


def _numbers(rows: torch.Tensor) -> torch.Tensor:
    """The number of each row, in the place of ids or labels."""
    return torch.arange(len(rows), device=rows.device)


def _add_gradient(x: torch.Tensor, out: torch.Tensor) -> None:
    """Backward adds to the gradient that is there."""
    with torch.enable_grad():
        leaf = torch.zeros_like(x).requires_grad_()
        leaf.grad = out.copy_(x)
        leaf.backward(x)


def check_bounds(dtype: str, device: Device) -> Passed:
    """Writes into the middle of larger buffers whose other elements must stay as they are."""
    numerics = promised(dtype, device)
    generator = device.generator()
    missing, checked = [], 0
    for write in _writes():
        inputs = [place(device.backend, normal(generator, *shape).to(numerics.dtype)) for shape in write.shapes]
        try:
            with torch.no_grad(), implemented(write.name):
                want = write.plain(*inputs)
                buffer, out = _surrounded(device, want.shape, numerics.dtype)
                write.call(*inputs, out)
        except UnsupportedError:
            missing.append(write.name)
            continue
        on_device(write.name, device.backend, out)
        found, whole, inside = device.read(out, buffer, want)
        if not torch.equal(found, inside):
            raise ViolationError(f"{write.name}: given a place for its result, it doesn't write the same result there")
        _check_margins(write.name, whole)
        checked += 1
    return _passed(checked, missing, lacks=UNWATCHED)


def check_update_bounds(dtype: str, device: Device) -> Passed:
    """The same for the parameters that an optimizer's step updates in place, and for gradients that are clipped."""
    wide = getattr(torch, device.policy(dtype).accumulate)
    values, steps = random_steps(device.generator(), wide)
    updates: dict[str, Callable[[list[torch.Tensor]], object]] = {
        optimizer.name: partial(run_steps, optimizer, device.backend, steps=steps) for optimizer in OPTIMIZERS
    }
    updates["clip_grad_norm_"] = _clip
    missing, checked = [], 0
    for name, update in updates.items():
        pairs = [_surrounded(device, one.shape, wide) for one in values]
        for (_, inside), one in zip(pairs, values, strict=True):
            inside.copy_(place(device.backend, one))
        try:
            with implemented(name):
                update([inside.detach().requires_grad_() for _, inside in pairs])
        except UnsupportedError:
            missing.append(name)
            continue
        for buffer in device.read(*(buffer for buffer, _ in pairs)):
            _check_margins(name, buffer)
        checked += 1
    return _passed(checked, missing)


def _clip(gradients: list[torch.Tensor]) -> None:
    parameters = [nn.Parameter(torch.zeros_like(one)) for one in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.detach()
    nn.utils.clip_grad_norm_(parameters, 0.1)


def _surrounded(device: Device, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A buffer of sentinels on the device, and a contiguous view of this shape in its middle."""
    size = math.prod(shape)
    buffer = place(device.backend, torch.full((size + 2 * MARGIN,), SENTINEL, dtype=dtype))
    return buffer, buffer[MARGIN : MARGIN + size].view(*shape)


def _check_margins(name: str, buffer: torch.Tensor) -> None:
    changed = int((torch.cat((buffer[:MARGIN], buffer[-MARGIN:])) != SENTINEL).sum())
    if changed:
        raise ViolationError(f"{name} writes {changed} elements outside its output")


@dataclass(frozen=True)
class _Special:
    """A call on values that aren't all numbers: ``call(*inputs)``."""

    name: str
    call: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]


def _specials(value: float, generator: torch.Generator) -> Iterator[_Special]:
    """Calls of every operation with `value` in one row of an input."""
    x = normal(generator, 3, 17)
    x[1, 5] = value
    weight, labels = normal(generator, 17, 7), torch.tensor([3, 0, 16])
    yield _Special("matmul", torch.matmul, (x, weight))
    yield _Special("linear", lambda a, b: functional.linear(a, b.mT), (x, weight))
    yield _Special("bmm", torch.bmm, (x[None], weight[None]))
    yield _Special("tanh", torch.tanh, (x,))
    yield _Special("softmax", lambda a: torch.softmax(a, -1), (x,))
    yield _Special("sum", lambda a: a.sum(-1), (x,))
    yield _Special("mean", lambda a: a.mean(-1), (x,))
    yield _Special("layer_norm", lambda a: functional.layer_norm(a, (17,), eps=EPSILON), (x,))
    yield _Special("embedding", lambda a: functional.embedding(torch.tensor([0, 1, 2, 1]).to(a.device), a), (x,))
    yield _Special("cross_entropy", lambda a, b: functional.cross_entropy(a, b, reduction="none"), (x, labels))
    yield _Special("clip_grad_norm_", _clipped, (x,))
    if math.isnan(value):
        # The formula has infinity times 0 for -inf, and torch's own vectorised code for inf, too.
        yield _Special("gelu-erf", functional.gelu, (x,))
        yield _Special("gelu-tanh", lambda a: functional.gelu(a, approximate="tanh"), (x,))


def _clipped(gradient: torch.Tensor) -> torch.Tensor:
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    return nn.utils.clip_grad_norm_([parameter], 1.0)


def check_special(values: tuple[float, ...], dtype: str, device: Device) -> Passed:
    """Compares where results are NaN and infinite with torch's in float64 on the host."""
    numerics = promised(dtype, device)
    missing, checked = [], 0
    for value in values:
        for special in _specials(value, device.generator()):
            inputs = [one.to(numerics.dtype) if one.is_floating_point() else one for one in special.inputs]
            try:
                with implemented(special.name):
                    result = special.call(*(place(device.backend, one) for one in inputs))
            except UnsupportedError:
                missing.append(special.name)
                continue
            on_device(special.name, device.backend, result)
            want = special.call(*special.inputs)
            (found,) = device.read(result)
            for kind, test in (("NaN", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
                if not torch.equal(test(found), test(want)):
                    raise ViolationError(
                        f"{special.name} of a row with {value:g}: {int(test(found).sum())} of {want.numel()} results "
                        f"are {kind}, expected {int(test(want).sum())}"
                    )
            checked += 1
    return _passed(checked, missing)


def check_constant_rows(dtype: str, device: Device) -> Passed:
    """The variance of these rows is 0, and a formula of one pass may make it negative.

    The results are not compared: the epsilon is so small that they are the rounding of the mean, magnified.
    """
    numerics = promised(dtype, device)
    x = (0.1 * normal(device.generator(), 127, 1)).expand(127, 768).to(numerics.dtype)
    with implemented("layer_norm"):
        result = functional.layer_norm(place(device.backend, x), x.shape[-1:], eps=EPSILON)
    on_device("layer_norm", device.backend, result)
    (found,) = device.read(result)
    check_form("layer_norm", found, x.shape, numerics.dtype)
    wrong = int((~found.isfinite()).sum())
    if wrong:
        raise ViolationError(f"{wrong} of {found.numel()} results of rows of equal values are no finite numbers")
    return Passed()


def check_subnormal(dtype: str, device: Device) -> Passed:
    """A subnormal number stays what it is or becomes 0, and nothing else."""
    numerics = promised(dtype, device)
    limits = torch.finfo(numerics.dtype)
    x = torch.full((3, 17), limits.tiny / 4, dtype=torch.float64).to(numerics.dtype)
    one = torch.eye(17, dtype=numerics.dtype)
    placed, identity = place(device.backend, x), place(device.backend, one)
    calls: tuple[tuple[str, Callable[[], torch.Tensor]], ...] = (
        ("add", lambda: placed + 0.0),
        ("mul", lambda: placed * 1.0),
        ("matmul", lambda: placed @ identity),
        ("sum", lambda: torch.stack((placed, torch.zeros_like(placed))).sum(0)),
    )
    flushed, missing = [], []
    for name, call in calls:
        try:
            with implemented(name):
                (found,) = device.read(call())
        except UnsupportedError:
            missing.append(name)
            continue
        if torch.equal(found, torch.zeros_like(x)):
            flushed.append(name)
        elif not torch.equal(found, x):
            raise ViolationError(f"{name}: {limits.tiny / 4:.3g} becomes {float(found.flatten()[0]):.3g}")
    words = f"flushed to 0 by {', '.join(flushed)}" if flushed else "kept"
    return _passed(len(calls) - len(missing), missing, words)


def check_cast(dtype: str, device: Device) -> Passed:
    """Casts float32 values that lie in the middle of two values of `dtype`, and those just below and above."""
    device.policy(dtype)
    narrow: torch.dtype = getattr(torch, dtype)
    spacing, step = torch.finfo(narrow).eps, torch.finfo(torch.float32).eps
    middle = 1.0 + (torch.arange(round(1 / spacing)) + 0.5) * spacing
    ones = torch.cat((middle - step, middle, middle + step))
    x = torch.cat((ones, -ones, ones / 512))
    with implemented("to"):
        result = place(device.backend, x).to(narrow)
    (found,) = device.read(result)
    check_form("float32 values", found, x.shape, narrow)
    # In the middle, some devices round away from 0 instead of to the even value.
    farther = (found.double() - x.double()).abs() > (x.double().to(narrow).double() - x.double()).abs()
    if farther.any():
        number = int(farther.int().argmax())
        raise ViolationError(
            f"{int(farther.sum())} of {len(x)} values aren't rounded to the nearest: {float(x[number]):.9g} becomes "
            f"{float(found[number]):.9g}"
        )
    return Passed()


def _passed(checked: int, missing: list[str], words: str = "", lacks: str = "") -> Passed:
    """Names the operators that the device doesn't have, besides what the check `lacks` on every device.

    Raises:
        UnsupportedError: It has none of them.
    """
    lacking = f"not implemented: {', '.join(dict.fromkeys(missing))}" if missing else ""
    if not checked:
        raise UnsupportedError(lacking)
    return Passed(None, words, "; ".join(part for part in (lacking, lacks) if part))
