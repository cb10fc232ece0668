"""``pytest --pyargs isotrain.conformance --backend NAME``: each check of a backend as a test.

Imports are absolute, since pytest names this module by its folder, which may have any name in a checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.runs.files import check_place, make_folders
from isotrain.benchmarks.outcome.conformance import CheckResult
from isotrain.conformance.case import Case
from isotrain.conformance.catalogue import cases
from isotrain.conformance.plugin import JSON
from isotrain.conformance.run import Suite, Target, choose

# pytest's exit code for options that can't be used is 4.
UNUSABLE = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a test of each check that the options choose."""
    option = metafunc.config.getoption
    try:
        if option("--backend") is None:
            raise UserError("no backend is given; add --backend NAME")
        if option("--mode") == "support":
            raise UserError("--mode support judges nothing, so it has no tests; use isotrain conformance")
        chosen = choose(cases(), option("--mode"), option("--only"))
    except UserError as error:
        pytest.exit(str(error), UNUSABLE)
    metafunc.parametrize("case", chosen, ids=lambda case: case.name)


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    option = request.config.getoption
    try:
        if option(JSON) is not None:
            check_place(Path(option(JSON)), JSON)
            make_folders(Path(option(JSON)).parent, JSON)
        target = Target.of(option("--backend"), option("--set"), option("--seed"), option("--time-limit"))
        with Suite(target) as opened:
            opened.open()
            yield opened
    except UserError as error:
        pytest.exit(str(error), UNUSABLE)


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest, suite: Suite) -> Callable[[CheckResult], None]:
    """Writes the results so far, as the command does after each check."""
    name: str | None = request.config.getoption(JSON)
    path = None if name is None else Path(name)
    total = sum(getattr(item, "function", None) is test_conformance for item in request.session.items)
    checks: list[CheckResult] = []

    def add(check: CheckResult) -> None:
        checks.append(check)
        suite.keep(checks, total, path)

    suite.keep(checks, total, path)
    return add


def test_conformance(case: Case, suite: Suite, keep: Callable[[CheckResult], None]) -> None:
    check = suite.run(case)
    keep(check)
    if check.status == "unsupported":
        pytest.skip(check.detail)
    if check.is_broken:
        pytest.fail(f"{check.clause}\n{check.status}: {check.detail}", pytrace=False)
