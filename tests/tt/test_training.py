"""Emulated training: the command line's way, every fidelity and weight format, its label everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from isotrain.albert_core.config_file import load_config
from isotrain.albert_core.train import TrainResult, train
from isotrain.backends import get_backend
from isotrain.cli.main import main

FIDELITIES = ("lofi", "hifi2", "hifi3", "hifi4")
DTYPES = ("bfloat16", "bfp_bf8", "bfp_bf4")


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("isotrain.backends.tt.CARD_FOLDER", tmp_path / "none")


def run(folder: Path, backend: str = "tt", **tt: object) -> TrainResult:
    sets = {
        "dataset_id": "embedded:intents",
        "model_name": "random:tiny",
        "dtype": "float32",
        "num_epochs": 2,
        "learning_rate": 3e-3,
        "mlp_hidden_size": 32,
        "project_dir": str(folder),
    } | {f"tt.{key}": value for key, value in tt.items()}
    settings = [f"{key}={json.dumps(value)}" for key, value in sets.items()]
    return train(load_config(None, settings, {"backend": backend}))


def test_every_fidelity_and_weight_format_trains_and_precision_orders_the_losses(tmp_path: Path) -> None:
    exact = run(tmp_path / "cpu", backend="cpu").metrics["eval/loss"]
    gaps = {}
    for dtype in DTYPES:
        for fidelity in FIDELITIES:
            result = run(tmp_path / f"{dtype}-{fidelity}", math_fidelity=fidelity, weight_dtype=dtype)
            assert result.status == "completed"
            assert "tt (emulated)" in result.label
            gaps[dtype, fidelity] = abs(result.metrics["eval/loss"] - exact)
    print(f"\neval/loss of the cpu backend in float32: {exact:.5f}; distance from it:")
    for dtype in DTYPES:
        print(f"{dtype:9s}" + "".join(f"  {fidelity} {gaps[dtype, fidelity]:.5f}" for fidelity in FIDELITIES))
    # A loss moves at random by about what its features are off, so that only clear differences are ordered.
    assert max(gaps["bfloat16", fidelity] for fidelity in ("hifi3", "hifi4")) < gaps["bfp_bf4", "hifi4"]
    assert max(gaps["bfp_bf8", fidelity] for fidelity in FIDELITIES[1:]) < gaps["bfp_bf4", "hifi4"]
    assert gaps["bfloat16", "hifi4"] < gaps["bfloat16", "lofi"]


def test_everything_a_run_writes_says_that_it_is_emulated(tmp_path: Path) -> None:
    result = run(tmp_path, math_fidelity="hifi2", emulation="exact")
    log = (result.run.path / "train.log").read_text()
    assert "backend tt (emulated) on tt (emulated): wormhole arithmetic" in log
    assert "tt (emulated): every time and speed of this run is the emulation's on this host, never a card's" in log
    metrics = [json.loads(line) for line in (result.run.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["device"] for line in metrics} == {"tt (emulated)"}
    summary = json.loads(result.run.summary.read_text())
    assert summary["emulated"] is True
    assert summary["device"].startswith("tt (emulated)")
    about = json.loads((result.run.path / "run.json").read_text())
    assert about["device"]["emulated"] is True
    assert "tt (emulated) hifi2" in about["identity"]["cast_policy"]


def test_a_bfloat16_optimizer_leaves_bfloat16_values() -> None:
    backend = get_backend("tt", {"tt": {"device": "emulated", "optimizer_dtype": "bfloat16"}})
    layer = backend.place(torch.nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    backend.prepare_optimizer(optimizer)
    layer(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    held = [layer.weight.data, optimizer.state[layer.weight]["exp_avg"], optimizer.state[layer.weight]["exp_avg_sq"]]
    assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in held)


def test_hardware_asked_for_by_name_is_never_emulated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hardware can't run here: no Tenstorrent card is here"):
        run(tmp_path, device="hardware")


def test_doctor_shows_the_emulation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    reports = {report["backend"]: report for report in json.loads(capsys.readouterr().out)["backends"]}
    assert reports["tt (emulated)"]["status"] == "PASS"
    assert reports["tt"]["status"] == "absent"
