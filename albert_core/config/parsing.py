"""Parses JSON and YAML. Every error is one line that names the file and the line.

Both are stricter than their libraries: no repeated keys, no numbers beyond a float's range, no half of a surrogate
pair, no deep nesting. YAML's scalars stay texts, and the schema gives them types (`typed_values`). YAML's own rules
would turn ``010`` into 8 and ``no`` into false.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ... import UserError
from ..terminal.text import clean, quoted, shorten

MAX_DEPTH = 100
# Digits of a whole number: more than any file of ours needs, few enough to convert.
MAX_DIGITS = 300
MAX_YAML_BYTES = 2**20
# Values of a YAML document. Anchors can turn a few lines into millions.
MAX_YAML_VALUES = 100_000

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# An escape of half a surrogate pair: a high one without its low one, or the reverse.
_HALF_PAIR = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_JSON_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)


@dataclass(frozen=True)
class Scalar:
    """A value as it was written. `place` is ``FILE:LINE`` or the option, `style` YAML's or "given" (command line)."""

    text: str
    place: str
    style: Literal["plain", "quoted", "given"]


@dataclass(frozen=True)
class Listed:
    """Values in a list."""

    items: tuple[Raw, ...]
    place: str


@dataclass(frozen=True)
class Mapped:
    """Values under keys, each with the place of its key."""

    items: dict[str, Raw]
    places: dict[str, str]
    place: str


Raw = Scalar | Listed | Mapped


class _RefusedError(ValueError):
    """A JSON value that the decoder accepts and we don't. `find` locates it in the text."""

    def __init__(self, reason: str, find: Callable[[str], int]) -> None:
        super().__init__(reason)
        self.find = find


def read_text(path: Path, fix: str) -> str:
    """Reads a UTF-8 file without its byte order mark. `fix` ends an error message.

    Raises UserError for a file that can't be read, is UTF-16, or contains NUL or other bytes than UTF-8.
    """
    try:
        # The reader of a pipe waits for a writer that may never come.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is a pipe, a socket or a device; save what it gives as a file first")
        raw = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, fix) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{quoted(str(path))} is no name of a file; {fix}") from error
    return decoded(raw, path, fix)


def decoded(raw: bytes, origin: object, fix: str, offset: int = 0, line: int = 1) -> str:
    """`raw` as text, like `read_text`. `origin` is its name in messages, such as its path.

    `raw` may be a part of a file, from byte `offset` on, which is in line `line`.
    """
    if offset == 0 and raw.startswith(_UTF16_MARKS):
        raise UserError(f"{origin} is UTF-16 (by its first two bytes); allowed is UTF-8; save it again as UTF-8")

    def place(at: int) -> str:
        lines = raw.count(b"\n", 0, at)
        return f"at byte offset {offset + at} (line {line + lines})"

    nul = raw.find(b"\0")
    if nul >= 0:
        raise UserError(f"{origin} has a NUL byte {place(nul)}: it is no text file, or a damaged one; {fix}")
    mark = len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0
    try:
        return raw[mark:].decode()
    except UnicodeDecodeError as error:
        at = mark + error.start
        raise UserError(f"{origin} is not UTF-8: byte 0x{raw[at]:02x} {place(at)}; save it again as UTF-8") from error


def read_json(path: Path, fix: str, *, nan: bool = False) -> Any:
    """The JSON value in a file. Raises UserError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, fix), path, fix, nan=nan)


def read_json_object(path: Path, fix: str, *, nan: bool = False) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError as `read_json` does, and for any other kind of value."""
    value = read_json(path, fix, nan=nan)
    if not isinstance(value, dict):
        raise UserError(f"{path}:1: a JSON {json_kind(value)} and no object; {fix}")
    return value


def parse_json(
    text: str, origin: object, fix: str, first_line: int = 1, *, nan: bool = False, halves: bool = False
) -> Any:
    """The value of a JSON text.

    Args:
        text: The text, or one line of a file.
        origin: The file's name in messages, usually its path.
        fix: What to do about an unusable text, at the end of the message.
        first_line: The line of the file where `text` begins.
        nan: Whether to accept NaN and the infinities, as Python writes them.
        halves: Whether to accept halves of surrogate pairs, which file names that are not UTF-8 contain.

    Raises:
        UserError: No JSON, a key twice, NaN or infinity, a number too long or too large, half of a surrogate pair, or
            too deep nesting. The message names the line.
    """
    # Otherwise something missing at the end would be reported for the line below.
    text = text.rstrip(" \t\r\n")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            parse_constant=None if nan else _refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
        _check_tree(value, escapes="\\u" in text and not halves)
    except json.JSONDecodeError as error:
        ends = (error.pos >= len(text) - 1 and error.msg != "Extra data") or "Unterminated" in error.msg
        what = f"{'truncated' if ends else 'not valid'} JSON ({error.msg})"
        raise _refusal(origin, first_line + error.lineno - 1, what, fix) from error
    except RecursionError as error:
        raise _refusal(origin, first_line, f"nested more than {MAX_DEPTH} levels deep", fix) from error
    except _RefusedError as error:
        line = first_line + text.count("\n", 0, max(error.find(text), 0))
        raise _refusal(origin, line, str(error), fix) from error
    return value


def json_kind(value: Any) -> str:
    """JSON's name for a value: object, list, text, number, true or false, null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds: tuple[tuple[type, str], ...] = ((dict, "object"), (list, "list"), (str, "text"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded. It must not contain half of a surrogate pair, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_yaml(path: Path, fix: str) -> Mapped:
    """The mapping in a YAML file, empty for an empty file. Raises UserError as `parse_yaml` does."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path} is larger than {MAX_YAML_BYTES // 2**20} MiB: it is no configuration; {fix}")
    except OSError as error:
        raise _unreadable(path, error, fix) from error
    raw = parse_yaml(read_text(path, fix), str(path), path.name, fix)
    if raw is None:
        return Mapped({}, {}, str(path))
    if not isinstance(raw, Mapped):
        raise UserError(f"{path}:1: holds no mapping; {fix}")
    return raw


def parse_yaml(text: str, origin: str, name: str, fix: str) -> Raw | None:
    """Parses a YAML document and leaves its scalars as they are written. Returns None if it is empty.

    Args:
        text: The document.
        origin: Its name in messages.
        name: The beginning of a value's place: ``NAME:LINE``, or an option such as ``--set``, without a line.
        fix: What to write instead, at the end of the message.

    Raises:
        UserError: No YAML, a key twice or none, a tag, a merge key, too many values, or too deep nesting.
    """
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if root is None else _Converter(origin, name, fix).converted(root, 0)
    except yaml.reader.ReaderError as error:
        found = f"the character U+{ord(text[error.position]):04X}" if error.position < len(text) else "a character"
        line = text.count("\n", 0, error.position) + 1
        raise _refusal(origin, line, f"not valid YAML ({found} is not allowed)", fix) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "unreadable"
        raise _refusal(origin, mark.line + 1 if mark else 1, f"not valid YAML ({problem})", fix) from error
    except (RecursionError, OverflowError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        # The last two come from an escape beyond Unicode.
        what = f"nested more than {MAX_DEPTH} levels deep" if isinstance(error, RecursionError) else "not valid YAML"
        raise _refusal(origin, 1, what, fix) from error


@dataclass
class _Converter:
    """From PyYAML's nodes to `Raw` values."""

    origin: str
    name: str
    fix: str
    values: int = 0

    def converted(self, node: yaml.Node, depth: int) -> Raw:
        line = node.start_mark.line + 1
        self.values += 1
        if depth > MAX_DEPTH:
            raise _refusal(self.origin, line, f"nested more than {MAX_DEPTH} levels deep", self.fix)
        if self.values > MAX_YAML_VALUES:
            raise _refusal(self.origin, line, f"more than {MAX_YAML_VALUES:,} values, by its anchors", self.fix)
        kind = {yaml.ScalarNode: "str", yaml.SequenceNode: "seq", yaml.MappingNode: "map"}[type(node)]
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise _refusal(self.origin, line, "tags (such as !!int) are not read: write the value alone", self.fix)
        place = _place(self.name, line)
        if isinstance(node, yaml.ScalarNode):
            self._check_text(node.value, line)
            return Scalar(node.value, place, "quoted" if node.style else "plain")
        if isinstance(node, yaml.SequenceNode):
            return Listed(tuple(self.converted(item, depth + 1) for item in node.value), place)
        assert isinstance(node, yaml.MappingNode), "there are three kinds of nodes"
        return self._mapped(node, place, depth)

    def _mapped(self, node: yaml.MappingNode, place: str, depth: int) -> Mapped:
        items: dict[str, Raw] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.converted(key_node, depth + 1)
            if not isinstance(key, Scalar):
                raise _refusal(self.origin, line, "a key that is a list or a mapping", self.fix)
            if key.text == "<<" and key.style == "plain":
                raise _refusal(self.origin, line, "merge keys (<<) are not read: write the keys out", self.fix)
            if key.text in items:
                raise UserError(
                    f"{self.origin}:{line}: key {quoted(key.text)} stands there a second time (first in line "
                    f"{lines[key.text]}); keep one"
                )
            items[key.text], lines[key.text] = self.converted(value_node, depth + 1), line
        return Mapped(items, {key: _place(self.name, line) for key, line in lines.items()}, place)

    def _check_text(self, text: str, line: int) -> None:
        if "\0" in text or not is_unicode(text):
            raise _refusal(self.origin, line, f"{quoted(text)} holds NUL or half of a surrogate pair", self.fix)


def _unreadable(path: Path, error: OSError, fix: str) -> UserError:
    advice = "make it readable for this user" if isinstance(error, PermissionError) else fix
    return UserError(f"{path} can't be read ({error.strerror}); {advice}")


def _refusal(origin: object, line: int, reason: str, fix: str) -> UserError:
    return UserError(f"{_place(origin, line)}: {shorten(clean(reason), 300)}; {fix}")


def _place(origin: object, line: int) -> str:
    """``FILE:LINE``. An option has no lines."""
    return str(origin) if str(origin).startswith("--") else f"{origin}:{line}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # The dict keeps a key's last position. The first key with another position is repeated.
        last = {key: place for place, (key, _) in enumerate(pairs)}
        twice = next(key for place, (key, _) in enumerate(pairs) if last[key] != place)
        raise _RefusedError(f"the key {quoted(twice)} stands twice in one object", _repeated_key)
    return found


def _refuse_constant(name: str) -> float:
    null = ", a missing value is null" if name == "NaN" else ""
    raise _RefusedError(f"{name} is no JSON number{null}", _first(name))


def _finite(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise _RefusedError(f"the number {quoted(written)} is too large", _first(written))
    return number


def _whole(written: str) -> int:
    if len(written) > MAX_DIGITS:
        raise _RefusedError(f"a whole number of {len(written):,} digits is too large", _first(written))
    return int(written)


def _first(written: str) -> Callable[[str], int]:
    return lambda text: text.find(written)


def _half_pair(text: str) -> int:
    found = _HALF_PAIR.search(text)
    return found.start() if found else 0


def _repeated_key(text: str) -> int:
    """The position of the first key that its object already has. The JSON text is valid up to there."""
    seen: list[set[str]] = []
    last, position = "", 0
    for token in _JSON_TOKENS.finditer(text):
        if token[0] in "{[":
            seen.append(set())
        elif token[0] in "}]":
            seen.pop()
        elif token[0] == ":":
            if last in seen[-1]:
                return position
            seen[-1].add(last)
        else:
            last, position = json.loads(token[0]), token.start()
    return position


def _check_tree(value: Any, escapes: bool) -> None:
    """Raises for a tree too deep for later recursion and, with `escapes`, for texts that can't be encoded."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = list(_members(level, escapes))
        if not level:
            return
    raise RecursionError


def _members(level: list[Any], escapes: bool) -> Iterator[Any]:
    for value in level:
        if isinstance(value, str):
            if escapes and not is_unicode(value):
                raise _RefusedError("half of a surrogate pair (\\ud800-\\udfff) in a text", _half_pair)
        elif isinstance(value, dict):
            if escapes:
                yield from value
            yield from value.values()
        elif isinstance(value, list):
            yield from value
