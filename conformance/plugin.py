"""A pytest plugin with the options of ``pytest --pyargs isotrain.conformance --backend NAME``.

pytest loads it in every session of an environment that isotrain is installed in. It adds its options only where these
checks are asked for, so that they can't collide with those of other plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

TESTS = ("isotrain.conformance", "isotrain.conformance.test_conformance")
# --json is pytest-json's.
JSON = "--conformance-json"


def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Adds the options. Conftest files and this hook are the last that can."""
    if not any(argument.partition("::")[0] in TESTS for argument in args):
        return
    group = parser.getgroup("isotrain", "conformance of a device")
    group.addoption("--backend", help="The device.")
    group.addoption("--set", action="append", default=[], metavar="KEY=VALUE", help="An option of the backend.")
    group.addoption("--mode", help="test, grad or perf; test and grad by default.")
    group.addoption("--only", metavar="PATTERN", help="The checks with this in their names.")
    group.addoption("--seed", type=int, default=0, help="Of the values that are computed with.")
    group.addoption("--time-limit", type=float, help="Seconds for each check.")
    group.addoption(JSON, metavar="FILE", help="Write the result there, anew after each check.")
