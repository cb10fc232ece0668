"""Converts what was written for a key to the key's type.

The type decides. A key of type text keeps the text, so ``run_name: 20261128`` and ``label_column: no`` are texts.
Numbers are decimal, so ``010`` is 10 and ``1:30`` is no number.
"""

from __future__ import annotations

import math
import re
import types
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from ... import UserError
from ..terminal.text import quoted
from .parsing import Listed, Mapped, Raw, Scalar, parse_yaml

_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?", re.ASCII)
_WHOLE = re.compile(r"[-+]?[0-9]{1,100}", re.ASCII)
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NULLS = {"plain": ("", "null", "Null", "NULL", "~"), "quoted": (), "given": ("", "null")}
# Whole numbers up to this one are exact as floats.
_EXACT = 2**53


def typed(raw: Raw, kind: Any, key: str) -> Any:
    """`raw` as a value of type `kind`: text, number, true or false, one of some values, a list of them, or null.

    Raises UserError naming `key`, what was written, what is allowed and where it was written.
    """
    options = [option for option in get_args(kind) if option is not type(None)] if _is_union(kind) else [kind]
    if isinstance(raw, Scalar) and raw.text in _NULLS[raw.style]:
        if len(options) < len(get_args(kind)) and _is_union(kind):
            return None
        if raw.style == "plain" and raw.text:
            _refuse(raw, key, "is allowed only for optional keys; leave the key out for its default, or quote the word")
    kind, *others = options
    words = [word for other in others for word in get_args(other)]
    if isinstance(raw, Scalar) and raw.text.strip() in words:
        return raw.text.strip()
    if get_origin(kind) in (list, tuple):
        try:
            return [typed(item, get_args(kind)[0], key) for item in _items(raw, key)]
        except UserError as error:
            if not words:
                raise
            raise UserError(f"{error}; or write {' or '.join(words)}") from error
    if not isinstance(raw, Scalar):
        shape = "a list" if isinstance(raw, Listed) else "a mapping"
        raise UserError(f"{key}: {shape} stands here, and one value is wanted; write key: value ({raw.place})")
    if get_origin(kind) is Literal:
        numbers = all(isinstance(choice, int) for choice in get_args(kind))
        return _whole(raw, key) if numbers else raw.text
    if kind is bool:
        return _truth(raw, key, words)
    if kind is int:
        return _whole(raw, key)
    if kind is float:
        return _number(raw, key)
    # A text, or what a model of another package reads from one.
    return raw.text


def mapping(raw: Raw, key: str) -> Mapped:
    """The mapping that was written for a section, empty if nothing was. Raises UserError for anything else."""
    if isinstance(raw, Scalar):
        if raw.text.strip() in _NULLS["plain"]:
            return Mapped({}, {}, raw.place)
        if raw.style == "given" and raw.text.lstrip().startswith("{"):
            raw = _flow(raw, key)
    if not isinstance(raw, Mapped):
        shown = quoted(raw.text) if isinstance(raw, Scalar) else "a list"
        raise UserError(
            f"{key} is {shown}, and it is a section; write 'key: value' lines in it, or --set {key}.KEY=VALUE "
            f"({raw.place})"
        )
    return raw


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _items(raw: Raw, key: str) -> list[Raw]:
    """The items of a list. A single value is a list of one, and commas separate several."""
    if isinstance(raw, Scalar) and raw.style == "given" and raw.text.lstrip().startswith("["):
        raw = _flow(raw, key)
    if isinstance(raw, Listed):
        return list(raw.items)
    if isinstance(raw, Mapped):
        raise UserError(f"{key}: a mapping stands here, and a list is wanted; write [first, second] ({raw.place})")
    if raw.style == "quoted":
        return [raw]
    if not raw.text.strip():
        return []
    parts = [part.strip() for part in raw.text.split(",")]
    if not all(parts):
        _refuse(raw, key, 'has an empty item; write first,second, or ["first", "second"] for items with commas')
    return [Scalar(part, raw.place, raw.style) for part in parts]


def _flow(raw: Scalar, key: str) -> Raw:
    """A list or a mapping from a command line, in JSON or one-line YAML."""
    origin = f"{raw.place} {key}={quoted(raw.text)}"
    found = parse_yaml(raw.text, origin, raw.place, "write [first, second] or {key: value}, and quote what has signs")
    assert found is not None, "the text begins with a bracket"
    return found


def _truth(raw: Scalar, key: str, others: list[str]) -> bool:
    word = raw.text.strip().lower()
    if word not in _TRUE + _FALSE:
        _refuse(raw, key, f"is neither true nor false; write {' or '.join(['true', 'false', *others])}")
    return word in _TRUE


def _whole(raw: Scalar, key: str) -> int:
    text = raw.text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    if not (_DECIMAL.fullmatch(text) and abs(float(text)) <= _EXACT and float(text).is_integer()):
        _refuse(raw, key, _no_number("whole number", text, "16"))
    return int(float(text))


def _number(raw: Scalar, key: str) -> float:
    text = raw.text.strip()
    if not _DECIMAL.fullmatch(text):
        _refuse(raw, key, _no_number("number", text, "0.001 or 1e-3"))
    number = float(text)
    if not math.isfinite(number):
        _refuse(raw, key, "is too large; the largest number is about 1.7e308")
    return number


def _no_number(kind: str, text: str, example: str) -> str:
    plain = text.replace("_", "").replace(" ", "")
    if plain != text and _DECIMAL.fullmatch(plain):
        return f"is no {kind}; write {plain}"
    return f"is no {kind}; write it in decimal digits, such as {example}"


def _refuse(raw: Scalar, key: str, why: str) -> NoReturn:
    raise UserError(f"{key}: {quoted(raw.text)} {why} ({raw.place})")
