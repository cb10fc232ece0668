"""`isotrain tt-losses`: what is measured, its order, its table and page, an interrupt, and wrong input."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.loop.events import TrainingError
from isotrain.albert_core.processes.signals import stop_on_signals
from isotrain.benchmarks import tt_losses
from isotrain.cli.main import main

TINY = ("model_name=random:tiny", "dataset_id=embedded:intents?train=154&test=77")
JOB = ["quickstart", *(f"--set={setting}" for setting in TINY)]
COARSE = ["--set=tt.math_fidelity=hifi2", "--set=tt.weight_dtype=bfp_bf8", "--set=tt.fp32_dest_acc_en=false"]


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["tt-losses", *arguments])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The settings of each run. In its place, each operation of the card adds its rank to every loss."""
    seen: list[tuple[str, ...]] = []
    ranks = {"linear": 32, "matmul": 1, "softmax": 2, "layer_norm": 8, "activation": 4, "add": 16, "embedding": 0}

    def losses(config: str, sets: Sequence[str], steps: int) -> tuple[np.ndarray, str]:
        assert config == "quickstart"
        seen.append(tuple(sets))
        chosen = dict(item.split("=", 1) for item in sets)
        if chosen.get("tt.math_fidelity") == "lofi":
            raise TrainingError("the loss is nan at step 3; lower the learning rate")
        if chosen["backend"] == "cpu":
            return np.ones(steps), "tiny on cpu"
        left = chosen.get("tt.float32", "").split(",")
        return 1 + 1e-3 * np.full(steps, sum(rank for name, rank in ranks.items() if name not in left)), "tiny on card"

    monkeypatch.setattr(tt_losses, "_losses", losses)
    return seen


def test_operations_are_ranked_by_what_each_costs(
    runs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run([*JOB, "--json", "--steps", "8"], capsys)
    assert code == 0
    found = json.loads(out)
    assert (found["schema"], found["complete"], found["label"], found["steps"]) == (
        "isotrain.tt-losses/1",
        True,
        "tiny on card",
        8,
    )
    of_kind: dict[str, dict[str, Any]] = {}
    for cost in found["costs"]:
        of_kind.setdefault(cost["kind"], {})[cost["name"]] = cost["distance"]
    assert found["costs"][0]["distance"] == pytest.approx(0.063)
    ranked = ["embedding", "matmul", "softmax", "activation", "layer_norm", "add", "linear"]
    assert list(of_kind["alone"]) == ranked == list(reversed(of_kind["without"]))
    for name, alone in of_kind["alone"].items():
        assert alone + of_kind["without"][name] == pytest.approx(0.063)
    assert found["costs"][-1]["distance"] == 0
    assert of_kind["other"]["math fidelity lofi"] is None
    reference, *others = runs
    assert {"backend=cpu", "dtype=float64", "head_dtype=float64", "feature_cache=false"} <= set(reference)
    assert all("tt.emulate=all" in sets for sets in others[:-1])


def test_the_table_and_the_page_say_what_matters(
    runs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "losses.html"
    code, out, err = run([*JOB, *COARSE, "--html", str(page)], capsys)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "tiny on card: hifi2, bfloat16 destination, fast, all operations"
    assert any(line.startswith("linear 0.032 51% 0.031") for line in lines)
    # Coarse settings come with their finest values.
    for finest in ("math fidelity hifi4", "destination float32", "frozen weights bfloat16"):
        assert any(line.startswith(finest) for line in lines)
    assert any("math fidelity lofi the loss is nan at step 3" in line for line in lines)
    assert any(line.startswith("next, ") and "--candidate tt:tt.emulate=all" in line for line in lines)
    assert err.splitlines()[0] == f"1 of {len(runs)}: float64 on the host"
    written = page.read_text()
    assert "Distance of the losses from float64" in written
    assert "math fidelity lofi" in written


@pytest.mark.parametrize("done", [1, 5])
def test_an_interrupt_leaves_what_is_measured(
    done: int, runs: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = tt_losses._losses

    def stopped(config: str, sets: Sequence[str], steps: int) -> tuple[np.ndarray, str]:
        if len(runs) == done:
            raise KeyboardInterrupt
        return measure(config, sets, steps)

    monkeypatch.setattr(tt_losses, "_losses", stopped)
    code, out, err = run(JOB, capsys)
    assert code == 130
    assert "isotrain: interrupted" in err
    assert ("Interrupted: not all variants are here." in out) == (done > 1)


def test_a_signal_during_a_run_ends_the_measurement_after_it(
    runs: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run notes the first signal, and when it is over it notes none: the measurement must."""
    measure = tt_losses._losses

    def training(config: str, sets: Sequence[str], steps: int) -> tuple[np.ndarray, str]:
        with stop_on_signals() as stop:
            stop.loop_started = True
            if len(runs) == 3:
                signal.raise_signal(signal.SIGINT)
            stop.over = True
        return measure(config, sets, steps)

    monkeypatch.setattr(tt_losses, "_losses", training)
    code, out, _ = run(JOB, capsys)
    assert code == 130
    assert len(runs) == 4
    assert "Interrupted: not all variants are here." in out


def test_a_real_runs_losses_are_those_of_the_first_steps() -> None:
    cpu, card = ("backend=cpu", "dtype=float64", "head_dtype=float64"), ("backend=tt-emulated", "tt.emulate=all")
    (exact, _), (ours, label) = (tt_losses._losses("quickstart", [*TINY, *sets], 3) for sets in (cpu, card))
    assert exact.shape == ours.shape == (3,)
    assert label == "random:tiny (random weights) on tt-emulated"
    assert 1e-6 < np.abs(ours - exact).max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing"),
        (["nothing.py:Model"], "there is no file 'nothing.py'"),
        ([*JOB, "--steps", "1"], "--steps"),
        ([*JOB, "--html", "page.txt"], "--html 'page.txt': give a file that ends in .html"),
        ([*JOB, "--set", "tt.math_fidelity=hifi5"], "tt.math_fidelity: 'hifi5' is not allowed"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(arguments, capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
