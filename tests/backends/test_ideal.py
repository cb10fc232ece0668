"""The model of an arithmetic that parity measures by: it trains, rounds as told, and draws again."""

from __future__ import annotations

import pytest
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
        get_backend("ideal").cast_policy("int8")


def test_error_budgets_name_the_arithmetic_and_nothing_of_the_device() -> None:
    cpu = get_backend("cpu")
    assert cpu.error_budget(cpu.cast_policy("bfloat16", strict=True)).label == "ideal bfloat16"
    assert "strict_dtype=true" in draw_settings(cpu.error_budget(cpu.cast_policy("bfloat16", strict=True)))[0]
    in_float32 = CastPolicy("bfloat16", "bfloat16", "float32", "float32", "no units")
    assert cpu.error_budget(in_float32).label == "ideal bfloat16 (computed in float32)"
    assert "strict_dtype=false" in draw_settings(cpu.error_budget(in_float32))[0]
    tt = get_backend("tt-emulated", {"tt": {"math_fidelity": "hifi2", "emulation": "exact"}})
    found = tt.error_budget(tt.cast_policy("bfloat16"))
    assert found.label == "tt-emulated bfloat16 (math_fidelity hifi2)"
    assert TtOptions.model_validate(dict(found.options)).emulation == "fast"


def test_each_draw_is_a_run_of_its_own_unless_another_would_be_the_same() -> None:
    names = [f"backend=ideal:{draw}" for draw in range(DRAWS)]
    assert [sets[0] for sets in draw_settings(ErrorBudget("ideal", "float32"))] == names
    lofi = ErrorBudget("tt-emulated", "bfloat16", {"math_fidelity": "lofi"}, draws=False, head_dtype="bfloat16")
    (only,) = draw_settings(lofi)
    assert {"backend=tt-emulated", "tt.math_fidelity=lofi", "head_dtype=bfloat16"} <= set(only)
