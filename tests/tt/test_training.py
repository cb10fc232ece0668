"""Emulated training: the command line's way, every fidelity and weight format, its label everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from isotrain.albert_core.config.load import as_set, load_config
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.backends import get_backend
from isotrain.cli.main import main

FIDELITIES = ("lofi", "hifi2", "hifi3", "hifi4")
DTYPES = ("bfloat16", "bfp_bf8", "bfp_bf4")


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("isotrain.backends.tt.stacks.CARD_FOLDER", tmp_path / "none")


def run(folder: Path, tt: dict[str, object] | None = None, backend: str = "tt", **keys: object) -> TrainResult:
    sets = {
        "dataset_id": "embedded:intents",
        "model_name": "random:tiny",
        "dtype": "float32",
        "num_epochs": 2,
        "learning_rate": 3e-3,
        "mlp_hidden_size": 32,
        "project_dir": str(folder),
    }
    sets |= keys | {f"tt.{key}": value for key, value in (tt or {}).items()}
    settings = [as_set(key, value) for key, value in sets.items()]
    return train(load_config(None, settings, {"backend": backend}))


def test_every_fidelity_and_weight_format_trains_and_precision_orders_the_losses(
    tmp_path: Path, show: Callable[[str], None]
) -> None:
    """The distance of every step's loss from float64's (RMS over an epoch) falls into classes, coarsest numbers last.

    Within a class, which its operands' least precise format makes, distances differ by chance.
    """
    job = {"num_epochs": 1, "steps_freq": 1, "dataset_id": "embedded:intents?train=385&test=77"}
    exact = step_losses(run(tmp_path / "float64", backend="cpu", dtype="float64", head_dtype="float64", **job))

    def distance(result: TrainResult) -> float:
        assert result.status == "completed"
        return float((step_losses(result) - exact).square().mean().sqrt())

    host = distance(run(tmp_path / "float32", backend="cpu", **job))
    gaps = {}
    for dtype in DTYPES:
        for fidelity in FIDELITIES:
            result = run(tmp_path / f"{dtype}-{fidelity}", {"math_fidelity": fidelity, "weight_dtype": dtype}, **job)
            assert "tt-emulated" in result.label
            gaps[dtype, fidelity] = distance(result)
    show(f"distance of a step's loss from float64's: float32 on the host {host:.1e}; tt-emulated:")
    for dtype in DTYPES:
        show(f"{dtype:9s}" + "".join(f"  {fidelity} {gaps[dtype, fidelity]:.1e}" for fidelity in FIDELITIES))
    rounded = [gaps[dtype, fidelity] for dtype in DTYPES[:2] for fidelity in FIDELITIES[1:]]
    one_phase = [gaps[dtype, "lofi"] for dtype in DTYPES[:2]]
    three_bits = [gaps["bfp_bf4", fidelity] for fidelity in FIDELITIES]
    assert 100 * host < min(rounded)
    assert 1.3 * max(rounded) < min(one_phase)
    assert 1.3 * max(one_phase) < min(three_bits)


def step_losses(result: TrainResult) -> torch.Tensor:
    lines = map(json.loads, (result.run.path / "metrics.jsonl").read_text().splitlines())
    return torch.tensor([line["train/loss"] for line in lines if "train/loss" in line], dtype=torch.float64)


def test_everything_a_run_writes_says_that_it_is_emulated(tmp_path: Path) -> None:
    result = run(tmp_path, {"math_fidelity": "hifi2"}, max_steps=40)
    log = (result.run.path / "train.log").read_text()
    assert "backend tt-emulated on wormhole emulated on " in log
    assert "tt-emulated: every time and speed of this run is the host's, never a card's" in log
    for line in log.splitlines():
        assert "tt-emulated" in line or not any(figure in line for figure in ("samples/s", "eval/loss")), line
    metrics = [json.loads(line) for line in (result.run.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["device"] for line in metrics} == {"tt-emulated"}
    summary = json.loads(result.run.summary.read_text())
    about = json.loads((result.run.path / "run.json").read_text())
    assert summary["emulated"] is True
    assert summary["backend"] == about["device"]["backend"] == "tt-emulated"
    assert summary["device"].startswith("wormhole emulated on ")
    assert about["device"]["emulated"] is True
    assert "tt-emulated hifi2" in about["identity"]["cast_policy"]


def test_the_command_ends_with_the_emulations_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["model_name=random:tiny", "num_epochs=2", "chart=[eval/accuracy]", f"project_dir={tmp_path}", "run_name=r"]
    with pytest.raises(SystemExit) as end:
        main(["train", "quickstart", "--backend", "tt", *(f"--set={key}" for key in keys)])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    assert "completed: random:tiny (random weights) on tt-emulated" in out
    assert "eval/accuracy: random:tiny (random weights) on tt-emulated" in out.splitlines(), "the chart's title"
    assert "evaluations of random:tiny (random weights) on tt-emulated" in err.splitlines()
    assert "on tt-emulated" in (tmp_path / "r" / "chart.html").read_text()


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_predictions_in_a_file_say_so_too(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained = run(tmp_path, max_steps=2)
    (tmp_path / "asked.csv").write_text("text\nI lost my card\n")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(trained.run.path), "--csv", str(tmp_path / "asked.csv"), "--out", str(tmp_path / name)])
    assert end.value.code == 0
    assert "tt-emulated" in capsys.readouterr().out
    for line in (tmp_path / name).read_text().splitlines()[-1:]:
        assert "tt-emulated" in line


def test_a_bfloat16_optimizer_leaves_bfloat16_values() -> None:
    backend = get_backend("tt-emulated", {"tt": {"optimizer_dtype": "bfloat16"}})
    layer = backend.place(torch.nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    backend.prepare_optimizer(optimizer)
    layer(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    held = [layer.weight.data, optimizer.state[layer.weight]["exp_avg"], optimizer.state[layer.weight]["exp_avg_sq"]]
    assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in held)


def test_hardware_asked_for_by_name_is_never_emulated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hardware can't run here: no Tenstorrent card in "):
        run(tmp_path, {"device": "hardware"})


@pytest.mark.usefixtures("forked_children")
def test_doctor_shows_the_emulation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isotrain.backends.list_backends", lambda: ["tt", "tt-emulated"])
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    reports = {report["backend"]: report for report in json.loads(capsys.readouterr().out)["backends"]}
    assert reports["tt-emulated"]["status"] == "PASS"
    assert reports["tt"]["status"] == "absent"
