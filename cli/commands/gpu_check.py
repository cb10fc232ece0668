"""`isotrain gpu-check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...albert_core.terminal.console import say
from ..exits import Exit
from ..help import panel

_what, _how, _output, _elsewhere = map(panel, ("What is checked", "How thoroughly", "Output", "For another machine"))


def gpu_check(
    backend: Annotated[str, _what(help="Device: cuda (default), cuda:1, or any other backend.")] = "cuda",
    reference: Annotated[
        Path | None, _what(metavar="DIR", help="A float64 trace that judges training; --bundle makes one.")
    ] = None,
    seconds: Annotated[float, _how(help="Time for all stages; each has a share of it.")] = 600.0,
    tiny: Annotated[
        bool, _how("--tiny", help="A dry run of every stage with small models and few texts: --backend cpu --tiny.")
    ] = False,
    out: Annotated[Path, _output(help="Folder of the results. The same one goes on with a check.")] = Path("gpu-check"),
    bundle: Annotated[
        Path | None,
        _elsewhere(
            metavar="DIR",
            help="Make a folder to bring along instead: the program, what it needs beside torch and transformers, the "
            "float64 reference and run.py, which starts the check there.",
        ),
    ] = None,
    python: Annotated[str | None, _elsewhere(help="Python version there, such as 3.12 (default: this one's).")] = None,
) -> None:
    """Check whether a GPU computes right, and how fast it is, in stages that each leave their result.

    The stages are processes of their own: measured peaks; conformance; throughput beside transformers; single
    operators; training end to end; parity with a float64 reference; torch.compile. What fails or takes too long loses
    only its own stage, and the same command goes on with those that have not passed. Exit code 1: one has not.

    Examples:

      isotrain gpu-check --seconds 540 --out results/h200

      isotrain gpu-check --bundle bring --python 3.12
    """
    from ...benchmarks.gpu_check.bundle import make_bundle
    from ...benchmarks.gpu_check.run import run_check
    from ...benchmarks.gpu_check.stages import Asked
    from ...kernels.names import check_range

    check_range("--seconds", seconds, 1, 10**6)
    if bundle is not None:
        make_bundle(bundle, python, tiny, lambda line: say(line, err=True))
        say(f"bundle: {bundle}; there, start: python3 {bundle.name}/run.py --out results")
        return
    _check(reference, python)
    result = run_check(Asked(backend, out, seconds, reference, tiny), say)
    for figure in result.figures:
        say(f"figure: {figure.line()}")
    say(f"results: {out}")
    if not result.passed:
        raise typer.Exit(Exit.FAILED)


def _check(reference: Path | None, python: str | None) -> None:
    from ... import UserError
    from ...benchmarks.parity.trace import check_reference, read_trace

    if python is not None:
        raise UserError(f"--python {python} is for --bundle DIR; give that, too")
    if reference is not None:
        check_reference(read_trace(reference))
