"""Help that fits the terminal: no escape codes under NO_COLOR, and no panels if they would cut names and words."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..albert_core.terminal.console import trimmed

# Narrower panels have no room for an option's name and its meaning.
_PANEL_WIDTH = 60


def panel(title: str) -> Callable[..., Any]:
    """`typer.Option` for options of the panel `title`."""
    return partial(typer.Option, rich_help_panel=title)


# TyperCommand and TyperGroup have these methods from click's command, which typer doesn't export.
_Base: Any = object


class _Helpful(_Base):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        _fit(self, formatter)
        super().format_help(ctx, formatter)

    def get_help(self, ctx: Any) -> str:
        return _for_pipes(super().get_help, ctx)

    def get_short_help_str(self, limit: int = 1000) -> str:
        del limit  # It would cut sentences.
        return super().get_short_help_str(1000)


class HelpfulCommand(_Helpful, TyperCommand):
    """A command of the command line."""


class HelpfulGroup(_Helpful, TyperGroup):
    """A command with commands below it."""


def _for_pipes(get_help: Callable[[Any], str], ctx: Any) -> str:
    """The help. If it isn't written to a terminal, it has none of the spaces with which rich fills every line."""
    from typer import rich_utils

    # click would remove the colours that FORCE_COLOR asks for.
    if sys.stdout.isatty() or rich_utils.FORCE_TERMINAL:
        return get_help(ctx)
    # Of stdout's encoding, which decides how panels are drawn.
    printed = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, newline="")
    with redirect_stdout(printed):
        rest = get_help(ctx)
    printed.seek(0)
    return trimmed(printed.read() + rest)


def _fit(command: Any, formatter: Any) -> None:
    from typer import rich_utils

    if "NO_COLOR" in os.environ:
        # By itself, rich keeps bold and dim.
        rich_utils.COLOR_SYSTEM = None
    width = shutil.get_terminal_size().columns
    is_narrow = width < _PANEL_WIDTH
    command.rich_markup_mode = None if is_narrow else "rich"
    if is_narrow:
        formatter.width = width
