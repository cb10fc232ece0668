"""Users' own workloads: the shipped examples on a device, and small ones that tests write themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.config.load import as_set, load_config
from isotrain.albert_core.loop.train import train
from isotrain.backends import get_backend
from isotrain.benchmarks.harness import worker
from isotrain.benchmarks.harness.document import Peaks
from isotrain.benchmarks.harness.plan import MODULE_WORKLOADS, Options, make_plan

from .command import Invoke
from .small_job import losses

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "workloads"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))

# A device drops other values than the host does.
DROPPING = ("dropout", "hugging_face")
# What a worker doesn't measure again.
PEAKS = Peaks(
    dtype="float32",
    matmul_tflops=1.0,
    matmul_size=1024,
    copy_gbps=100.0,
    step_copy_gbps=100.0,
    vendor_tflops=None,
    vendor_gbps=None,
    seconds=0.0,
    contended=False,
)

# A line fitted with dropout, by four batches.
LINE = """\
import torch
from torch import nn


class Line:
    def model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(5, 3, generator=generator) for _ in range(4)]

    def loss(self, model, batch):
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()
"""


def write_workload(folder: Path, text: str = LINE) -> str:
    """Writes a workload's file into `folder` and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "own.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def own_settings(workload: str, folder: Path, **overrides: Any) -> list[str]:
    """A short float32 run of a workload as ``key=value`` strings, with runs under `folder`."""
    values = {
        "workload": workload,
        "dtype": "float32",
        "steps_freq": 1,
        "num_epochs": 1,
        "threads": 1,
        "project_dir": str(folder / "runs"),
    } | overrides
    return [as_set(key, value) for key, value in values.items()]


def check_trained(name: str, backend: str, folder: Path) -> None:
    """Holds a short float32 run of an example on a device to the losses of the CPU backend."""
    keys = {"max_steps": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
    spec = str(EXAMPLES / f"{name}.py")
    runs = [train(load_config(None, own_settings(spec, folder, backend=one, **keys))) for one in (backend, "cpu")]
    got, want = ([loss for _, loss in losses(run)] for run in runs)
    assert got == pytest.approx(want, rel=0.5 if name in DROPPING else 1e-4)
    assert len(set(got)) == 3


def check_measured(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures an example on a device. Its answers are judged by the module on the host."""
    # Other work makes a fence of so small steps look late.
    monkeypatch.setattr("isotrain.benchmarks.harness.measure.LARGEST_LATE_SHARE", 100.0)
    spec = str(EXAMPLES / f"{name}.py")
    options = Options(
        (backend,), model=spec, module=True, workloads=MODULE_WORKLOADS, dtypes=("float32",), blocks=2, seconds=0.02
    )
    for target in make_plan(options).targets:
        if get_backend(backend).static_shapes is not None:
            # On a busy machine, its short warm-up may end before everything is compiled.
            worker.run(options, target, known_peaks=[PEAKS])
        measured = worker.run(options, target, known_peaks=[PEAKS])
        assert measured.reasons == [], target.label
        assert measured.work.hardware_flops > 1
        assert len(measured.probe) >= 1


def check_parity(invoke: Invoke, name: str, backend: str) -> None:
    """Holds an example on a device to float64, by the command, within what float32 allows."""
    words = ["--candidate", f"{backend}:float32", "--steps", "4", "--set", "threads=1", "--out", "out"]
    code, out, err = invoke("parity", str(EXAMPLES / f"{name}.py"), *words)
    assert code == 0, out + err
    (judged,) = json.loads(Path("out/parity.json").read_text())["candidates"]
    assert (judged["verdict"], judged["backend"]) == ("pass", backend)
    # The device has computed, by itself, and each layer from the reference's input.
    assert judged["worst"] > 0
    assert any(layer["local_relative_l2"] for layer in judged["layers"][1:]) or not judged["layers"]
