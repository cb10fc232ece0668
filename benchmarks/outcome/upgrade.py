"""Upgrades earlier results and traces, which have other names for some fields and one backend. Numbers stay."""

from __future__ import annotations

import re
from typing import Any

from ...backends import renamed

_OLD = re.compile(r"isotrain\.(bench|end-to-end|parity|trace)/1")
_LAYER = re.compile(r"repetition (\d+)( alone)?")
_KEYS = {
    "disturbed": "contended",
    "peer": "baseline",
    "quiet": "steady",
    "repetition": "layer",
    "repetitions": "layers",
    "useful": "model",
    "useful_flops": "model_flops",
    "useful_tflops": "model_tflops",
    "yardstick": "error_budget",
    "yardsticks": "error_budgets",
}


def upgraded(document: Any) -> Any:
    """`document` in the newest schema and with today's names of backends. Anything else is returned unchanged."""
    document = renamed(document)
    schema = schema_of(document)
    old = _OLD.fullmatch(schema) if isinstance(schema, str) else None
    return {**_renamed(document), "schema": f"isotrain.{old[1]}/2"} if old else document


def schema_of(document: Any) -> Any:
    """What a JSON document names as its schema. None if it names none or is no object."""
    return document.get("schema") if isinstance(document, dict) else None


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_KEYS.get(key, key): _renamed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part) for part in value]
    return _LAYER.sub(r"layer \1\2", value) if isinstance(value, str) and _LAYER.fullmatch(value) else value
