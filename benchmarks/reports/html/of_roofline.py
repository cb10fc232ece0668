"""Each target on the roofline of its own run, from the measured matrix product and memory copy. Rule 11.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....albert_core.output.charts import REFERENCE, Axis, Line, LineChart, Point
from ....albert_core.terminal.text import figure
from ...harness.document import Peaks
from ...outcome.model import Bench, MeasuredTarget
from ..blocks import Block, Column, Table, Words
from ..views.bench import peak_words, target_style
from ..views.columns import BOUND, COPY, INTENSITY, REACHED, ROOF, ROOF_SHARE
from ..views.labels import bench_tags, titled, verdict
from .loading import Found
from .of_bench import heading

# The factor by which the chart extends beyond its points.
ROOM = 2.0


def roofline(found: Found[Bench], key: str) -> list[Block]:
    """A chart and a table for each device and dtype, and the names of targets without an intensity."""
    groups = _by_device(found.document.measured)
    blocks: list[Block] = [heading(found)] if groups else []
    for place, targets in enumerate(groups):
        blocks += _roofline(found.document, targets, f"{key}-{place}")
    return blocks


def _by_device(targets: Sequence[MeasuredTarget]) -> list[list[MeasuredTarget]]:
    """Groups of targets with the same roofline."""
    groups: dict[tuple[str, str], list[MeasuredTarget]] = {}
    for target in targets:
        if target.real:
            groups.setdefault((target.backend, target.peaks.dtype), []).append(target)
    return list(groups.values())


def _roofline(bench: Bench, targets: Sequence[MeasuredTarget], key: str) -> list[Block]:
    """One device's roofline with its targets, or only the peaks if no target has an intensity."""
    first = targets[0]
    placed = [target for target in targets if target.roofline is not None]
    blocks: list[Block] = []
    if placed:
        roofs = _roofs(first.peaks, _fastest(placed, first.peaks), [_place(target)[0] for target in placed])
        lines = [*roofs, *(_placed(target, style) for style, target in enumerate(placed))]
        across, up = _spans(placed, roofs)
        blocks.append(
            LineChart(
                key,
                titled(f"Roofline of {first.backend} in {first.peaks.dtype}", bench_tags(bench)),
                "Roofs: the matrix product and the memory copy, measured in the same run. Whiskers: 95 % intervals. "
                "Hollow: invalid.",
                Axis("FLOP/byte", log=True, span=across),
                Axis("TFLOP/s", log=True, span=up),
                tuple(lines),
            )
        )
        blocks.append(_places(bench, placed))
    lacking = [target.name for target in targets if target.roofline is None]
    if lacking:
        blocks.append(Words(f"Not placed, for their result has no arithmetic intensity: {', '.join(lacking)}"))
    blocks.append(Words(peak_words(first.backend, first.peaks, first.real)))
    return blocks


def _spans(placed: Sequence[MeasuredTarget], roofs: Sequence[Line]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of intensities and rates in the chart, which include the targets and the roofs above them."""
    points = [_place(target) for target in placed]
    across = (min(x for x, _ in points) / ROOM, max(x for x, _ in points) * ROOM)
    above = [y for roof in roofs for x, y in roof.points if y is not None and across[0] <= x <= across[1]]
    reached = [y for _, y in points]
    return across, (min(reached) / ROOM, max(*reached, *above) * 1.25)


def _fastest(placed: Sequence[MeasuredTarget], peaks: Peaks) -> float:
    """GB/s of the fastest copy that a target is compared with, since a step's traffic may fit into a cache."""
    known = [target.roofline.bandwidth_gbps for target in placed if target.roofline is not None]
    return max(peaks.copy_gbps, *known)


def _roof(name: str, tflops: float, gbps: float, placed: Sequence[float], style: int) -> Line:
    """A roof over the targets' intensities, with its ridge if that is among them."""
    low, high, ridge = min(placed) / ROOM, max(placed) * ROOM, tflops * 1e3 / gbps
    points: list[Point] = [(x, min(tflops, gbps * x / 1e3)) for x in sorted({low, high, min(max(ridge, low), high)})]
    return Line(name, tuple(points), style, plain=style != REFERENCE, marked=False)


def _roofs(peaks: Peaks, fastest: float, placed: Sequence[float]) -> list[Line]:
    lines = [
        _roof(
            f"measured: {figure(peaks.matmul_tflops)} {peaks.rate}, {figure(peaks.copy_gbps)} GB/s",
            peaks.matmul_tflops,
            peaks.copy_gbps,
            placed,
            REFERENCE,
        )
    ]
    if peaks.unit is not None:
        name = f"{peaks.unit.unit} unit by itself: {figure(peaks.unit.tflops)} {peaks.rate}"
        lines.append(_roof(name, peaks.unit.tflops, peaks.copy_gbps, placed, 1))
    if peaks.vendor_tflops is not None and peaks.vendor_gbps is not None:
        name = f"vendor's figures: {figure(peaks.vendor_tflops)} {peaks.rate}, {figure(peaks.vendor_gbps)} GB/s"
        lines.append(_roof(name, peaks.vendor_tflops, peaks.vendor_gbps, placed, 2))
    if fastest > peaks.copy_gbps:
        limit = max(peaks.matmul_tflops, peaks.unit.tflops if peaks.unit is not None else 0.0)
        name = f"fastest copy of as many bytes as a step moves: {figure(fastest)} GB/s"
        lines.append(_roof(name, limit, fastest, placed, 3))
    return lines


def _place(target: MeasuredTarget) -> tuple[float, float]:
    """FLOP/byte, and the TFLOP/s reached."""
    assert target.roofline is not None, "placed targets only"
    return target.roofline.intensity_flop_per_byte, target.roofline.share * target.roofline.roof_tflops


def _placed(target: MeasuredTarget, style: int) -> Line:
    x, reached = _place(target)
    # All rates of a target are work over the same seconds, so their intervals are proportional.
    speed = target.figures.hardware_tflops
    return Line(
        target.name if target.valid else f"{target.name} (invalid)",
        ((x, reached),),
        style,
        invalid=not target.valid,
        lows=(reached * speed.low / speed.median,),
        highs=(reached * speed.high / speed.median,),
    )


def _places(bench: Bench, placed: Sequence[MeasuredTarget]) -> Table[MeasuredTarget]:
    columns = (
        Column[MeasuredTarget]("target", lambda target: target.name, numeric=False),
        *(INTENSITY, REACHED, ROOF, ROOF_SHARE, COPY, BOUND),
        Column[MeasuredTarget]("valid", verdict, numeric=False),
    )
    return Table(titled("Targets on the roofline", bench_tags(bench)), columns, placed, target_style)
