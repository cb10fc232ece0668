"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from isotrain.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_keys_is_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["config", "--keys", "--markdown"])
    table = capsys.readouterr().out
    assert (ROOT / "docs" / "configuration.md").read_text().partition("<!-- keys -->\n")[2] == table


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_files_named_in_the_documents_exist() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for path in re.findall(
            r"`((?:kernels|backends|albert_core|benchmarks|cli|configs|tests)/[\w/.-]+\.\w+)`", document.read_text()
        ):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def test_no_placeholder_is_left_in_the_documents() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"@@|TODO|TBD|XXX", document.read_text()), document.name
