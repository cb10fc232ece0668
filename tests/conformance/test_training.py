"""The group "training": right devices pass, and each broken one is caught by the check of its clause."""

from __future__ import annotations

from dataclasses import replace

import pytest
from isotrain.backends import get_backend
from isotrain.conformance import training
from isotrain.conformance.training import short_run
from isotrain.kernels.cpu.library import why_not
from support.mutated_training import TRAININGS, failing

# Checks that take seconds. A broken device is tried with those that must catch it.
SLOW = ("whole-model", "adapters", "checkpointing", "torch-compile-step", "trained-kernel")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of fewer models, for runs of many devices."""
    for name, value in (("STEPS", 6), ("ACCUMULATED_STEPS", 6), ("WHOLE_MODELS", ("bert",)), ("ACCUMULATING", ("",))):
        monkeypatch.setattr(training, name, value)


def test_the_host_passes_with_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert training.STEPS == 30
    cases = [
        case for case in training.cases() if case.name in ("training/head/float32", "training/whole-model/float32")
    ]
    assert len(cases) == 2
    assert failing(get_backend("cpu"), cases) == {}


def test_losses_are_judged_by_those_of_float32_on_the_host() -> None:
    """What the host's own error is allowed besides."""
    made = short_run.recipe(0)
    host, exact = (training._on_host(made, dtype, 6) for dtype in ("float32", "float64"))

    def shares(found: short_run.Outcome) -> list[float]:
        checks = training._run_checks("head", exact, found, [host], 2.0, "float32", host)
        return [check.ratio for check in checks if "cpu:float32" in check.quantity]

    assert shares(host) == [0.0, 0.0]
    assert all(0.0 < share <= 1.0 for share in shares(exact))
    assert all(share > 1.0 for share in shares(replace(host, losses=host.losses * 1.001)))


def test_the_host_passes() -> None:
    assert failing(get_backend("cpu"), training.cases()) == {}


@pytest.mark.parametrize("name", ["tt-emulated", "ideal"])
def test_right_devices_pass(name: str) -> None:
    assert failing(get_backend(name), (case for case in training.cases() if case.dtype in ("", "float32"))) == {}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_broken_device_is_caught_by_the_check_of_its_clause(name: str) -> None:
    mutant = TRAININGS[name]
    if "trained-kernel" in mutant.caught and why_not() is not None:
        pytest.skip(why_not() or "")
    tried = {
        case.name: case.subject
        for case in training.cases()
        if case.dtype in ("", "float32") and (case.subject not in SLOW or case.subject in mutant.caught)
    }
    found = failing(mutant.make(), [case for case in training.cases() if case.name in tried])
    assert {tried[name] for name in found} == set(mutant.caught), found
    assert any(mutant.said in detail for detail in found.values())


def test_every_check_catches_a_broken_device() -> None:
    assert {case.subject for case in training.cases()} == {
        one for mutant in TRAININGS.values() for one in mutant.caught
    }
