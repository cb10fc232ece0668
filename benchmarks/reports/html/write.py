"""`isotrain report` as a function: it reads results, draws charts and writes the page whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .... import UserError, __version__
from ....albert_core.runs.files import make_folders, sweep, write_bytes, write_text
from ...outcome.end_to_end import EndToEnd
from ...outcome.found import foreign_line
from ...outcome.model import Bench
from ...outcome.parity import Parity
from ..blocks import Section
from .contents import contents, lead
from .loading import Results, Skipped, load_results, of_document
from .page import render_page
from .text import clean


@dataclass(frozen=True)
class Written:
    """What was written (the page and PNG files), the results that were left out, and a line about unrelated files."""

    page: Path
    pictures: tuple[Path, ...]
    charts: int
    skipped: tuple[Skipped, ...]
    foreign: str


def page_of(results: Results, title: str) -> str:
    """The page of `results`, called "isotrain report: " and `title`."""
    return sections_page(f"isotrain report: {clean(title)}", lead(results), contents(results))


def document_page(document: Bench | EndToEnd | Parity, title: str) -> str:
    """The page of one result of this process."""
    return page_of(of_document(document), title)


def sections_page(title: str, words: str, sections: list[Section]) -> str:
    """A page of `sections`, with `words` at its head."""
    created = f"Made by isotrain {__version__}, {datetime.now(UTC).isoformat(sep=' ', timespec='seconds')}"
    return render_page(title, words, sections, created)


def write_report(folder: Path, out: Path, pictures: Path | None = None) -> Written:
    """Writes a page of all results under `folder`, or nothing at all.

    Args:
        out: The page.
        pictures: A folder for each chart as a PNG file.

    Raises:
        UserError: Nothing can be shown, or `out` or `pictures` can't be written.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {str(out)!r} doesn't end in .html; a report is one HTML file: name it so")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"-o {str(out)!r}: give a file in a folder that exists")
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise UserError(f"--png {str(pictures)!r} is a file; give a folder")
    results = load_results(folder)
    charts = [chart for section in contents(results) for chart in section.charts]
    images: dict[str, bytes] = {}
    if pictures is not None:
        from ....albert_core.output.draw import draw_png

        images = {chart.key: draw_png(chart) for chart in charts}
    page = page_of(results, folder.resolve().name)
    sweep(out.absolute().parent)
    write_text(out, page)
    files = []
    if pictures is not None:
        make_folders(pictures, "--png")
        for key, image in images.items():
            files.append(pictures / f"{key}.png")
            write_bytes(files[-1], image)
    return Written(out, tuple(files), len(charts), tuple(results.skipped), foreign_line(results.foreign, folder))
