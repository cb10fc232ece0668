"""The card's path, executed with torch_xla's CPU device in the card's place and the vendor's entry points faked.

What is real: torch_xla, tracing, compiling, the loop. What is not: the card, its plugin, its compiler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import get_backend
from isotrain.kernels.packed import PackedBatch
from support.small_job import losses, settings
from support.tt_card import Card, put_card

Run = Callable[..., TrainResult]


@pytest.fixture
def card(backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    return put_card(monkeypatch, tmp_path, backend.compile_count)


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


# A process of its own: torch_xla takes a cache once, before it computes anything.
CACHED_RUN = """
import sys
from pathlib import Path

import pytest
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
from isotrain.backends.xla import XlaBackend
from support.tt_card import name_it_a_card, put_card

with pytest.MonkeyPatch.context() as patch:
    put_card(patch, Path(sys.argv[1]), lambda: 0)
    name_it_a_card(patch)
    result = train(load_config(None, sys.argv[2:]))
    print(result.status, result.run.path)
"""


def test_a_cards_programs_are_kept_on_the_disk(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch_xla

    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XLA_PERSISTENT_CACHE_PATH", raising=False)
    sets = settings(small_data, tmp_path, backend="tt", num_epochs=1)
    tests = str(Path(__file__).parents[1])
    program = f"import sys; sys.path.insert(0, {tests!r})\n{CACHED_RUN}"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), *sets], capture_output=True, text=True)
    assert done.stdout.startswith("completed "), done.stderr[-2000:]
    kept = tmp_path / "cache" / "xla" / f"tt-{torch_xla.__version__}"
    assert len(list(kept.iterdir())) >= 2, "the encoder's programs, and the head's"
    saved = json.loads((Path(done.stdout.split(maxsplit=1)[1].strip()) / "run.json").read_text())
    assert "PJRT TT" in saved["device"]["features"]


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
