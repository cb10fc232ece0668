"""The TPU backend as the loop relies on it, in this process and through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import backend_class, get_backend
from isotrain.benchmarks.parity.judge import judge as judge_trace
from isotrain.conformance import device, encoder, operations, training
from isotrain.conformance.case import Case, Device
from isotrain.conformance.worker import judge
from isotrain.kernels.packed import PackedBatch
from support.command import one_line_error
from support.parity_job import FLOAT32, ParityJob, write_model
from support.running_statistics import MODULES, check_running_statistics

LABEL = "tpu (torch_tpu on XLA's CPU device)"


# What it doesn't claim. A host may have counters of energy.
UNCLAIMED = {"recompute", "unknown-option"}


@pytest.mark.parametrize("case", device.cases(), ids=lambda case: case.subject)
def test_it_holds_the_contract_of_a_device(backend: Any, case: Case) -> None:
    judged = judge(case, Device(backend))
    unclaimed = UNCLAIMED | ({"energy"} if backend.energy().joules is None else set())
    assert judged.status == ("unsupported" if case.subject in unclaimed else "pass"), judged.detail


def not_passing(backend: Any, cases: Iterable[Case]) -> dict[str, str]:
    """What the checks that don't pass say, by their names."""
    found = {case.name: judge(case, Device(backend)) for case in cases}
    return {name: one.detail for name, one in found.items() if one.status != "pass"}


@pytest.mark.slow
def test_operations_are_within_their_error_budget(backend: Any) -> None:
    assert not_passing(backend, (case for case in operations.cases() if case.dtype in ("", "float32"))) == {}


# The rest of `isotrain conformance --backend tpu` takes minutes, for each shape in it is compiled.
CHOSEN = {"features", "layers", "replay", "padding", "head", "captured-step", "learning-rate", "static-grid"}


@pytest.mark.slow
def test_encoders_and_training_are_within_their_error_budget(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "LENGTHS", (63, 1, 2, 64, 3, 17))
    monkeypatch.setattr(encoder, "MAX_TOKENS", 64)
    cases = [case for case in (*encoder.cases(), *training.cases()) if case.subject in CHOSEN]
    assert {case.subject for case in cases} == CHOSEN
    assert not_passing(backend, (case for case in cases if case.dtype in ("", "float32"))) == {}


def test_its_figures_say_that_it_is_no_tpu(backend: Any) -> None:
    assert backend_class("tpu").probe().ok
    info = backend.info()
    assert info.emulated
    assert info.name.endswith("(torch_tpu on XLA's CPU device)")
    assert info.versions["torch_tpu"].startswith("0.2")
    assert backend.caveat == type(backend).foreseen_caveat() == LABEL
    assert backend.memory().scope == "resident memory of the process"


def test_a_mode_that_its_compiler_has_not_is_refused(backend: Any) -> None:
    with pytest.raises(UserError, match="set torch_compile: default"):
        backend.check_compile_mode("max-autotune")


def test_a_device_that_is_not_there_is_refused(backend: Any) -> None:
    with pytest.raises(UserError, match="a process has one device of it; write tpu"):
        get_backend("tpu:7")


def test_the_seed_decides_the_devices_generator_too(backend: Any) -> None:
    torch.manual_seed(7)
    first = get_backend("tpu").rng_state()["tpu"]
    torch.manual_seed(8)
    assert not torch.equal(get_backend("tpu").rng_state()["tpu"], first)
    torch.manual_seed(7)
    assert torch.equal(get_backend("tpu").rng_state()["tpu"], first)


def test_float32_products_have_float32s_digits_beside_those_of_the_host(backend: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((64, 768), (768, 64)))
    for product in ((backend.place(left) @ backend.place(right)).cpu(), left @ right):
        assert relative(product, left.double() @ right.double()) < 1e-6


@pytest.mark.parametrize("module", MODULES)
def test_running_statistics_are_the_hosts(backend: Any, module: str) -> None:
    check_running_statistics(backend, module)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def test_the_frozen_encoder_in_bfloat16_gives_the_cpu_backends_features(backend: Any) -> None:
    loaded = load_encoder("random:tiny")
    batch = PackedBatch.from_lists([[2, 5, 9, 3], [2, 7], [2, *range(10, 30)]])
    host = get_backend("cpu")
    reference = host.frozen_encoder(loaded.weights, host.cast_policy("float32"))(batch)
    forward = backend.frozen_encoder(loaded.weights, backend.cast_policy("bfloat16"))
    assert relative(forward(backend.place(batch.to_padded(32))).cpu(), reference.double()) < 1e-2
    with pytest.raises(UserError, match="layout: bucketed or padded"):
        forward(backend.place(batch))


def isotrain(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """A command in a process of its own: (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "isotrain.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_other_commands_do_not_wait_for_torch_tpu() -> None:
    program = """
import sys
from isotrain.cli.main import main
try:
    main(["train", "quickstart", "--backend", "cpu:3"])
finally:
    print(sorted({"torch", "torch_tpu"} & set(sys.modules)))
"""
    # As torch does by itself.
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    del environment["TORCH_DEVICE_BACKEND_AUTOLOAD"]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "['torch']\n", done.stderr


def test_no_device_is_one_line() -> None:
    """A plugin library, and a machine on which torch_tpu finds no TPU."""
    others = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if Path(path).name != "stand"]
    environment = {"PYTHONPATH": os.pathsep.join(others), "TPU_LIBRARY_PATH": os.environ["TPU_LIBRARY_PATH"]}
    done = isotrain("train", "quickstart", "--backend", "tpu", **environment)
    one_line_error(done, "torch_tpu registers no device, since it finds no TPU")


def test_a_plugin_that_is_not_for_tpus_is_one_line(tmp_path: Path) -> None:
    """The stand changes the library of its own name only: this one refuses what torch_tpu asks of a TPU's."""
    library = tmp_path / "libtpu.so"
    library.symlink_to(os.environ["TPU_LIBRARY_PATH"])
    done = isotrain("train", "quickstart", "--backend", "tpu", TPU_LIBRARY_PATH=str(library))
    one_line_error(done, "torch_tpu can't open a device (", "check", "the library that TPU_LIBRARY_PATH names")


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [{}, {"freeze_encoder": False, "learning_rate": 1e-3, "max_grad_norm": 1.0, "num_epochs": 1}],
    ids=["head", "whole model"],
)
def test_its_steps_are_within_float64s_error_budget(backend: Any, keys: dict[str, Any], tmp_path: Path) -> None:
    job = ParityJob(write_model(tmp_path), **keys)
    candidate = job.record("tpu:float32", backend="tpu", layout="bucketed", **FLOAT32)
    assert LABEL in candidate.header.label
    assert candidate.header.emulated
    found = judge_trace(job.reference, candidate, job.error_budgets(candidate))
    assert found.verdict == "pass", found.reasons
