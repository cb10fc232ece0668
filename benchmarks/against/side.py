"""What a checkout says of itself: ``python -m isotrain.benchmarks.against.side``, run from that checkout."""

from __future__ import annotations

import sys
from typing import Any

from ..harness.answer import answer
from ..harness.document import Part, Spec
from ..harness.environment import PACKAGE_ROOT
from ..harness.plan import Options, make_plan
from ..harness.turns import PROTOCOL
from ..outcome.model import BENCH

COMMAND = (sys.executable, "-P", "-m", "isotrain.benchmarks.against.side")


class SideSpec(Spec):
    options: Options


class Described(Part):
    """protocol, results: what its workers speak and write. config, targets: what it makes of the options."""

    root: str
    protocol: int
    results: str
    config: dict[str, Any]
    targets: list[str]


def describe(spec: SideSpec) -> Described:
    return Described(
        root=str(PACKAGE_ROOT),
        protocol=PROTOCOL,
        results=BENCH,
        config=spec.options.config(),
        targets=[target.label for target in make_plan(spec.options).targets],
    )


if __name__ == "__main__":
    sys.exit(answer(SideSpec, describe))
