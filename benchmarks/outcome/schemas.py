"""The JSON schemas of all results; ``python -m isotrain.benchmarks.outcome.schemas`` writes them to schema/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from ...albert_core.runs.files import write_text
from ..harness.document import Part
from .against import AGAINST, Against
from .conformance import CONFORMANCE, Conformance
from .end_to_end import END_TO_END, EndToEnd
from .model import BENCH, Bench
from .parity import PARITY, Parity

FOLDER = Path(__file__).resolve().parents[1] / "schema"
WIDTH = 120


class _Untitled(GenerateJsonSchema):
    """Omits the titles of fields, which would only repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        del schema
        return False


def schemas() -> dict[str, str]:
    """The text of each schema file, by its name."""
    kinds: dict[str, type[Part]] = {
        BENCH: Bench,
        AGAINST: Against,
        CONFORMANCE: Conformance,
        END_TO_END: EndToEnd,
        PARITY: Parity,
    }
    return {
        f"{name.removeprefix('isotrain.').replace('/', '-')}.json": _written(
            {
                "$schema": GenerateJsonSchema.schema_dialect,
                "$id": name,
                **model.model_json_schema(schema_generator=_Untitled),
            }
        )
        + "\n"
        for name, model in kinds.items()
    }


def _written(value: Any, indent: int = 0, used: int = 0) -> str:
    """JSON with one line for each value that fits into it. used: characters before it in its line."""
    flat = json.dumps(value)
    is_deep = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))
    if used + len(flat) < WIDTH or not is_deep:
        return flat
    space = " " * (indent + 2)
    if isinstance(value, dict):
        keys = [f"{space}{json.dumps(key)}: " for key in value]
        parts = [key + _written(part, indent + 2, len(key)) for key, part in zip(keys, value.values(), strict=True)]
    else:
        parts = [space + _written(part, indent + 2, len(space)) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(parts) + "\n" + " " * indent + closing


if __name__ == "__main__":
    for file, text in schemas().items():
        write_text(FOLDER / file, text)
