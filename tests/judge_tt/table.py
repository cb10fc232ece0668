"""The judge's table: as text, as Markdown for docs/tt-emulation.md, and as the JSON beside this file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from isotrain.kernels.tt.model import PHASES

from .run import Row

LAST = Path(__file__).with_name("last.json")


@dataclass(frozen=True)
class Table:
    """What the judge said. `software` names its parts with their versions."""

    software: str
    rows: tuple[Row, ...]

    @property
    def values(self) -> int:
        """Values compared in operations with a known algorithm."""
        return sum(row.values for row in self.rows if row.known)

    @property
    def mismatches(self) -> int:
        return sum(row.values - row.equal for row in self.rows if row.known)

    @property
    def verdict(self) -> str:
        unjudged = sum(bool(row.reason) for row in self.rows)
        said = f"{self.values:,} values of operations with a known algorithm: {self.mismatches:,} differ"
        return f"{said}; {unjudged} rows have cases without a result" if unjudged else said

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def load(path: Path = LAST) -> Table:
    data = json.loads(path.read_text(encoding="utf-8"))
    return Table(data["software"], tuple(Row(**row) for row in data["rows"]))


def line(row: Row) -> str:
    """One row as text."""
    what = " ".join(word for word in (row.arch, row.operation, row.formats, row.fidelity, row.destination) if word)
    share = f"{row.equal:,} of {row.values:,} equal" if row.values else "not judged"
    return f"{what}: {share}{f' ({row.reason})' if row.reason else ''}"


def markdown(rows: Sequence[Row]) -> str:
    """Rows of one operation and destination are added up: the table of docs/tt-emulation.md."""
    added: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.values:
            added.setdefault((row.operation, row.destination), []).append(row)
    lines = ["|operation|fidelity|destination|architecture|values|equal|", "|---" * 6 + "|"]
    for (operation, destination), parts in added.items():
        found = {row.fidelity for row in parts}
        ends = [name for name in PHASES if name in found]
        fidelity = "-".join(dict.fromkeys((ends[0], ends[-1]))) if ends else "any"
        archs = "/".join(sorted({row.arch for row in parts}))
        values, equal = sum(row.values for row in parts), sum(row.equal for row in parts)
        lines.append(f"|{operation}|{fidelity}|{destination}|{archs}|{values:,}|{equal:,}|")
    return "\n".join(lines)
