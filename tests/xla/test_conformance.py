"""The conformance suite's operations, encoder and training on PJRT's CPU device."""

from __future__ import annotations

from typing import Any

import pytest
from isotrain.conformance import encoder, operations, training
from support.mutated_training import failing


# bfloat16 is computed in float32 here.
@pytest.mark.slow
def test_operations_are_within_their_error_budget(backend: Any) -> None:
    assert failing(backend, (case for case in operations.cases() if case.dtype in ("", "float32"))) == {}


@pytest.mark.slow
def test_encoders_are_within_their_error_budget(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "LENGTHS", (63, 1, 2, 64, 3, 17))
    monkeypatch.setattr(encoder, "MAX_TOKENS", 64)
    assert failing(backend, (case for case in encoder.cases() if case.dtype in ("", "float32"))) == {}


@pytest.mark.slow
def test_training_is_within_its_error_budget(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WHOLE_MODELS", ("bert",))
    monkeypatch.setattr(training, "ACCUMULATING", ("",))
    assert failing(backend, (case for case in training.cases() if case.dtype in ("", "float32"))) == {}
