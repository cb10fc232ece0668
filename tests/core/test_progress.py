"""What a watcher sees: a live view on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import io
import logging

import pytest
from isotrain.albert_core.output.live import (
    SPARKS,
    History,
    LiveReporter,
    Smoothed,
    live_reporter,
    reporter_for_terminal,
)
from isotrain.albert_core.output.progress import LineReporter
from rich.console import Console


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = [0]
    monkeypatch.setattr("isotrain.albert_core.output.progress.time.perf_counter_ns", lambda: clock[0])
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
    reporter.start(100, 300, "random:tiny (random weights) on tt-emulated")
    for step in range(101, 151):
        clock[0] += 10**9
        reporter.update(step, {"train/loss": 0.5, "samples_per_second": 8.0})
    assert [record.getMessage() for record in caplog.records] == [
        "step 120 of 300: loss 0.5000, 8 samples/s, about 180 s left (random:tiny (random weights) on tt-emulated)",
        "step 140 of 300: loss 0.5000, 8 samples/s, about 160 s left (random:tiny (random weights) on tt-emulated)",
    ]


def on_a_terminal(reporter: LiveReporter, width: int = 80, encoding: str = "utf-8") -> list[str]:
    """The lines that a terminal would show now."""
    console = Console(
        force_terminal=True, file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), width=width, color_system=None
    )
    with console.capture() as shown:
        console.print(reporter)
    return shown.get().splitlines()


def step_values(loss: float) -> dict[str, float]:
    return {"epoch": 1, "train/loss": loss, "samples_per_second": 4321.0, "learning_rate": 1e-3}


def test_the_live_view_shows_progress_losses_and_speed() -> None:
    reporter = LiveReporter()
    reporter.phase("tokenise train")(500, 1000)
    reporter.start(3, 40, "random:tiny (random weights) on tt-emulated")
    for step, loss in ((4, 4.0), (5, 3.0), (6, 2.0)):
        reporter.update(step, step_values(loss))
    reporter.update(14, {"epoch": 1, "eval/loss": 1.0, "eval/accuracy": 0.1, "eval_seconds": 0.1})
    lines = on_a_terminal(reporter)
    assert lines[0].split()[:2] == ["tokenise", "train"]
    assert "500/1000" in lines[0]
    assert "14/40" in lines[1]
    assert "ETA" in lines[1]
    assert lines[2] == "random:tiny (random weights) on tt-emulated"
    # Weights 0.81, 0.9 and 1 of the three losses.
    assert lines[3] == f"loss 2.0000  smoothed {(0.81 * 4 + 0.9 * 3 + 2) / 2.71:.4f}  █▅▁"
    assert lines[4] == "4,321 samples/s  learning rate 1.00e-03"
    assert len(lines) == 5, "evaluations are rows of the log above"


@pytest.mark.parametrize("width", [80, 40])
def test_the_live_view_keeps_to_its_width_before_anything_is_known(width: int) -> None:
    reporter = LiveReporter()
    assert on_a_terminal(reporter, width) in ([], [""])
    reporter.start(0, 1_000_000)
    reporter.update(10, step_values(123.456))
    assert all(len(line) <= width for line in on_a_terminal(reporter, width))


def test_a_terminal_without_unicode_gets_no_blocks() -> None:
    reporter = LiveReporter()
    for step in range(20):
        reporter.update(step, step_values(20.0 - step))
    assert "█" in "".join(on_a_terminal(reporter))
    lines = on_a_terminal(reporter, encoding="ascii")
    assert "smoothed" in "".join(lines)
    "".join(lines).encode("ascii")


@pytest.mark.parametrize("count", [2, 31, 32, 33, 64, 65, 1000, 100_000])
def test_sparks_show_the_whole_curve_in_little_room(count: int) -> None:
    history = History()
    for step in range(count):
        history.add(float(count - step))
    sparks = history.sparks()
    assert 2 <= len(sparks) <= SPARKS
    assert sparks[0] == "█"
    assert sparks[-1] == "▁"
    assert list(sparks) == sorted(sparks, reverse=True)


def test_a_flat_curve_is_flat() -> None:
    history = History()
    assert history.sparks() == ""
    for _ in range(5):
        history.add(2.0)
    assert history.sparks() == "▁" * 5


def test_a_smoothed_constant_is_that_constant_from_the_start() -> None:
    smoothed = Smoothed()
    assert [smoothed.add(3.0) for _ in range(5)] == pytest.approx([3.0] * 5)


def test_lines_are_logged_above_the_view_and_its_last_frame_stays() -> None:
    screen = io.StringIO()
    console = Console(force_terminal=True, file=screen, width=80, color_system=None)
    with live_reporter(console) as reporter:
        reporter.start(0, 10)
        console.print("a line of the log")
        reporter.update(10, step_values(0.25))
    shown = screen.getvalue()
    assert "a line of the log" in shown
    assert "loss 0.2500" in shown.rpartition("a line of the log")[2]
    assert "10/10" in shown


def test_an_interrupted_view_gives_the_cursor_back() -> None:
    screen = io.StringIO()
    console = Console(force_terminal=True, file=screen, width=80, color_system=None)
    with pytest.raises(KeyboardInterrupt), live_reporter(console) as reporter:
        reporter.start(0, 10)
        raise KeyboardInterrupt
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")


def test_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isotrain.albert_core.output.live.sys.stderr", io.StringIO())
    with reporter_for_terminal() as reporter:
        assert isinstance(reporter, LineReporter)
