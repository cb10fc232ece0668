"""Makes external texts fit to be shown: labels, paths, names, and values from files of unknown origin."""

from __future__ import annotations

import json
import re
import unicodedata

from ... import RunError, UserError

# Limit of a value in a message. A message contains a few of them.
SHORT = 120
# Limit of a whole message with a command's prefix: less than three lines of 200 characters.
LONGEST_MESSAGE = 560

_COMMAND = re.compile(r"(`[^`]+`)")
_LONG_PART = re.compile(r"'(?:[^'\\]|\\.){200,}'|\"(?:[^\"\\]|\\.){200,}\"|\S{200,}")
# Limit of another program's error message.
_LONGEST_REASON = 500


# Passwords, tokens and signatures in a URL; tokens of the Hub, of W&B and of a header; and what libraries write as
# ``password='...'`` or ``"api_key": "..."``. A path has one slash where its URL had two.
_SECRETS = re.compile(
    r"""(?<=:/)(?P<user>/?[^\s/@:'"]*):(?!:|[0-9]*/)[^\s'"]*@
    | (?<=http:/|ttps:/)(?P<slash>/?)[^\s/@:'"]+@
    | (?P<name>[?&;\#][\w.-]*(?:token|secret|password|passwd|pwd|sig|signature|credential|key|auth)[\w.-]*=)[^\s&;'"]+
    | (?P<field>(?:password|passwd|secret|api_?key|(?:access|auth|hf)_token)\w*(?:=|["']\s*:\s*)[rb]?["']?)
      [^\s"',;&)}\]]+
    | (?P<header>\bbearer\s+)[\w.~+/=-]{16,}
    | \b(?:hf_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,})""",
    re.IGNORECASE | re.VERBOSE,
)
# Every text with a secret contains one of them.
_MARKS = (":/", "hf_", "wandb_v", "bearer", "passw", "secret", "key", "_token")


def redacted(text: str) -> str:
    """`text` with ``***`` in place of its passwords and tokens."""
    lowered = text.lower()
    return _SECRETS.sub(_hidden, text) if any(mark in lowered for mark in _MARKS) else text


def holds_secret(value: object) -> bool:
    """Whether `redacted` would hide a part of a text, or of a text in a list or a mapping."""
    if isinstance(value, dict):
        return any(map(holds_secret, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return any(map(holds_secret, value))
    return isinstance(value, str) and redacted(value) != value


def clean(text: str) -> str:
    """`text` without secrets (`redacted`), and with characters that control a terminal or reorder a line as escapes
    (``\\x1b``).

    These are control characters (also line breaks and tabs), format characters such as bidirectional overrides,
    surrogates and private use (Unicode's categories Cc, Cf, Cs, Co, Zl, Zp). Joiners that scripts and emoji need stay.
    """
    text = redacted(text)
    if text.isprintable():
        return text
    return "".join(character if _is_shown(character) else _escaped(character) for character in text)


def shorten(text: str, limit: int = SHORT) -> str:
    """`text` in at most `limit` characters. The middle of a longer text is replaced by a note.

    Secrets are hidden first (`redacted`), because half of a URL no longer shows that it contains one.
    """
    text = redacted(text)
    if len(text) <= limit:
        return text
    mark = f" ... {len(text) - limit:,} more ... "
    kept = max(2, limit - len(mark))
    return text[: (kept + 1) // 2] + mark + text[len(text) - kept // 2 :]


def quoted(value: object) -> str:
    """`value` as Python writes it, cleaned and shortened, for repeating input in messages."""
    return shorten(clean(repr(value)))


def reason_of(error: BaseException, limit: int = 200) -> str:
    """The message of a library's error on one line, cleaned and shortened, or its type if it has no message."""
    return shorten(clean(" ".join(str(error).split())), limit) or type(error).__name__


def error_line(error: BaseException) -> str:
    """`error` on one line: our own unchanged, any other with its type and without a library's stack."""
    if isinstance(error, (UserError, RunError)):
        return clean(" ".join(str(error).split()))
    # C++ libraries write their stack below the reason.
    message = clean(" ".join(str(error).split("\nException raised from ")[0].split()))
    name = type(error).__name__
    return f"{name}: {shorten(message, _LONGEST_REASON)}" if message else name


def _hidden(match: re.Match[str]) -> str:
    for kept in ("name", "field", "header"):
        if match[kept] is not None:
            return f"{match[kept]}***"
    if match["user"] is not None:
        return f"{match['user']}:***@"
    return "***" if match["slash"] is None else f"{match['slash']}***@"


def brief(message: str) -> str:
    """Shortens a message to three lines of 200 characters: first long words and quoted texts, then the middle. The
    error and its fix remain. Commands between backticks stay whole.
    """
    if len(message) <= LONGEST_MESSAGE:
        return message
    # Words and commands alternate.
    parts = _COMMAND.split(message)
    parts[::2] = [_LONG_PART.sub(lambda part: shorten(part[0]), words) for words in parts[::2]]
    for place in sorted(range(0, len(parts), 2), key=lambda place: -len(parts[place])):
        room = LONGEST_MESSAGE - sum(map(len, parts)) + len(parts[place])
        parts[place] = shorten(parts[place], max(SHORT, room))
    return "".join(parts)


def json_text(value: object, indent: int | None = 2) -> str:
    """`value` as JSON for display. Characters stay as they are, except those that `clean` would escape."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        mark if mark == "\n" or mark.isprintable() or _is_shown(mark) else json.dumps(mark)[1:-1] for mark in text
    )


def _is_shown(character: str) -> bool:
    if character in "\u200c\u200d":
        return True
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, else minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def figure(value: float) -> str:
    """Three significant digits with thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def precise(value: float | None) -> str:
    """Six significant digits, because losses differ in the fifth. Empty without a value."""
    return "" if value is None else f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
