"""``pytest --pyargs isotrain.conformance --backend NAME``: each check of a backend as a test.

Imports are absolute, since pytest names this module by its folder, which may have any name in a checkout.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from isotrain import UserError
from isotrain.albert_core.config.backend import backend_options, resolved_backend
from isotrain.conformance.case import Case
from isotrain.conformance.catalogue import cases
from isotrain.conformance.run import Suite, Target, choose

# pytest's exit code for options that can't be used is 4.
UNUSABLE = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a test of each check that the options choose."""
    option = metafunc.config.getoption
    try:
        if option("--backend") is None:
            raise UserError("no backend is given; add --backend NAME")
        chosen = choose(cases(), option("--mode"), option("--only"))
    except UserError as error:
        pytest.exit(str(error), UNUSABLE)
    metafunc.parametrize("case", chosen, ids=lambda case: case.name)


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    option = request.config.getoption
    try:
        options = backend_options(option("--set"))
        target = Target(
            resolved_backend(option("--backend"), options), options, option("--seed"), option("--time-limit")
        )
        with Suite(target) as opened:
            opened.open()
            yield opened
    except UserError as error:
        pytest.exit(str(error), UNUSABLE)


def test_conformance(case: Case, suite: Suite) -> None:
    check = suite.run(case)
    if check.status == "unsupported":
        pytest.skip(check.detail)
    if check.is_broken:
        pytest.fail(f"{check.clause}\n{check.status}: {check.detail}", pytrace=False)
