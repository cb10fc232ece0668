"""Benchmarks, parity and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..albert_core.config.backend import backend_options, resolved_backend
from ..albert_core.config.workload_name import names_workload
from ..albert_core.terminal.console import say
from ..benchmarks.harness.plan import (
    DEFAULT_WORKLOADS,
    LAYOUTS,
    MODULE_WORKLOADS,
    Options,
    make_plan,
    with_baselines,
    with_quick,
)
from ..benchmarks.outcome.model import Bench, Target
from ..benchmarks.outcome.parity import Candidate, Parity
from ..benchmarks.parity.sides import STEPS
from ..benchmarks.reports.blocks import Block
from ..benchmarks.reports.views.bench import bench_view
from ..benchmarks.reports.views.parity import parity_view
from .shown import Shown

Value = TypeVar("Value", str, int)


@dataclass(frozen=True)
class BenchResult(Shown):
    """What `bench` measured. path: its file, if it was written."""

    result: Bench
    path: Path | None

    @property
    def valid(self) -> bool:
        """Whether every figure may be used."""
        return self.result.status == "complete" and self.result.valid

    @property
    def targets(self) -> Sequence[Target]:
        return self.result.targets

    def _blocks(self) -> list[Block]:
        return bench_view(self.result)

    def _page(self) -> str:
        from ..benchmarks.reports.html.write import document_page

        return document_page(self.result, "bench")


@dataclass(frozen=True)
class ParityResult(Shown):
    """Whether devices train alike. path: the result's file; the traces lie beside it."""

    result: Parity
    path: Path

    @property
    def passed(self) -> bool:
        """Whether every candidate passes."""
        return all(one.verdict == "pass" for one in self.candidates)

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.result.candidates

    def _blocks(self) -> list[Block]:
        return parity_view(self.result)

    def _page(self) -> str:
        from ..benchmarks.reports.html.write import document_page

        return document_page(self.result, f"parity against {self.result.reference.label}")


def bench(
    model: str = "random:albert-base-v2",
    *,
    backend: str | Sequence[str] = "cpu",
    workload: str | Sequence[str] = DEFAULT_WORKLOADS,
    layout: str | Sequence[str] = LAYOUTS,
    kernel: str | Sequence[str] = "auto",
    batch_size: int | Sequence[int] = 8,
    dtype: str | Sequence[str] = "bfloat16",
    vs: Sequence[str] = (),
    quick: bool = False,
    out: str | Path | None = None,
    sets: Sequence[str] = (),
    **how: Any,
) -> BenchResult:
    """Measures as `isotrain bench` does: every target in fresh processes, interleaved.

    Args:
        model: An encoder, or a workload of one's own as FILE.py:NAME.
        vs: Baselines to compare with.
        quick: A smoke run, no result.
        out: A .json file or folder for the result. Without it, nothing is written.
        sets: Options of backends, ``tt.arch=...``.
        how: The other attributes of `Options`: processes, blocks, seconds, threads, seed, dataset, max_length, ...

    Raises:
        UserError: The options can't be used.
        KeyboardInterrupt: It was interrupted before a target was complete.
    """
    from .. import UserError
    from ..benchmarks.bench import run_bench, watcher_for_terminal

    unknown = sorted(how.keys() - Options.__dataclass_fields__.keys())
    if unknown:
        allowed = ", ".join(Options.__dataclass_fields__)
        raise UserError(f"bench got {unknown[0]}={how[unknown[0]]!r}; allowed are {allowed}")
    own = backend_options(list(sets))
    module = names_workload(model)
    if module and workload == DEFAULT_WORKLOADS:
        workload = MODULE_WORKLOADS
    options = Options(
        backends=tuple(resolved_backend(name, own) for name in _several(backend)),
        model=model,
        module=module,
        workloads=_several(workload),
        layouts=_several(layout),
        kernels=_several(kernel),
        batch_sizes=_several(batch_size),
        dtypes=_several(dtype),
        backend_options=own,
    )
    options = with_baselines(options, list(vs)) if vs else options
    options = replace(with_quick(options) if quick else options, **how)
    plan = make_plan(options)
    with watcher_for_terminal(plan) as watcher:
        outcome = run_bench(options, out=None if out is None else Path(out), write=out is not None, watcher=watcher)
    if not isinstance(outcome.result, Bench):
        raise KeyboardInterrupt("interrupted before a target was complete; nothing was written")
    return BenchResult(outcome.result, outcome.path)


def parity(
    config: str | Path,
    candidates: str | Sequence[str],
    *,
    reference: str = "cpu:float64",
    steps: int | None = STEPS,
    out: str | Path | None = None,
    sets: Sequence[str] = (),
    pythons: Mapping[str, str] | None = None,
    seeds: int = 1,
) -> ParityResult:
    """Trains the same run on every side, as `isotrain parity` does, and judges the candidates.

    Args:
        config: A YAML file, a packaged configuration by name, or a workload of one's own as FILE.py:NAME.
        candidates: ``cpu:bfloat16``, ``tt:hifi2+bfp_bf8``, ...
        steps: Optimizer steps; None runs all.
        out: An empty or new folder for traces and the result, by default one under parity/.
        pythons: The interpreters of backends with environments of their own.
        seeds: Runs this many seeds and tests the final figures for equivalence.

    Raises:
        UserError: A side or the configuration can't be used.
    """
    from ..benchmarks.outcome.build import write_result
    from ..benchmarks.parity.check import check, trace_folder
    from ..benchmarks.parity.run import Comparison, run_parity
    from ..benchmarks.parity.sides import parse_side

    comparison = Comparison(
        config=str(config),
        reference=parse_side(reference),
        candidates=tuple(parse_side(text, pythons or ()) for text in _several(candidates)),
        out=trace_folder(None if out is None else Path(out), str(config)),
        sets=tuple(sets),
        steps=steps,
        seeds=seeds,
        pythons=pythons,
    )
    check(comparison)
    result = run_parity(comparison, lambda line: say(line, err=True))
    path = comparison.out / "parity.json"
    write_result(result, path)
    return ParityResult(result, path)


def report(folder: str | Path, out: str | Path = "report.html", *, pictures: str | Path | None = None) -> Path:
    """Writes one HTML page of all results and training runs under `folder`, and returns its path.

    Args:
        pictures: A folder for each chart as a PNG file.

    Raises:
        UserError: There is nothing to show, or `out` can't be written.
    """
    from ..benchmarks.reports.html.write import write_report

    return write_report(Path(folder), Path(out), None if pictures is None else Path(pictures)).page


def _several(value: Value | Sequence[Value]) -> tuple[Value, ...]:
    return (value,) if isinstance(value, str | int) else tuple(value)
