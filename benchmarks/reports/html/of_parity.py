"""What a parity result says: verdicts, losses in their tolerance bands, error by layer. Rules 12 to 14."""

from __future__ import annotations

from collections.abc import Sequence

from ....albert_core.output.charts import REFERENCE, Axis, Band, Line, LineChart, Point
from ....albert_core.terminal.text import number, precise
from ....kernels.words import count
from ...outcome.parity import Candidate, LayerError, Parity, Ran
from ..blocks import Block, Heading, Section, Table, Words, figure_columns, word_columns
from .labels import reasons, titled
from .loading import Found, Results
from .text import joined

SIGNS = {"pass": "✓ pass", "drift": "△ drift", "diverged": "✗ diverged", "refused": "! refused", "failed": "! failed"}
# A candidate whose losses span more than this is only to be seen on a logarithmic axis.
WIDE_SPAN = 50.0


def agreement(results: Results) -> Section:
    """Whether the losses agree: each candidate against the float64 reference."""
    section = Section("losses", "Do the losses agree?", folded=True)
    for index, found in enumerate(results.parity):
        section.blocks.extend(_losses(found, str(index)))
    return section


def growth(results: Results) -> Section:
    """Where the error comes from: after every layer, accumulated and local."""
    section = Section("growth", "Error by layer", folded=True)
    for index, found in enumerate(results.parity):
        charts = _growth(found.document, str(index))
        if charts:
            section.blocks.extend([Heading(_against(found.document), found.path), *charts])
    return section


def parity_tags(parity: Parity) -> list[str]:
    """What holds for the figures of a parity result as a whole."""
    sides = [parity.reference, *parity.candidates]
    return [
        words
        for words, said in (
            ("random weights", any(side.random_weights for side in sides)),
            ("partial", parity.status == "partial"),
        )
        if said
    ]


def _against(parity: Parity) -> str:
    return f"Against {parity.reference.name}"


def _losses(found: Found[Parity], index: str) -> list[Block]:
    parity = found.document
    blocks: list[Block] = [Heading(_against(parity), found.path), Words(_what(parity))]
    blocks += reasons((one.name, SIGNS[one.verdict], one.reasons) for one in parity.candidates)
    if _curve(parity.reference):
        blocks.append(_all_losses(parity, f"loss-{index}"))
    for place, candidate in enumerate(parity.candidates):
        difference = _difference(parity, candidate, place)
        if difference is not None:
            blocks.append(
                LineChart(
                    f"difference-{index}-{place}",
                    titled(f"{candidate.name}: {SIGNS[candidate.verdict]}", parity_tags(parity)),
                    "Its loss minus the reference's, and the tolerance band.",
                    Axis("step"),
                    Axis("difference of the loss"),
                    (difference[0],),
                    difference[1],
                    half=True,
                )
            )
    tables = (_quantities(parity), _probes(parity), _epochs(parity), _seeds(parity))
    return blocks + [table for table in tables if table is not None]


def _what(parity: Parity) -> str:
    allowed = ", ".join(f"{factor:g}x in {dtype}" for dtype, factor in parity.tolerance.items())
    return joined(
        [
            f"reference {parity.reference.name} ({_ran(parity.reference)})",
            f"{count(parity.steps, 'step')} on the same batches"
            + (f" (SHA-256 {parity.batches_sha256[:12]})" if parity.batches_sha256 else ""),
            f"tolerance {allowed}" if allowed else None,
        ],
        "; ",
    )


def _ran(side: Ran) -> str:
    return joined([side.device, side.policy, side.kernel, side.model], ", ") or "unknown"


def verdicts(results: Sequence[Found[Parity]]) -> Table | None:
    """How every candidate came out; None where there is none."""
    columns = (
        *word_columns("candidate", "verdict"),
        *figure_columns("first step outside"),
        *word_columns("where", "error"),
        *figure_columns("last loss", "error / allowed"),
        *word_columns("computed as", "file"),
    )
    judged = [(found, one) for found in results for one in found.document.candidates]
    rows = tuple(
        (
            one.name,
            SIGNS[one.verdict],
            "" if one.first_step is None else f"{one.first_step:,}",
            one.place or one.layer or "",
            one.cause or "",
            precise(next((value for value in reversed(one.trace.loss) if value is not None), None)),
            _figure(one.worst, "{:.3g}"),
            one.policy or "unknown",
            found.path if len(results) > 1 else "",
        )
        for found, one in judged
    )
    flagged = frozenset(index for index, (_, one) in enumerate(judged) if one.verdict != "pass")
    tags = dict.fromkeys(tag for found in results for tag in parity_tags(found.document))
    against = ", ".join(dict.fromkeys(found.document.reference.name for found in results))
    table = Table(titled(f"Verdicts against {against}", tags), columns, rows, flagged)
    return table.without_empty_columns() if rows else None


def _curve(side: Ran) -> tuple[Point, ...]:
    return tuple(zip(map(float, side.trace.step), side.trace.loss, strict=False))


def _band(candidate: Candidate) -> tuple[tuple[float, float, float], ...]:
    trace = candidate.trace
    return tuple(
        (float(step), low, high)
        for step, low, high in zip(trace.step, trace.loss_low, trace.loss_high, strict=False)
        if low is not None and high is not None
    )


def _all_losses(parity: Parity, key: str) -> LineChart:
    """All devices' curves; a band that several candidates share is drawn once."""
    sides = [(parity.reference, REFERENCE), *((one, style) for style, one in enumerate(parity.candidates))]
    lines = tuple(Line(_named(side), _curve(side), style) for side, style in sides if _curve(side))
    bands: dict[tuple[tuple[float, float, float], ...], tuple[list[str], int]] = {}
    for style, candidate in enumerate(parity.candidates):
        if _band(candidate):
            bands.setdefault(_band(candidate), ([], style))[0].append(candidate.name)
    values = [value for line in lines for _, value in line.points if value is not None]
    log = bool(values) and min(values) > 0 and max(values) / min(values) > WIDE_SPAN
    return LineChart(
        key,
        titled("Loss by step", parity_tags(parity)),
        "All devices, and the tolerance band around the reference's loss.",
        Axis("step"),
        Axis("loss", log=log),
        lines,
        tuple(Band(f"tolerance band of {', '.join(names)}", area, style) for area, (names, style) in bands.items()),
    )


def _named(side: Ran) -> str:
    return f"{side.name}, {side.verdict}" if isinstance(side, Candidate) else f"{side.name}, reference"


def _difference(parity: Parity, candidate: Candidate, style: int) -> tuple[Line, tuple[Band, ...]] | None:
    """The candidate's loss and band relative to the reference's loss; None where no step has both losses."""
    reference = {step: value for step, value in _curve(parity.reference) if value is not None}
    points = tuple(
        (step, None if value is None else value - reference[step])
        for step, value in _curve(candidate)
        if step in reference
    )
    if all(value is None for _, value in points):
        return None
    band = tuple(
        (step, low - reference[step], high - reference[step])
        for step, low, high in _band(candidate)
        if step in reference
    )
    bands = (Band("tolerance band", band, style),) if band else ()
    return Line(candidate.name, points, style), bands


def _growth(parity: Parity, index: str) -> list[LineChart]:
    """The accumulated error of all candidates, and the local one: the layer replayed from the reference's input."""
    known = [(style, one) for style, one in enumerate(parity.candidates) if one.layers]
    if not known:
        return []
    names = tuple(dict.fromkeys(layer.name for _, one in known for layer in one.layers))
    charts = []
    for kind, words, error, allowed in (
        ("Accumulated", "From the start of the model", "relative_l2", "allowed"),
        ("Local", "From the reference's own input", "local_relative_l2", "local_allowed"),
    ):
        lines = [Line(_named(one), _by_layer(one.layers, names, error), style) for style, one in known]
        if any(value is not None for line in lines for _, value in line.points):
            lines += _limits(known, names, allowed)
            charts.append(
                LineChart(
                    f"growth-{kind.lower()}-{index}",
                    titled(f"{kind} error", parity_tags(parity)),
                    f"{words}. Thin: allowed.",
                    Axis("after layer", names=tuple(name.removeprefix("layer ") for name in names)),
                    Axis("relative L2", log=True),
                    tuple(lines),
                    half=True,
                )
            )
    return charts


def _limits(known: Sequence[tuple[int, Candidate]], names: tuple[str, ...], key: str) -> list[Line]:
    """What the tolerance allows after each layer; a limit that several candidates share is drawn once."""
    limits: dict[tuple[Point, ...], tuple[list[str], int]] = {}
    for style, one in known:
        limit = _by_layer(one.layers, names, key)
        if any(value is not None for _, value in limit):
            limits.setdefault(limit, ([], style))[0].append(one.name)
    return [
        Line(f"allowed to {', '.join(sharing)}", limit, style, marked=False, plain=True)
        for limit, (sharing, style) in limits.items()
    ]


def _by_layer(layers: Sequence[LayerError], names: tuple[str, ...], key: str) -> tuple[Point, ...]:
    return tuple((float(names.index(one.name)), getattr(one, key)) for one in layers)


def _quantities(parity: Parity) -> Table | None:
    """Everything that a candidate is judged by, each at the moment at which it came nearest to its limit."""
    judged = [(one, check) for one in parity.candidates for check in one.checks]
    rows = tuple(
        (
            one.name,
            check.quantity,
            f"{check.step:,}",
            "not finite" if check.error is None else number(check.error),
            number(check.allowed),
            "not finite" if check.ratio is None else f"{check.ratio:.2g}",
        )
        for one, check in judged
    )
    columns = (*word_columns("candidate", "quantity"), *figure_columns("step", "error", "allowed", "error / allowed"))
    outside = (index for index, (_, check) in enumerate(judged) if check.ratio is None or check.ratio > 1)
    title = titled("Largest error of each quantity", parity_tags(parity))
    return Table(title, columns, rows, frozenset(outside)) if rows else None


def _probes(parity: Parity) -> Table | None:
    rows = tuple(
        (one.name, _figure(at.relative_l2), _figure(at.allowed), _figure(at.max_abs), _figure(at.pcc, "{:.9f}"))
        for one in parity.candidates
        if (at := one.probe) is not None
    )
    columns = (*word_columns("candidate"), *figure_columns("relative L2", "allowed", "largest error", "correlation"))
    return Table(titled("Logits of the probe texts", parity_tags(parity)), columns, rows) if rows else None


def _figure(value: float | None, form: str = "") -> str:
    return "" if value is None else form.format(value) if form else number(value)


def _epochs(parity: Parity) -> Table | None:
    rows = tuple(
        (
            one.name,
            f"{at.epoch}",
            _figure(at.accuracy, "{:.4f}"),
            _figure(at.reference_accuracy, "{:.4f}"),
            _figure(at.allowed_accuracy, "{:.2g}"),
            _figure(at.loss, "{:.4f}"),
            _figure(at.reference_loss, "{:.4f}"),
            _figure(at.allowed_loss, "{:.2g}"),
        )
        for one in parity.candidates
        for at in one.metrics
    )
    columns = (
        *word_columns("candidate"),
        *figure_columns("epoch", "accuracy", "reference's", "may differ by"),
        *figure_columns("loss", "reference's", "may differ by"),
    )
    table = Table(titled("Metrics by epoch", parity_tags(parity)), columns, rows)
    return table.without_empty_columns() if rows else None


def _seeds(parity: Parity) -> Table | None:
    """The final metric over several seeds, where they were run."""
    if parity.seeds is None:
        return None
    columns = (*word_columns("candidate"), *figure_columns("difference", "interval"), *word_columns("is"))
    seeds = parity.seeds
    rows = tuple(
        (
            one.label,
            _figure(one.difference, "{:+.4f}"),
            " to ".join(_figure(end, "{:+.4f}") for end in (one.low, one.high) if end is not None),
            joined([one.verdict, one.reason], ": "),
        )
        for one in seeds.candidates
    )
    flagged = frozenset(index for index, one in enumerate(seeds.candidates) if one.verdict != "equivalent")
    title = f"Final {seeds.metric} over {seeds.n} seeds, equivalent within {seeds.margin:g}"
    return Table(titled(title, parity_tags(parity)), columns, rows, flagged)
