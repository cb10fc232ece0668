"""The form of the documents, and what they and other files say of one another."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from isotrain.backends import backend_traits, list_backends
from isotrain.backends.accelerators import DEVICES

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
MOST_WORDS = 10_000


def test_lines_of_the_documents_are_short() -> None:
    for document in DOCUMENTS:
        for number, line in enumerate(document.read_text().splitlines(), 1):
            # A row of a table can't be broken.
            assert len(line) <= 120 or line.startswith("|"), f"{document.name}, line {number}"


def test_the_pages_have_at_most_ten_thousand_words() -> None:
    words = {page.name: len(page.read_text().split()) for page in (ROOT / "docs").glob("*.md")}
    assert "recipes.md" in words
    assert sum(words.values()) <= MOST_WORDS, f"cut what another page says: {words}"


def test_tables_of_the_documents_have_no_gaps() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"\|\n\n+\|(?!.*\n\|[-|: ]+\|\n)", document.read_text()), document.name


def test_the_help_of_make_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    named = set(re.findall(r"make ([a-z-]+)", "".join(re.findall(r"^# make .*$", makefile, re.MULTILINE))))
    assert set(phony.split()) - named == {"help"}


def test_the_hooks_for_git_run_what_is_here() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    entries = [shlex.split(hook["entry"]) for hook in repository["hooks"]]
    assert {entry[0] for entry in entries} == {"git", "make", ".venv/bin/ruff", ".venv/bin/python"}
    assert ["make", "types"] in entries
    for entry in entries:
        for path in (word for word in entry if word.startswith("tests/")):
            assert (ROOT / path).exists(), path


CITED = re.compile(r"\brules? (\d+(?:(?:, | and | to )\d+)*)", re.IGNORECASE)


def cited_rules(text: str) -> set[int]:
    """The numbers of all rules that `text` cites, those between two joined by "to" included."""
    found = set()
    for cited in CITED.findall(text):
        for part in re.split(r", | and ", cited):
            first, _, last = part.partition(" to ")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_rule_that_the_code_cites_is_written_down() -> None:
    assert cited_rules("rules 4, 7 and 8; Rules 12 to 14; (rule 2)") == {2, 4, 7, 8, 12, 13, 14}
    written = re.findall(r"^(\d+)\. ", (ROOT / "docs" / "measurement.md").read_text(), re.MULTILINE)
    assert [int(number) for number in written] == list(range(1, len(written) + 1))
    cited = {
        number
        for folder in ("kernels", "backends", "albert_core", "benchmarks", "conformance", "cli", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path != Path(__file__)
        for number in cited_rules(path.read_text())
    }
    assert cited >= {7, 9, 13}
    assert cited <= set(map(int, written))


def test_every_device_that_was_not_run_is_named_beside_these_words() -> None:
    parts = (ROOT / "README.md").read_text().split("\n* ") + (ROOT / "docs" / "backends.md").read_text().split("\n## ")
    said = " ".join(part for part in parts if re.search(r"not run\b[^.;]*\bby\s+its\s+authors", part, re.IGNORECASE))
    never_run = {name for name in list_backends() if backend_traits(name).untested}
    assert never_run >= {"cuda", "tpu", "tt", "tt-tpu", *DEVICES}
    assert never_run <= set(re.findall(r"`(?:--backend )?([a-z-]+)`", said))


def test_no_placeholder_is_left_in_the_documents() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"@@|TODO|TBD|XXX", document.read_text()), document.name
