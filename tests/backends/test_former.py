"""Files of the time when a card and its emulation shared the name tt: they load, and say which of the two they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from isotrain.backends import renamed
from isotrain.benchmarks.outcome.upgrade import upgraded

EMULATION = {"backend": "tt", "device": "cpu", "name": "tt (emulated): wormhole arithmetic on Zen 4", "emulated": True}
CARD = {"backend": "tt", "device": "xla:0", "name": "Tenstorrent wormhole", "emulated": False}


@pytest.mark.parametrize("schema", ["isotrain.bench/1", "isotrain.bench/2"])
def test_an_emulated_target_gets_the_name_of_today(schema: str) -> None:
    for label in ("tt (emulated) forward packed auto x8", "tt forward packed auto x8"):
        target = {"label": label, "backend": "tt", "emulated": True, "relative": {"to": label}}
        result = upgraded({"schema": schema, "targets": [target, target | {"device": EMULATION}]})
        for found in result["targets"]:
            assert (found["backend"], found["label"]) == ("tt-emulated", "tt-emulated forward packed auto x8")
        device = result["targets"][1]["device"]
        assert (device["backend"], device["emulated"]) == ("tt-emulated", True)
        assert device["name"].startswith("tt-emulated: wormhole")


@pytest.mark.parametrize("label", ["tt:hifi2", "tt:hifi2 (emulated)"])
def test_a_side_of_a_comparison_does_too(label: str) -> None:
    side = {"label": label, "backend": "tt", "device": EMULATION["name"], "emulated": True}
    assert renamed(side)["label"] == "tt-emulated:hifi2"
    assert renamed(side)["device"] == "tt-emulated: wormhole arithmetic on Zen 4"


def test_an_end_to_end_run_does_too() -> None:
    result = renamed({"config": {"backend": "tt"}, "device": EMULATION, "sides": [{"name": "ours on tt (emulated)"}]})
    assert result["config"]["backend"] == result["device"]["backend"] == "tt-emulated"
    assert result["sides"][0]["name"] == "ours on tt-emulated"


@pytest.mark.parametrize(
    "document",
    [
        {"label": "tt forward packed auto x8", "backend": "tt", "emulated": False, "device": CARD},
        {"label": "cpu forward packed native x8", "backend": "cpu", "emulated": False},
        {"label": "tt-emulated:hifi2", "backend": "tt-emulated", "emulated": True},
        {"label": "my tt run", "backend": "tt", "emulated": False},
        {"seed": 3, "shape": [1, 2], "text": None},
        "setting (emulated)",
    ],
)
def test_all_else_stays_as_it_is(document: Any) -> None:
    before = copy.deepcopy(document)
    assert renamed(document) == document == before


def test_an_earlier_run_is_resumed_under_its_new_name() -> None:
    """Its checkpoint holds the cast policy with the label of then."""
    assert renamed({"cast_policy": "bfloat16 bfloat16 float32 tt (emulated) hifi4, float32 destination"}) == {
        "cast_policy": "bfloat16 bfloat16 float32 tt-emulated hifi4, float32 destination"
    }
