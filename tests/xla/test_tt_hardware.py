"""The card's path, executed with torch_xla's CPU device in the card's place and the vendor's entry points faked.

What is real: torch_xla, tracing, compiling, the loop. What is not: the card, its plugin, its compiler.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.encoder import load_encoder
from isotrain.albert_core.train import TrainResult
from isotrain.backends import get_backend, tt
from isotrain.kernels.packed import PackedBatch
from support.small_job import losses

Run = Callable[..., TrainResult]


class Card:
    """What the vendor's stack was told: options of its compiler, in order, and graphs that dynamo handed over."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []
        self.graphs: list[tuple[torch.fx.GraphModule, dict[str, Any]]] = []
        self.compiled_under: list[str] = []


@pytest.fixture
def card(backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    import torch_xla
    from torch._dynamo.backends import registry
    from torch_xla import runtime

    told = Card()

    def compiler(graph: torch.fx.GraphModule, inputs: Any, options: dict[str, Any]) -> Callable[..., Any]:
        told.graphs.append((graph, options))
        return graph.forward

    sync = torch_xla.sync

    def counting_sync(*args: Any, **kwargs: Any) -> None:
        before = backend.compile_count()
        sync(*args, **kwargs)
        if backend.compile_count() != before:
            told.compiled_under.append(told.options[-1]["experimental_weight_dtype"])

    (tmp_path / "tenstorrent").mkdir()
    (tmp_path / "tenstorrent" / "0").touch()
    entry = EntryPoint("tt", "torch_plugin_tt:TTPlugin", tt.PLUGIN_GROUP)
    monkeypatch.setattr(tt, "CARD_FOLDER", tmp_path / "tenstorrent")
    monkeypatch.setattr(tt, "entry_points", lambda **_: [entry])
    monkeypatch.setattr(tt, "DEVICE_TYPE", "CPU")
    # `_open` sets it for good; afterwards it is gone again.
    monkeypatch.setenv("XLA_STABLEHLO_COMPILE", "0")
    monkeypatch.setattr(torch_xla, "set_custom_compile_options", told.options.append, raising=False)
    monkeypatch.setattr(torch_xla, "sync", counting_sync)
    monkeypatch.setattr(
        runtime, "global_runtime_device_attributes", lambda: [{"name": "TT:0", "device_arch": "Wormhole_b0"}]
    )
    monkeypatch.setitem(sys.modules, "tt_torch", ModuleType("tt_torch"))
    # As torch._dynamo.register_backend does it, which has no way back.
    monkeypatch.setitem(registry._BACKENDS, "tt", None)
    monkeypatch.setitem(registry._COMPILER_FNS, "tt", compiler)
    torch._dynamo.reset()
    return told


def test_the_compiler_is_told_the_options_under_its_names(card: Card) -> None:
    opened = get_backend("tt", {"tt": {"math_fidelity": "hifi2", "fp32_dest_acc_en": False, "optimization_level": 1}})
    assert card.options == [
        {
            "optimization_level": 1,
            "math_fidelity": "hifi2",
            "fp32_dest_acc_en": False,
            "enable_const_eval": False,
            "experimental_weight_dtype": "",
        }
    ]
    assert os.environ["XLA_STABLEHLO_COMPILE"] == "1"
    info = opened.info()
    assert info.name == "Tenstorrent wormhole_b0"
    assert not info.emulated
    assert "hifi2, bfloat16 destination" in info.features
    assert opened.cast_policy("bfloat16").label == "bfloat16, hifi2, bfloat16 destination"
    with pytest.raises(UserError, match="allowed are float32, bfloat16"):
        opened.cast_policy("float64")


def test_another_card_than_the_configurations_is_refused(card: Card) -> None:
    with pytest.raises(UserError, match=r"tt\.arch is 'blackhole', and the card is a 'wormhole_b0'"):
        get_backend("tt", {"tt": {"arch": "blackhole"}})


def test_training_gives_the_cpu_backends_losses(card: Card, run: Run) -> None:
    job = {"steps_freq": 1, "learning_rate": 1e-3, "warmup_ratio": 0.2}
    result, reference = run(backend="tt", **job), run(backend="cpu", layout="bucketed", **job)
    pairs = zip(losses(result), losses(reference), strict=True)
    assert max(abs(got[1] - want[1]) / want[1] for got, want in pairs) <= 1e-5
    assert {options["tt_lazy_execution"] for _, options in card.graphs} == {True}
    assert len(card.graphs) >= 2
    saved = json.loads((result.run.path / "run.json").read_text())
    assert saved["device"]["name"] == "Tenstorrent wormhole_b0"
    assert saved["device"]["emulated"] is False


def test_a_resume_is_bit_for_bit(card: Card, run: Run) -> None:
    straight = run(backend="tt", run_name="straight", steps_freq=1, num_epochs=1)
    first = run(backend="tt", run_name="cut", steps_freq=1, num_epochs=1, stop_at_step=4)
    assert losses(run(backend="tt", resume=first.run, steps_freq=1, num_epochs=1)) == losses(straight)


def test_a_whole_model_trains(card: Card, run: Run) -> None:
    job = {"freeze_encoder": False, "learning_rate": 1e-4, "num_epochs": 1, "steps_freq": 1}
    result, reference = run(backend="tt", **job), run(backend="cpu", layout="bucketed", **job)
    pairs = zip(losses(result), losses(reference), strict=True)
    assert max(abs(got[1] - want[1]) / want[1] for got, want in pairs) <= 1e-5


@pytest.mark.parametrize("feature_cache", [True, False])
def test_only_the_frozen_encoders_programs_have_block_weights(card: Card, run: Run, feature_cache: bool) -> None:
    sizes = {"mlp_hidden_size": 18 + feature_cache, "max_length": 29 + feature_cache}
    result = run(backend="tt", tt={"weight_dtype": "bfp_bf8"}, feature_cache=feature_cache, num_epochs=1, **sizes)
    assert result.status == "completed"
    # Whatever else is compiled (the head's step and its evaluation among it) has none.
    assert "bfp_bf8" in card.compiled_under
    assert card.compiled_under.count("") >= 2
    assert card.options[-1]["experimental_weight_dtype"] == ""


def test_batches_fit_the_cards_tiles(card: Card) -> None:
    grid = get_backend("tt", {}).static_shapes
    assert all(length % 32 == 0 for length in grid.lengths)


def test_the_frozen_encoder_takes_padded_batches_only(card: Card) -> None:
    opened = get_backend("tt", {})
    encoder = opened.frozen_encoder(load_encoder("random:tiny").weights, opened.cast_policy("float32"))
    packed = PackedBatch.from_lists([[2, 5, 3]])
    with pytest.raises(UserError, match="layout: bucketed or padded"):
        encoder(packed)
    assert encoder(opened.place(packed.to_padded(32))).shape == (1, 64)


def test_adam_keeps_its_step_on_the_device(card: Card) -> None:
    assert get_backend("tt", {}).adam_options() == {"capturable": True}


def test_a_missing_option_call_of_a_public_torch_xla_is_one_clear_line(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch_xla

    monkeypatch.delattr(torch_xla, "set_custom_compile_options")
    with pytest.raises(UserError, match="the vendor's torch_xla"):
        get_backend("tt", {})
