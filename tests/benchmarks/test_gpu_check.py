"""The GPU check, run small on the host: what it finds wrong, what it writes, and how it ends without a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain.backends import get_backend
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.suites import gpu_check
from isotrain.benchmarks.suites.gpu_operators import fastest

TINY = gpu_check.Size(
    model="random:tiny",
    check_models=("random:tiny",),
    check_lengths=(1, 3, 20),
    texts=40,
    batch_tokens=300,
    padded_batch=16,
    max_length=64,
    rounds=3,
    compiled=False,
)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return gpu_check.run(get_backend("cpu"), "float32", TINY).document()


def test_a_right_device_passes(result: dict[str, Any]) -> None:
    assert result["problems"] == []
    ran = [check for check in result["checks"] if check["error"] is not None]
    # The host's own native kernel, where it is there, is what "auto" runs in bfloat16.
    expected = {("auto", "portable"), ("portable", "portable")}
    assert expected <= {(check["kernel"], check["ran"]) for check in ran} <= expected | {("auto", "native")}
    assert all(0 < check["error"] <= check["allowed"] for check in ran)
    assert {check["kernel"] for check in result["checks"] if check["skipped"]} == {"triton", "flash"}


def test_every_contender_did_the_same_work(result: dict[str, Any]) -> None:
    throughput = result["throughput"]
    assert list(throughput["contenders"]) == [
        "ours, auto",
        "ours, auto, copied from the host",
        "ours, portable",
        "transformers, padded to 64, eager",
        "transformers, sorted by length, eager",
    ]
    for row in throughput["contenders"].values():
        assert len(row["samples"]) == TINY.rounds
        assert 0 < row["share_of_peak"] < 1
        assert row["texts_per_second"] == pytest.approx(40 / row["seconds"]["median"])
    for name, ratio in throughput["speedup_of_ours"].items():
        expected = throughput["contenders"][name]["seconds"]["median"]
        assert ratio["median"] == pytest.approx(expected / throughput["contenders"]["ours, auto"]["seconds"]["median"])


def test_the_operators_are_compared(result: dict[str, Any], triton_device: torch.device) -> None:
    assert list(result["operators"]) == ["attention", "residual and LayerNorm", "bias and activation"]
    for name, part in result["operators"].items():
        assert isinstance(part["seconds"]["triton"], float) or torch.cuda.is_available()
        assert part["fastest"], name
    if not torch.cuda.is_available():
        assert result["operators"]["attention"]["seconds"]["flash"].startswith("unavailable: ")
    assert fastest({"a": 2.0, "b": 1.0, "c": "unavailable: no"}) == "b"
    assert fastest({"c": "unavailable: no"}) == ""


def test_the_result_is_written_and_told(result: dict[str, Any], tmp_path: Path) -> None:
    json.dumps(result)
    text = "\n".join(gpu_check.summary(gpu_check.GpuCheck.model_validate(result), 3.0))
    for part in ("matrix peak", "of the peak", "figure: share of the peak", "attention: fastest is", "head step of 8"):
        assert part in text
    assert "WRONG" not in text
    now = datetime(2031, 2, 3, tzinfo=UTC)
    assert gpu_check.result_path(tmp_path, "NVIDIA H100 80GB HBM3", now).name == "nvidia-h100-80gb-hbm3-20310203.json"


class WrongBackend(CpuBackend):
    """Features a hundredth off, as a bad kernel would give."""

    def frozen_encoder(self, weights: Any, policy: Any, kernel: str = "auto") -> Any:
        encoder = super().frozen_encoder(weights, policy, kernel)

        class Wrong:
            name, version = encoder.name, encoder.version

            def __call__(self, batch: Any) -> torch.Tensor:
                return encoder(batch) * 1.2

        return Wrong() if kernel == "auto" else encoder


def test_a_wrong_kernel_is_found_and_ends_in_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "get_backend", lambda _: WrongBackend())
    monkeypatch.setattr(gpu_check, "QUICK", replace(TINY, rounds=1))
    assert gpu_check.main(["--quick", "--dtype", "float32", "--out", str(tmp_path)]) == 1
    (file,) = tmp_path.iterdir()
    problems = json.loads(file.read_text())["problems"]
    assert any(problem.startswith("auto, random:tiny: error") for problem in problems)
    assert any("ours, auto: features differ" in problem for problem in problems)
    assert "WRONG: auto, random:tiny" in capsys.readouterr().out


def test_without_a_gpu_it_ends_in_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu_check.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("isotrain: error: backend 'cuda' can't run here: ")
    assert error.count("\n") == 1
    assert gpu_check.main(["--backend", "nothing"]) == 2
