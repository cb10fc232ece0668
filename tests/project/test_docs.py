"""The documents say what the code does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from isotrain.cli.main import app, main
from typer.main import get_command

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
MOST_WORDS = 10_000


def test_keys_that_the_documents_set_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["config", "--keys", "--json"])
    keys = {row["key"] for row in json.loads(capsys.readouterr().out)["keys"]}
    assigned = re.compile(r"--set [\"']?([a-z][\w.]*)=|`([a-z]\w*(?:\.\w+)?): [^`]+`")
    for document in DOCUMENTS:
        named = {name for names in assigned.findall(document.read_text()) for name in names if name}
        assert named <= keys, f"{document.name} sets {named - keys}"


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


def test_commands_in_the_documents_have_their_options() -> None:
    commands: dict[str, Any] = dict(get_command(app).commands)
    for name, command in list(commands.items()):
        commands |= {f"{name} {inner}": inside for inner, inside in getattr(command, "commands", {}).items()}
    checked = set()
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ *isotrain (.*)$|`isotrain ([^`]*)`", text, re.MULTILINE):
            words = " ".join(line).partition("  #")[0].split()
            # `isotrain parity CONFIG` is short for its `run`.
            names = [" ".join(words[:2]), f"{words[0]} run", words[0]] if words else []
            command = next((commands[name] for name in names if name in commands), None)
            known = {option for parameter in command.params for option in parameter.opts} if command else set()
            used = {re.split("[=.]", word)[0] for word in words if re.match(r"\[?--[a-z]", word)}
            checked |= used
            missing = {option.strip("[]") for option in used} - known - {"--install-completion", "--version", "--help"}
            assert not missing, f"{document.name}: isotrain {' '.join(words)}"
    assert checked >= {"--candidate", "--again", "--resume-or-start"}


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", document.read_text()):
            path = document.parent / target
            assert path.exists(), f"{document.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{document.name} links to {target}#{anchor}"


def test_files_named_in_the_documents_exist() -> None:
    for document in DOCUMENTS:
        for path in re.findall(
            r"`((?:kernels|backends|albert_core|benchmarks|cli|configs|tests)/[\w/.-]+\.\w+)`", document.read_text()
        ):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def test_what_the_documents_name_in_a_file_is_there() -> None:
    for document in DOCUMENTS:
        for name, path in re.findall(r"`(\w+)(?:\(\))?` in `([\w/]+\.py)`", document.read_text()):
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{document.name}: {name} is not in {path}"


def test_what_the_documents_have_made_can_be_made() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (document.name, name)
        for document in DOCUMENTS
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE)
    }
    assert {("CONTRIBUTING.md", "quick"), ("README.md", "run")} <= named
    assert [where for where in named if where[1] not in targets] == []


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


def test_no_placeholder_is_left_in_the_documents() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"@@|TODO|TBD|XXX", document.read_text()), document.name
