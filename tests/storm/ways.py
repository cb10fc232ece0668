"""Ways to change a file. Each gets the file, another run's of the same name and chances; says what it did, or None."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Way = Callable[[Path, Path, random.Random], str | None]

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    float("nan"),
    "",
    "x",
    "1",
    [],
    [1],
    {},
    {"a": 1},
    "a" * 5000,
)


def flip(path: Path, other: Path, chance: random.Random) -> str | None:
    data = bytearray(path.read_bytes())
    if not data:
        return None
    position, bit = chance.randrange(len(data)), chance.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {position} flipped"


def cut(path: Path, other: Path, chance: random.Random) -> str | None:
    data = path.read_bytes()
    if not data:
        return None
    kept = chance.randrange(len(data))
    path.write_bytes(data[:kept])
    return f"cut to {kept} bytes"


def lengthen(path: Path, other: Path, chance: random.Random) -> str:
    added = chance.randbytes(chance.randrange(1, 40))
    with path.open("ab") as file:
        file.write(added)
    return f"lengthened by {added!r}"


def empty(path: Path, other: Path, chance: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def delete(path: Path, other: Path, chance: random.Random) -> str:
    path.unlink()
    return "deleted"


def swap(path: Path, other: Path, chance: random.Random) -> str | None:
    if not other.is_file() or other.read_bytes() == path.read_bytes():
        return None
    shutil.copyfile(other, path)
    return "replaced by another run's"


def garbage(path: Path, other: Path, chance: random.Random) -> str:
    data = chance.choice((chance.randbytes(64), b"\x00" * 100, b"\xff\xfe\x00x", b"[" * 20_000, b"PK\x03\x04" * 8))
    path.write_bytes(data)
    return f"replaced by {data[:12]!r}"


def other_json(path: Path, other: Path, chance: random.Random) -> str:
    value = chance.choice(VALUES)
    path.write_text(json.dumps(value))
    return f"replaced by the JSON {json.dumps(value)[:20]}"


def other_type(path: Path, other: Path, chance: random.Random) -> str | None:
    """One value of a JSON or YAML document becomes another, of any type, or its key goes."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".yaml":
        lines = text.splitlines()
        at = chance.randrange(len(lines))
        key, value = lines[at].partition(":")[0], json.dumps(chance.choice(VALUES))
        lines[at] = f"{key}: {value}"
        path.write_text("\n".join(lines) + "\n")
        return f"{key} says {value[:20]}"
    try:
        document = json.loads(text)
    except ValueError:
        return None
    places = list(_places(document))
    if not places:
        return None
    holder, key = chance.choice(places)
    if chance.random() < 0.3:
        del holder[key]
        done = "removed"
    else:
        holder[key] = chance.choice(VALUES)
        done = f"set to {str(holder[key])[:20]}"
    path.write_text(json.dumps(document))
    return f"{key!r} {done}"


def folder(path: Path, other: Path, chance: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "replaced by a folder"


def dangling(path: Path, other: Path, chance: random.Random) -> str:
    path.unlink()
    path.symlink_to("nowhere")
    return "replaced by a link to nowhere"


def _places(value: Any) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (flip, cut, lengthen, empty, delete, swap, garbage, other_json, other_type, folder, dangling)
}
