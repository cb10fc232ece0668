"""The model of an arithmetic that parity measures by: it trains, rounds as told, and draws again."""

from __future__ import annotations

import pytest
import torch
from isotrain import UserError
from isotrain.backends import CastPolicy, ErrorBudget, get_backend
from isotrain.backends.tt.options import TtOptions
from isotrain.benchmarks.parity.run import draw_settings
from isotrain.benchmarks.parity.trace import DRAWS


def test_what_is_computed_follows_from_what_was_asked_not_from_the_host() -> None:
    """strict: the dtype's own products. Without: those of a device that has no units for it."""
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        strict, wide = (get_backend("ideal").cast_policy(dtype, strict=strict) for strict in (True, False))
        assert (strict.param, strict.compute) == (dtype, dtype)
        assert (wide.param, wide.compute) == (dtype, dtype if dtype in ("float32", "float64") else "float32")
    with pytest.raises(UserError, match="allowed are float32"):
        get_backend("ideal").cast_policy("int4")


def test_error_budgets_name_the_arithmetic_and_nothing_of_the_device() -> None:
    cpu = get_backend("cpu")
    assert cpu.error_budget(cpu.cast_policy("bfloat16", strict=True)).label == "ideal bfloat16"
    assert "strict_dtype=true" in draw_settings(cpu.error_budget(cpu.cast_policy("bfloat16", strict=True)))[0]
    in_float32 = CastPolicy("bfloat16", "bfloat16", "float32", "float32", "no units")
    assert cpu.error_budget(in_float32).label == "ideal bfloat16 (computed in float32)"
    assert "strict_dtype=false" in draw_settings(cpu.error_budget(in_float32))[0]
    assert cpu.error_budget(cpu.cast_policy("int8")).label == "ideal int8"
    tt = get_backend("tt-emulated", {"tt": {"math_fidelity": "hifi2", "emulation": "exact"}})
    found = tt.error_budget(tt.cast_policy("bfloat16"))
    assert found.label == "tt-emulated bfloat16 (emulate all, math_fidelity hifi2)"
    assert TtOptions.model_validate(dict(found.options)).emulation == "fast"


def test_each_draw_is_a_run_of_its_own_unless_another_would_be_the_same() -> None:
    names = [f"backend=ideal:{draw}" for draw in range(DRAWS)]
    assert [sets[0] for sets in draw_settings(ErrorBudget("ideal", "float32"))] == names
    lofi = ErrorBudget("tt-emulated", "bfloat16", {"math_fidelity": "lofi"}, draws=False, head_dtype="bfloat16")
    (only,) = draw_settings(lofi)
    assert {"backend=tt-emulated", "tt.math_fidelity=lofi", "head_dtype=bfloat16"} <= set(only)


def test_every_operation_is_rounded_at_random_but_those_that_compute_nothing() -> None:
    backend = get_backend("ideal")
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    lowest = torch.full((32, 32), torch.finfo(torch.float32).min)
    computed = (lambda: x @ x, lambda: x * 3, x.exp, lambda: x.sum(1), lambda: x.softmax(1), lambda: x.clone().mul_(3))
    for operation in computed:
        exact = operation().double()
        with backend.rounding():
            first, second = operation(), operation()
        assert not torch.equal(first, second)
        assert torch.allclose(first.double(), exact, rtol=2e-7, atol=0)
    moved = (x.t, x.clone, x.relu, x.neg, x.bfloat16, lambda: x[3:], lambda: torch.cat([x, x]), lambda: x.max(0).values)
    for operation in (*moved, lambda: (x > 0).float() + 1, lambda: x.where(x > 0, 0.5)):
        with backend.rounding():
            assert torch.equal(operation(), operation())
    with backend.rounding():
        assert bool((lowest * 1.0).isfinite().all())
    with get_backend("cpu").rounding():
        assert torch.equal(x @ x, x @ x)


def test_gradients_are_rounded_too_and_linear_layers_once() -> None:
    """A layer of one input has one product, with an error of half a unit by itself, and 1 unit by random rounding."""
    backend = get_backend("ideal")
    layer = backend.place(torch.nn.Linear(1, 100_000, bias=False))
    x = torch.tensor([[0.7]])
    exact = layer.weight.detach().double().squeeze(1) * x.double().squeeze()
    found = []
    for _ in range(2):
        layer.zero_grad()
        with backend.rounding():
            result = layer(x).squeeze(0)
            result.sin().sum().backward()
        found.append(layer.weight.grad)
        errors = (result.detach().double() - exact).abs() / exact.abs()
        assert 1.0 < float(errors.max()) / torch.finfo(torch.float32).eps < 1.5 + 1e-6
    assert not torch.equal(*found)
