"""Cases of the group "operations"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ...backends import DTYPES
from ..case import Case, Device, Mode, Passed
from . import dropout, edges, updates
from .operation import Operation, check_gradients, check_result
from .products import LONG_PRODUCTS, PRODUCTS
from .rows import HUGE_LOGITS, LONG_ROWS, ROW_OPERATIONS

# Optimizers update parameters that are kept in the accumulate dtype, which is one of these.
WIDE_DTYPES = ("float32", "float64")
NARROW_DTYPES = ("bfloat16", "float16")

Check = Callable[[str, Device], Passed]


def cases() -> list[Case]:
    """Every case of this group."""
    return [case for dtype in DTYPES for case in _of(dtype)]


def _of(dtype: str) -> Iterator[Case]:
    for operation in (*PRODUCTS, *ROW_OPERATIONS, *LONG_PRODUCTS, *LONG_ROWS, *HUGE_LOGITS):
        yield from _of_operation(operation, dtype)
    yield _case(
        "dropout",
        "dropout keeps values at its rate, scales them by 1 / (1 - rate), and draws a new mask in every call",
        dropout.check_dropout,
        dtype,
    )
    yield _case(
        "dropout", "the gradient of dropout has the mask and scale of its values", dropout.check_gradient, dtype, "grad"
    )
    yield _case(
        "attention-dropout",
        "scaled_dot_product_attention drops probabilities as dropout does values, and its gradient has the same mask",
        dropout.check_attention,
        dtype,
    )
    if dtype in WIDE_DTYPES:
        yield _case(
            "clip_grad_norm_",
            "gradients are clipped by their norm, within the error budget",
            updates.check_clipping,
            dtype,
        )
        yield _case(
            "batch_norm-statistics",
            "batch normalisation updates its running mean and variance, within the error budget",
            updates.check_running_statistics,
            dtype,
        )
        for optimizer in updates.OPTIMIZERS:
            clause = f"{optimizer.name}: {optimizer.definition} equal float64's within the error budget"
            yield _case(optimizer.name, clause, partial(updates.check_optimizer, optimizer), dtype)
        yield _case(
            "update-bounds",
            "optimizers write their parameters, clipping writes its gradients, and nothing else",
            edges.check_update_bounds,
            dtype,
        )
    yield _case("bounds", "operators write their output and nothing else", edges.check_bounds, dtype)
    yield _case(
        "nan", "a NaN is passed on, and only to what depends on it", partial(edges.check_special, (edges.NAN,)), dtype
    )
    yield _case(
        "layer_norm-constant-rows",
        "LayerNorm of rows whose values are equal gives finite numbers",
        edges.check_constant_rows,
        dtype,
    )
    infinities = (edges.INF, -edges.INF)
    yield _case("inf", "infinities give what IEEE 754 says", partial(edges.check_special, infinities), dtype)
    if dtype in NARROW_DTYPES:
        yield _case("cast", "float32 values become the nearest ones of the dtype", edges.check_cast, dtype)
    yield _case("subnormal", "subnormal numbers are kept, or flushed to 0", edges.check_subnormal, dtype)


def _of_operation(operation: Operation, dtype: str) -> Iterator[Case]:
    words = f"{operation.name}: {operation.definition}"
    clause = f"{words}, equals float64's within the error budget, and changes no input"
    yield _case(operation.name, clause, partial(check_result, operation), dtype)
    if operation.gradients is not None:
        clause = f"the gradients of {words}, equal float64's within the error budget"
        yield _case(operation.name, clause, partial(check_gradients, operation), dtype, "grad")


def _case(subject: str, clause: str, check: Check, dtype: str, mode: Mode = "test") -> Case:
    return Case("operations", subject, clause, partial(check, dtype), dtype, mode)
