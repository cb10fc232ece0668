"""A Tenstorrent card through torch_tpu: `tt-tpu` with XLA's CPU device in the card's place (`stand/`).

What is real: torch_tpu, its programs and the options that they are compiled with, the loop. What is not: the card, its
plugin, its compiler. The stand-in reads the options as the vendor's plugin does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import backend_class, get_backend, resolve
from isotrain.backends.tt import stacks
from isotrain.backends.tt.card_tpu import TtTpuBackend
from isotrain.kernels.packed import PackedBatch
from support.command import one_line_error
from support.small_job import losses, settings, write_dataset
from support.small_runs import Run, check_resume

TOLD = {
    "optimization_level": "0",
    "math_fidelity": "hifi4",
    "fp32_dest_acc_en": "true",
    "enable_const_eval": "false",
    "experimental_weight_dtype": "",
}
Open = Callable[..., TtTpuBackend]


class Log:
    """The card's options that each program was compiled with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def new(self) -> list[dict[str, str]]:
        """Those since the last call."""
        lines = self.path.read_text().splitlines()
        self.path.write_text("")
        return [json.loads(line) for line in lines]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    path = tmp_path / "compiled.jsonl"
    monkeypatch.setenv("STAND_LOG", str(path))
    # Where torch.compile finds the programs of earlier processes.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    return Log(path)


@pytest.fixture
def card(backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """This machine has a card of a kind, by default Blackhole, until the test ends."""
    (tmp_path / "tenstorrent").mkdir()
    (tmp_path / "tenstorrent" / "0").touch()
    monkeypatch.setattr(stacks, "CARD_FOLDER", tmp_path / "tenstorrent")
    module, opened, start = torch.get_device_module("tpu"), [], TtTpuBackend.__init__

    def name_it(kind: str) -> None:
        monkeypatch.setattr(module, "_get_local_device_attributes", lambda: {"device_kind": kind})

    def remember(self: TtTpuBackend, *arguments: Any) -> None:
        start(self, *arguments)
        opened.append(self)

    monkeypatch.setattr(TtTpuBackend, "__init__", remember)
    name_it("Blackhole")
    yield name_it
    for one in reversed(opened):
        one.compiling.close()


BLACKHOLE = {"arch": "blackhole"}


def fresh(size: int) -> torch.Tensor:
    """A matrix whose shape no other test compiles for."""
    return torch.randn(size, size)


def test_tt_takes_it_where_the_vendors_plugin_is_not_installed(card: Any) -> None:
    assert backend_class("tt-tpu").probe().reason.endswith("; --backend tt is tt-tpu")
    assert resolve("tt", {"tt": BLACKHOLE}) == "tt-tpu"
    opened = get_backend("tt", {"tt": BLACKHOLE})
    info = opened.info()
    assert (opened.name, info.name, info.emulated, info.untested) == ("tt-tpu", "Tenstorrent blackhole", False, True)
    assert (opened.caveat, str(opened.device)) == ("", "tpu:0")
    assert "hifi4, float32 destination" in info.features
    assert info.versions["torch_tpu"].startswith("0.2")


def test_every_program_has_the_options_under_the_compilers_names(card: Any, log: Log) -> None:
    options = {"math_fidelity": "hifi2", "fp32_dest_acc_en": False, "optimization_level": 1} | BLACKHOLE
    opened = get_backend("tt-tpu", {"tt": options})
    assert opened.cast_policy("bfloat16").label == "bfloat16, hifi2, bfloat16 destination"
    with pytest.raises(UserError, match="allowed are float32, bfloat16"):
        opened.cast_policy("float64")
    told = TOLD | {"math_fidelity": "hifi2", "fp32_dest_acc_en": "false", "optimization_level": "1"}
    log.new()
    left = opened.place(fresh(37)).requires_grad_()
    product = left @ left
    opened.synchronize(product)
    forward = log.new()
    assert forward
    # Autograd computes it in a thread of its own.
    product.square().sum().backward()
    opened.synchronize(left.grad)
    backward = log.new()
    assert backward
    compiled = opened.compile(lambda x: (x @ x).relu(), "default")
    opened.synchronize(compiled(opened.place(fresh(38))))
    whole = log.new()
    assert whole
    assert [program for program in (*forward, *backward, *whole) if program != told] == []


def test_a_program_on_the_disk_is_not_taken_for_other_options(card: Any, log: Log) -> None:
    def compiled_anew(fidelity: str) -> list[str]:
        opened = get_backend("tt-tpu", {"tt": BLACKHOLE | {"math_fidelity": fidelity}})
        torch._dynamo.reset()
        placed = opened.place(torch.ones(43, 43))
        log.new()
        opened.synchronize(opened.compile(lambda x: (x @ x).relu(), "default")(placed))
        return [program["math_fidelity"] for program in log.new()]

    assert [compiled_anew(fidelity) for fidelity in ("hifi4", "hifi4", "lofi")] == [["hifi4"], [], ["lofi"]]


def test_a_thread_that_opens_no_backend_has_no_options(card: Any, log: Log) -> None:
    """As the class says of threads."""
    opened = get_backend("tt-tpu", {"tt": BLACKHOLE})
    log.new()
    placed = opened.place(fresh(39))
    thread = threading.Thread(target=lambda: opened.synchronize(placed @ placed))
    thread.start()
    thread.join()
    assert {} in log.new()


@pytest.mark.parametrize(
    ("name", "value"), [("math_fidelity", "hifi5"), ("fp32_dest_acc_en", "2"), ("fidelity", "lofi")]
)
def test_the_stand_in_refuses_what_the_vendors_plugin_does_not_know(
    backend: Any, log: Log, name: str, value: str
) -> None:
    from torch_tpu._internal.compiler_options import custom_compiler_options

    with custom_compiler_options({name: value}), pytest.raises(RuntimeError, match=name):
        backend.place(fresh(41)).cosh().cpu()


def test_another_card_than_the_configurations_is_refused(card: Any) -> None:
    with pytest.raises(UserError, match=r"tt\.arch is 'wormhole', and the card is a 'blackhole'"):
        get_backend("tt-tpu")
    card("Wormhole_b0")
    assert get_backend("tt-tpu").info().name == "Tenstorrent wormhole_b0"
    with pytest.raises(UserError, match=r"tt-tpu and tt\.device: emulated contradict each other"):
        get_backend("tt-tpu", {"tt": {"device": "emulated"}})


def test_a_plugin_of_another_device_is_refused(card: Any) -> None:
    card("cpu")
    with pytest.raises(UserError, match=r"plugin whose device is 'cpu', which is no Tenstorrent card"):
        get_backend("tt-tpu")


def test_a_process_has_one_card(card: Any) -> None:
    with pytest.raises(UserError, match="write tt-tpu, and choose it by TT_VISIBLE_DEVICES"):
        get_backend("tt-tpu:1")


@pytest.mark.parametrize("whole", [False, True], ids=["head", "whole model"])
def test_training_gives_the_cpu_backends_losses(card: Any, run: Run, whole: bool) -> None:
    job = {
        "steps_freq": 1,
        "layout": "bucketed",
        "learning_rate": 1e-3,
        "warmup_ratio": 0.2,
        "freeze_encoder": not whole,
    }
    result = run(backend="tt-tpu", tt=BLACKHOLE, **job)
    pairs = zip(losses(result), losses(run(backend="cpu", **job)), strict=True)
    assert max(abs(got[1] - want[1]) / want[1] for got, want in pairs) <= 1e-5
    saved = json.loads((result.run.path / "run.json").read_text())
    assert saved["device"]["name"] == "Tenstorrent blackhole"
    assert saved["device"]["emulated"] is False


def test_a_resume_is_bit_for_bit(card: Any, run: Run) -> None:
    check_resume(run, backend="tt-tpu", tt=BLACKHOLE)


@pytest.mark.parametrize("feature_cache", [True, False])
def test_only_the_frozen_encoders_programs_have_block_weights(
    card: Any, run: Run, log: Log, feature_cache: bool
) -> None:
    sizes = {"mlp_hidden_size": 18 + feature_cache, "max_length": 29 + feature_cache}
    options = {"weight_dtype": "bfp_bf8"} | BLACKHOLE
    assert run(backend="tt-tpu", tt=options, feature_cache=feature_cache, num_epochs=1, **sizes).status == "completed"
    compiled = [program["experimental_weight_dtype"] for program in log.new()]
    # Whatever else is compiled, the head's step and its evaluation among it, has none.
    assert compiled.count("bfp_bf8") >= 1
    assert compiled.count("") >= 2
    assert set(compiled) == {"", "bfp_bf8"}


def test_batches_fit_the_cards_tiles_and_are_padded(card: Any) -> None:
    opened = get_backend("tt-tpu", {"tt": BLACKHOLE})
    assert all(length % 32 == 0 for length in opened.static_shapes.lengths)
    encoder = opened.frozen_encoder(load_encoder("random:tiny").weights, opened.cast_policy("float32"))
    packed = PackedBatch.from_lists([[2, 5, 3]])
    with pytest.raises(UserError, match="layout: bucketed or padded"):
        encoder(packed)
    assert encoder(opened.place(packed.to_padded(32))).shape == (1, 64)


def isotrain(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """A command in a process of its own: (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "isotrain.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_the_command_trains_on_a_machine_without_a_tpu(tmp_path: Path) -> None:
    """torch_tpu registers its device for TPUs alone by itself."""
    sets = settings(
        write_dataset(tmp_path / "intents"), tmp_path, num_epochs=1, run_name="r", **{"tt.arch": "blackhole"}
    )
    told = tmp_path / "compiled.jsonl"
    arguments = [f"--set={one}" for one in sets]
    code, out, err = isotrain(
        "train", "quickstart", "--backend", "tt", *arguments, STAND_CARD="Blackhole", STAND_LOG=str(told)
    )
    assert code == 0, err
    assert "completed: random:tiny" in out
    assert json.loads((tmp_path / "runs" / "r" / "run.json").read_text())["device"]["name"] == "Tenstorrent blackhole"
    programs = [json.loads(line) for line in told.read_text().splitlines()]
    assert [program for program in programs if program != TOLD] == []
    assert len(programs) >= 10


def test_a_tpu_that_is_no_card_is_one_line() -> None:
    done = isotrain("train", "quickstart", "--backend", "tt-tpu", STAND_CARD="cpu")
    one_line_error(done, "TPU_LIBRARY_PATH names a PJRT plugin whose device is 'cpu'")
