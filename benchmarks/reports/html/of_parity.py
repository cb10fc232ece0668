"""A parity result: verdicts, losses in their tolerance bands, error by layer. Rules 12 to 14."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....albert_core.output.charts import REFERENCE, Axis, Band, Line, LineChart, Point
from ....albert_core.terminal.text import figure, precise
from ....kernels.words import count
from ...outcome.parity import Candidate, Epoch, LayerError, Parity, Probe, Quantity, Ran
from ..blocks import Block, Column, Heading, Section, Table, Words
from ..views.labels import joined, reasons, titled
from ..views.parity import parity_tags, seeds, verdict_style
from .loading import Found, Results

SIGNS = {"pass": "✓ pass", "drift": "△ drift", "diverged": "✗ diverged", "refused": "! refused", "failed": "! failed"}
# Losses that span more than this ratio get a logarithmic axis.
WIDE_SPAN = 50.0

Checked = Column[tuple[str, Quantity]]
Probed = Column[tuple[str, Probe]]
Evaluated = Column[tuple[str, Epoch]]
# Each quantity at the moment at which it came nearest to its limit; entries have their candidate's name first.
QUANTITIES = (
    Checked("candidate", lambda entry: entry[0], numeric=False),
    Checked("quantity", lambda entry: entry[1].quantity, numeric=False),
    Checked("step", lambda entry: f"{entry[1].step:,}"),
    Checked("error", lambda entry: _figure(entry[1].error) or "not finite"),
    Checked("allowed", lambda entry: figure(entry[1].allowed)),
    Checked("error / allowed", lambda entry: _figure(entry[1].ratio, "{:.2g}") or "not finite"),
)
PROBES = (
    Probed("candidate", lambda entry: entry[0], numeric=False),
    Probed("relative L2", lambda entry: _figure(entry[1].relative_l2)),
    Probed("allowed", lambda entry: _figure(entry[1].allowed)),
    Probed("largest error", lambda entry: _figure(entry[1].max_abs)),
    Probed("correlation", lambda entry: _figure(entry[1].pcc, "{:.9f}")),
)
EPOCHS = (
    Evaluated("candidate", lambda entry: entry[0], numeric=False),
    Evaluated("epoch", lambda entry: f"{entry[1].epoch}"),
    Evaluated("accuracy", lambda entry: _figure(entry[1].accuracy, "{:.4f}")),
    Evaluated("reference's", lambda entry: _figure(entry[1].reference_accuracy, "{:.4f}")),
    Evaluated("may differ by", lambda entry: _figure(entry[1].allowed_accuracy, "{:.2g}")),
    Evaluated("loss", lambda entry: _figure(entry[1].loss, "{:.4f}")),
    Evaluated("reference's", lambda entry: _figure(entry[1].reference_loss, "{:.4f}")),
    Evaluated("may differ by", lambda entry: _figure(entry[1].allowed_loss, "{:.2g}")),
)


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
    return [*blocks, *_tables(parity), *seeds(parity)]


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


def verdicts(results: Sequence[Found[Parity]]) -> Table[tuple[str, Candidate]] | None:
    """How every candidate came out, with the file of each; None where there is none."""
    judged = [(found.path, one) for found in results for one in found.document.candidates]

    def of(header: str, cell: Callable[[Candidate], str], numeric: bool = False) -> Column[tuple[str, Candidate]]:
        return Column(header, lambda entry: cell(entry[1]), numeric)

    columns = (
        of("candidate", lambda one: one.name),
        of("verdict", lambda one: SIGNS[one.verdict]),
        of("first step outside", lambda one: "" if one.first_step is None else f"{one.first_step:,}", numeric=True),
        of("where", lambda one: one.place or one.layer or ""),
        of("error", lambda one: one.cause or ""),
        of("last loss", _last_loss, numeric=True),
        of("error / allowed", lambda one: _figure(one.worst, "{:.3g}"), numeric=True),
        of("computed as", lambda one: one.policy or "unknown"),
        Column[tuple[str, Candidate]]("file", lambda entry: entry[0] if len(results) > 1 else "", numeric=False),
    )
    tags = dict.fromkeys(tag for found in results for tag in parity_tags(found.document))
    against = ", ".join(dict.fromkeys(found.document.reference.name for found in results))
    title = titled(f"Verdicts against {against}", tags)
    table = Table(title, columns, judged, lambda entry: "" if entry[1].verdict == "pass" else verdict_style(entry[1]))
    return table.without_empty_columns() if judged else None


def _last_loss(side: Ran) -> str:
    return precise(next((value for value in reversed(side.trace.loss) if value is not None), None))


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
    """The curves of all devices. A band that several candidates share is drawn once."""
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
    """The candidate's loss and band minus the reference's loss; None if no step has both losses."""
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
    """The accumulated error of all candidates, and the local error of layers replayed from the reference's input."""
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
    """The allowed error after each layer. A limit that several candidates share is drawn once."""
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


def _tables(parity: Parity) -> list[Block]:
    """Everything that a candidate is judged by, its output, and its metrics by epoch."""
    tags = parity_tags(parity)
    checks = [(one.name, check) for one in parity.candidates for check in one.checks]
    probes = [(one.name, one.probe) for one in parity.candidates if one.probe is not None]
    epochs = [(one.name, at) for one in parity.candidates for at in one.metrics]
    tables = (
        Table(titled("Largest error of each quantity", tags), QUANTITIES, checks, _outside),
        Table(titled("Output for the probes", tags), PROBES, probes),
        Table(titled("Metrics by epoch", tags), EPOCHS, epochs).without_empty_columns(),
    )
    return [table for table in tables if table.entries]


def _outside(entry: tuple[str, Quantity]) -> str:
    ratio = entry[1].ratio
    return "red" if ratio is None or ratio > 1 else ""


def _figure(value: float | None, form: str = "") -> str:
    return "" if value is None else form.format(value) if form else figure(value)
