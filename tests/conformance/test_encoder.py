"""The group "encoder": right devices pass, and each broken one is caught by the check of its clause."""

from __future__ import annotations

import pytest
from isotrain.backends import get_backend
from isotrain.conformance import encoder
from support.mutated_training import ENCODERS, SMALLEST_LARGE, failing

# It takes seconds. Only the device that must be caught by it is tried.
COMPILED = "compiled-kernel"


@pytest.fixture
def _shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of up to 64 tokens, and few of them, for runs of many devices."""
    monkeypatch.setattr(encoder, "LENGTHS", (63, 1, 2, 64, 3, 17))
    monkeypatch.setattr(encoder, "MAX_TOKENS", 64)
    monkeypatch.setattr(encoder, "large_tokens", lambda _: SMALLEST_LARGE)


def test_the_host_passes() -> None:
    assert failing(get_backend("cpu"), encoder.cases()) == {}


@pytest.mark.usefixtures("_shorter")
@pytest.mark.parametrize("name", ["tt-emulated", "ideal"])
def test_right_devices_pass(name: str) -> None:
    assert failing(get_backend(name), encoder.cases()) == {}


@pytest.mark.usefixtures("_shorter")
@pytest.mark.parametrize("name", ENCODERS)
def test_a_broken_device_is_caught_by_the_check_of_its_clause(name: str) -> None:
    mutant = ENCODERS[name]
    tried = {
        case.name: case.subject
        for case in encoder.cases()
        if case.dtype in ("", "float32") and (case.subject != COMPILED or case.subject in mutant.caught)
    }
    found = failing(mutant.make(), [case for case in encoder.cases() if case.name in tried])
    assert {tried[name] for name in found} == set(mutant.caught), found
    assert any(mutant.said in detail for detail in found.values())


def test_every_check_catches_a_broken_device() -> None:
    assert {case.subject for case in encoder.cases()} == {one for mutant in ENCODERS.values() for one in mutant.caught}
