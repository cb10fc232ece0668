"""What the pages and the workflows name: commands, options, keys, files, links. All of it must be there.

`python -m support.pages` prints each mistake as a line, and ends with 1 if there is one.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from isotrain import UserError, list_backends
from isotrain.albert_core.config.load import find_config, load_config
from isotrain.albert_core.config.workload_name import names_workload
from isotrain.benchmarks.parity.sides import parse_side
from isotrain.cli.main import app
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
# The folders of the repository by which a path on a page is known.
PRODUCT = ("albert_core", "api", "backends", "benchmarks", "cli", "configs", "conformance", "kernels")
FOLDERS = (*PRODUCT, "docker", "docs", "examples", "tests", ".ci", ".github")
# Where the names are that pages mention in sentences.
NAMED_IN = (*PRODUCT, "tests/support", "tests/storm", "tests/judge_tt")
SOURCES = {".py", ".cpp", ".h", ".yaml", ".json"}
# Names and options of other software, and names that the code makes from parts.
FOREIGN = {"--signal", "--pyargs", "FSSPEC_", "MLFLOW_TRACKING_URI", "predicted_label", "predicted_label_2"}
# A key in a sentence may be for jobs of one kind.
KINDS_OF_JOBS = ((), ("freeze_encoder=false",), ("workload=module:Class",))
SHELL = {".", "bash", "docker", "hf", "pre-commit"}
USAGE_ERROR: Any = typer.BadParameter.__base__
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
# Lines that a backslash continues are one command.
_COMMAND = re.compile(r"^(?:[^\\\n]|\\\n|\\.)+$", re.M)
_INDENTED = re.compile(r"^    isotrain (?:[^\\\n]|\\\n|\\.)+$", re.M)
_SPAN = re.compile(r"`([^`]+)`(?: in `([\w/]+\.py)`)?")


@dataclass(frozen=True)
class Code:
    """Code on a page.

    Attributes:
        place: Page and line.
        text: A command of a block for the shell, or a span in a sentence.
        pasted: Whether it is a whole command, to be pasted.
    """

    place: str
    text: str
    pasted: bool


def pages(root: Path = ROOT) -> list[Path]:
    """Every page of the repository."""
    own = ("*.md", "docs/*.md", "benchmarks/results/*.md", "examples/**/*.md")
    asked = (".github/*.md", ".github/ISSUE_TEMPLATE/*.yml")
    return sorted(path for kind in own + asked for path in root.glob(kind))


def workflows(root: Path = ROOT) -> list[Path]:
    """Every workflow: the repository's own, and the examples."""
    return sorted([*root.glob(".github/workflows/*.yml"), *root.glob("examples/ci/*.yml")])


def codes(page: Path, root: Path = ROOT) -> list[Code]:
    """The commands and spans of a page, from its top to its end."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[int, str, bool]] = []
    for block in _BLOCK.finditer(text):
        if block[1] == "sh":
            found += ((one.start(), one[0], True) for one in _COMMAND.finditer(text, block.start(2), block.end(2)))
    # Blocks become empty, so that lines keep their numbers.
    prose = _BLOCK.sub(_emptied, text)
    found += ((one.start(), one[0], True) for one in _INDENTED.finditer(prose))
    for span in _SPAN.finditer(_INDENTED.sub(_emptied, prose)):
        found.append((span.start(), span[1], False))
        if span[2]:
            found += [(span.start(2), span[2], False), (span.start(), f"{span[1]} in {span[2]}", False)]
    name = page.relative_to(root)
    return [
        Code(f"{name}:{text.count(chr(10), 0, at) + 1}", _line(code) if pasted else " ".join(code.split()), pasted)
        for at, code, pasted in sorted(found)
    ]


def _emptied(block: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", block[0])


def _line(command: str) -> str:
    """A command without its comment, and on one line."""
    return command.replace("\\\n", "").partition("  #")[0].strip()


def mistakes(root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the pages and the workflows below `root`, a line each. The code is this checkout's."""
    for page in pages(root):
        yield from of_page(page, root)
    for path in workflows(root):
        yield from of_workflow(path, root)


def of_page(page: Path, root: Path = ROOT) -> Iterator[str]:
    """What is wrong with a page, a line each."""
    yield from _broken_links(page, root)
    for code in codes(page, root):
        for said in _of_code(code, root):
            yield f"{code.place}: `{code.text}`: {said}"


def _broken_links(page: Path, root: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    for link in re.finditer(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text):
        place = f"{page.relative_to(root)}:{text.count(chr(10), 0, link.start()) + 1}"
        target, anchor = page.parent / link[1] if link[1] else page, link[2]
        if not target.exists():
            yield f"{place}: links to {link[1]}, which isn't there"
        elif anchor and anchor not in _anchors(target):
            yield f"{place}: links to {link[1]}#{anchor}, and that page has no such heading"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def _of_code(code: Code, root: Path) -> Iterator[str]:
    text = code.text
    if code.pasted:
        yield from of_command(text, root, pasted=True)
    elif re.match(r"[\w./-]+ in \S+\.py$", text):
        name, _, path = text.partition(" in ")
        if (root / path).is_file() and not re.search(rf"\b{re.escape(name)}\b", (root / path).read_text()):
            yield f"{path} has no {name}"
    elif setting := re.fullmatch(r"([a-z]\w*(?:\.\w+)?): (.+)", text):
        said = [list(_of_settings(None, [*kind, f"{setting[1]}={setting[2]}"])) for kind in KINDS_OF_JOBS]
        yield from said[0] if all(said) else ()
    elif text.startswith("--"):
        yield from _unknown_options(_split(text))
    elif text.split("/")[0] in FOLDERS and "/" in text and re.fullmatch(r"[\w./-]+", text):
        if not (root / text).exists():
            yield "no such file or folder"
    elif re.fullmatch(r"[A-Za-z_]\w*(?:\.\w+)*", text):
        missing = [part for part in text.split(".") if "_" in part and part not in _words_of_the_code()]
        if missing and text not in FOREIGN:
            yield f"nothing in the code is called {missing[0]}"
    else:
        yield from of_command(text, root, pasted=False)


def of_command(text: str, root: Path = ROOT, pasted: bool = True) -> Iterator[str]:
    """What is wrong with a command line. A span that isn't `pasted` may leave out arguments, or be no command."""
    try:
        words = _split(text)
    except ValueError:
        if pasted:
            yield "a quotation mark is missing"
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if not re.fullmatch(r"[&|;]+", word):
            command.append(word)
            continue
        yield from _of_words(command, root, pasted)
        command = []


def _split(text: str) -> list[str]:
    """The words of a shell's line; what joins commands is a word of its own."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    lexer.commenters = ""
    return list(lexer)


def _of_words(words: list[str], root: Path, pasted: bool) -> Iterator[str]:
    while words and re.match(r"[A-Z_]+=|\.\.\.$", words[0]):
        words = words[1:]
    if not words:
        return
    program, rest = Path(words[0]).name or words[0], words[1:]
    if (program.startswith("python") or program == "torchrun") and "-m" in rest:
        module, *rest = rest[rest.index("-m") + 1 :]
        if module == "isotrain.cli":
            program = "isotrain"
        elif module == "pytest":
            program = module
        elif not _is_module(module, root):
            yield f"there is no module {module}"
    if program == "isotrain":
        yield from _of_isotrain([word.strip("[]") for word in rest], pasted)
    elif program in _commands() and rest[:1] and rest[0].startswith("--"):
        yield from _of_isotrain([program, *rest], pasted)
    elif program == "make":
        yield from _of_make(rest, root)
    elif pasted and not (program.startswith(("python", "pip", "pytest", "torchrun")) or program in SHELL):
        yield f"{words[0]} is no command"
    if program in ("isotrain", "make"):
        return
    for word in rest:
        extra = re.search(r"\[(\w+)\]", word) if program.startswith("pip") else None
        if extra and extra[1] not in _project(root)["optional-dependencies"]:
            yield f"there is no extra {extra[1]}"
        if program.startswith("pip") and re.fullmatch(r"isotrain(\[.*\])?", word):
            yield "isotrain is on no package index"
        if word.removeprefix("./").split("/")[0] in FOLDERS and "/" in word and not (root / word).exists():
            yield f"there is no {word}"


def _of_isotrain(words: list[str], pasted: bool) -> Iterator[str]:
    if not words or _open(words[0]) or words[0] in ("--version", "--help"):
        return
    name, *rest = words
    command = _commands().get(name)
    if command is None:
        yield f"isotrain has no command {name}"
        return
    parts = getattr(command, "commands", None)
    if parts:
        command = parts[rest.pop(0)] if rest and rest[0] in parts else parts["run"]
    if "--help" in rest or (not rest and not pasted):
        return
    try:
        given = command.make_context(name, list(rest)).params
    except UserError as error:
        yield str(error)
        return
    except USAGE_ERROR as error:
        kind = type(error).__name__
        if kind in ("MissingParameter", "BadOptionUsage") and not pasted:
            yield from _unknown_options(rest)
        elif kind != "BadParameter" or not any(map(_open, rest)):
            yield error.format_message()
        return
    named = given.get("file") if name == "config" else given.get("config", given.get("module"))
    yield from _of_settings(named, given.get("sets") or (), given.get("backend"))
    for side in given.get("candidate") or ():
        try:
            parse_side(side, elsewhere=list_backends())
        except UserError as error:
            yield str(error)


def _of_settings(named: str | None, sets: Any, backend: Any = None) -> Iterator[str]:
    """What is wrong with a configuration, and with what is set in it."""
    set_here = [item for item in sets if not item.startswith("KEY=")]
    # Of a value that the reader fills in, the key can be checked.
    whole = [item for item in set_here if not _open(item.partition("=")[2])]
    left = [item.partition("=")[0] for item in set_here if item not in whole]
    try:
        if named is not None and not _open(named) and names_workload(named):
            place = named.rpartition(":")[0] or named
            if place.split("/")[0] in FOLDERS and not (ROOT / place).is_file():
                yield f"there is no {place}"
            named = None
        elif named is not None and (_open(named) or Path(named).name == "config.yaml"):
            named = None
        if named is not None:
            find_config(named)
        load_config(named, whole, {"backend": backend if isinstance(backend, str) else None})
    except UserError as error:
        yield str(error)
    yield from (f"there is no key {key}" for key in left if key not in _keys())


def _of_make(words: list[str], root: Path) -> Iterator[str]:
    text = (root / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (.*)$", text, re.M)[0].split()
    for word in words:
        name, is_set, value = word.partition("=")
        if is_set and f"$({name})" not in text:
            yield f"the Makefile has no variable {name}"
        elif name == "ARGS":
            yield from _unknown_options(_split(value))
        elif not is_set and not _open(word) and word not in targets:
            yield f"the Makefile has no target {word}"


def _unknown_options(words: list[str]) -> Iterator[str]:
    for word in words:
        option = re.split("[=.]", word)[0].strip("[]")
        if option.startswith("--") and option not in _options() | FOREIGN:
            yield f"no command has the option {option}"


def of_workflow(path: Path, root: Path = ROOT) -> Iterator[str]:
    """What is wrong with a workflow, a line each."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(root)
    try:
        workflow = yaml.safe_load(text)
        steps = [step for job in workflow["jobs"].values() for step in job.get("steps", ())]
        called = [step["run"] for step in steps if "run" in step]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        yield f"{name}: it is no workflow: {' '.join(str(error).split())}"
        return
    if not called:
        yield f"{name}: none of its steps runs a command"
    for run in called:
        line = text.count("\n", 0, text.find(run.splitlines()[0])) + 1
        for command in run.replace("\\\n", "").splitlines():
            filled = re.sub(r"\$\{\{.*?\}\}", "VALUE", command)
            for variable, value in (workflow.get("env") or {}).items():
                filled = re.sub(rf'"?\${variable}\b"?', re.sub(r"\$\{\{.*?\}\}", "VALUE", str(value)), filled)
            for said in of_command(filled, root):
                yield f"{name}:{line}: `{command}`: {said}"


def _open(word: str) -> bool:
    """Whether the reader is to fill in `word`, or a part of it."""
    return bool(re.match(r"[A-Z]{2,}|[A-Z]\d?\.|\[?[A-Z]+_", word)) or "..." in word or "$" in word or "NAME" in word


def _is_module(name: str, root: Path) -> bool:
    own = Path(*name.removeprefix("isotrain.").split("."))
    places = (root / own, root / "tests" / own)
    if any(place.is_dir() or place.with_suffix(".py").is_file() for place in places):
        return True
    package = name.partition(".")[0]
    return package != "isotrain" and importlib.util.find_spec(package) is not None


@functools.cache
def _commands() -> dict[str, Any]:
    return dict(get_command(app).commands)  # type: ignore[attr-defined]  # a group


@functools.cache
def _options() -> frozenset[str]:
    """The options of every command, of `make storm` and its like included."""
    parts = [part for command in _commands().values() for part in (command, *getattr(command, "commands", {}).values())]
    own = {option for part in parts for parameter in part.params for option in parameter.opts}
    return frozenset(own.union(*(re.findall(r"\"(--[a-z-]+)\"", text) for text in _sources())))


@functools.cache
def _keys() -> frozenset[str]:
    from isotrain.albert_core.config.schema import TrainConfig

    own = {f"{name}.{key}" for name, section in TrainConfig.sections().items() for key in section.model_fields}
    return frozenset(own.union(TrainConfig.flat_keys()))


@functools.cache
def _words_of_the_code() -> frozenset[str]:
    return frozenset(word for text in _sources() for word in re.findall(r"\w+", text))


@functools.cache
def _sources() -> tuple[str, ...]:
    """The names and texts of the files in which a name may be."""
    files = [path for folder in NAMED_IN for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    files = [path for path in [*files, *ROOT.glob("*.py")] if path != Path(__file__)]
    return tuple(f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in files)


def _project(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def main(root: Path = ROOT) -> int:
    """Prints the mistakes. Returns the exit code."""
    found = list(mistakes(root))
    for line in found:
        print(line)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
