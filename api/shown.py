"""How a result prints, and how a notebook shows it."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..benchmarks.reports.blocks import Block

# Characters of a printed result's lines: all columns of every table.
WIDTH = 160


class Shown(ABC):
    """A result that prints as the command prints it, and that a notebook shows as the page of `isotrain report`."""

    @abstractmethod
    def _blocks(self) -> Sequence[Block]:
        """What the terminal shows."""

    @abstractmethod
    def _page(self) -> str:
        """What the report shows, as one HTML page."""

    def __str__(self) -> str:
        from ..benchmarks.reports.terminal import output_console, print_blocks

        console = output_console(width=WIDTH)
        with console.capture() as captured:
            print_blocks(self._blocks(), console)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def _repr_html_(self) -> str:
        # A frame of its own, so that the page's style and the notebook's don't mix.
        return f'<iframe srcdoc="{html.escape(self._page())}" style="width: 100%; height: 40em; border: 0"></iframe>'
