"""What a watcher sees: bars on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import io
import logging

import pytest
from isotrain.albert_core.progress import BarReporter, LineReporter


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = [0]
    monkeypatch.setattr("isotrain.albert_core.progress.time.perf_counter_ns", lambda: clock[0])
    caplog.set_level(logging.INFO, logger="isotrain")
    reporter = LineReporter(seconds=20)
    advance = reporter.phase("features train")
    for second in range(1, 51):
        clock[0] = second * 10**9
        advance(second * 10, 1000)
    assert [record.getMessage() for record in caplog.records] == [
        "features train: 200 of 1,000, about 80 s left",
        "features train: 400 of 1,000, about 60 s left",
    ]
    caplog.clear()
    reporter.start(100, 300)
    for step in range(101, 151):
        clock[0] += 10**9
        reporter.update(step, {"train/loss": 0.5, "samples_per_second": 8.0})
    assert [record.getMessage() for record in caplog.records] == [
        "step 120 of 300: loss 0.5000, 8 samples/s, about 180 s left",
        "step 140 of 300: loss 0.5000, 8 samples/s, about 160 s left",
    ]


def test_the_bar_shows_step_loss_and_speed() -> None:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    screen = io.StringIO()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(file=screen, width=120), auto_refresh=False) as progress:
        reporter = BarReporter(progress)
        reporter.phase("tokenise train")(500, 1000)
        reporter.start(3, 40)
        reporter.update(13, {"train/loss": 1.25, "samples_per_second": 4321.0})
        reporter.update(14, {"eval/accuracy": 0.75})
        progress.refresh()
    shown = screen.getvalue()
    assert "tokenise train" in shown
    assert "500/1000" in shown.replace(" ", "")
    assert "14/40" in shown.replace(" ", "")
    assert "loss 1.2500  4,321 samples/s" in shown
