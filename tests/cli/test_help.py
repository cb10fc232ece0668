"""Help: whole names and sentences on every terminal, and no escape codes where they aren't wanted."""

from __future__ import annotations

import re

import pytest
from isotrain.cli.main import app
from support.command import Invoke
from typer import rich_utils
from typer.main import get_command

COMMANDS = sorted(vars(get_command(app))["commands"])


@pytest.mark.parametrize("command", ["", *COMMANDS, "parity record"])
def test_a_narrow_terminal_gets_plain_help_that_cuts_nothing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = invoke(*command.split(), "--help")
    assert "\u2026" not in out
    assert "\u2502" not in out, "a frame leaves no room"
    assert not re.search(r"\w\.\.\.$", out, re.MULTILINE), "a sentence is cut"
    assert max(map(len, out.splitlines())) <= 40


def test_a_wide_terminal_gets_panels(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = invoke("--help")
    assert "Measure and compare" in out


@pytest.mark.parametrize("value", ["1", ""])
def test_no_color_means_no_escape_code_on_a_terminal(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(rich_utils, "FORCE_TERMINAL", True)
    monkeypatch.setattr(rich_utils, "COLOR_SYSTEM", "auto")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in invoke("bench", "--help")[1]
    monkeypatch.setenv("NO_COLOR", value)
    assert "\x1b[" not in invoke("bench", "--help")[1]
