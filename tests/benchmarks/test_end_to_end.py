"""The whole-run comparison: the experiment's loop, the extrapolation, and a real small run of both sides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import isotrain.benchmarks
import jsonschema
import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.benchmarks.end_to_end import run as end_to_end
from isotrain.benchmarks.end_to_end.blacksmith_loop import build_model, measure_loop
from isotrain.benchmarks.end_to_end.run import run_end_to_end, training_arguments
from isotrain.benchmarks.harness.extrapolate import Part, Sampled, total_interval, total_ratio
from isotrain.benchmarks.harness.plan import Options
from isotrain.benchmarks.outcome.end_to_end import EndToEnd, WholeProcess
from isotrain.cli.commands.bench import bench
from support import forks
from support.loop_spec import loop_spec
from support.results import whole_process
from support.small_job import write_dataset
from typer import Typer
from typer.testing import CliRunner

app = Typer()
app.command()(bench)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 training and 30 test texts of 6 labels."""
    return write_dataset(tmp_path_factory.mktemp("data") / "intents")


@pytest.fixture
def spec(data: Path) -> Callable[..., dict[str, Any]]:
    return partial(loop_spec, data)


def validate(result: dict[str, Any] | EndToEnd) -> None:
    path = Path(isotrain.benchmarks.__file__).parent / "schema" / "end-to-end-2.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    document = result.document() if isinstance(result, EndToEnd) else result
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(document, allow_nan=False)))


def test_a_total_is_what_happens_once_and_every_parts_mean_times_its_count() -> None:
    process = Sampled(10.0, (Part([1.0, 2.0, 3.0], 100), Part([0.5], 20)))
    assert process.total == 10.0 + 200.0 + 10.0
    interval = total_interval([process], seed=0)
    assert interval.median == process.total
    assert interval.low < process.total < interval.high


def test_constant_times_leave_no_doubt() -> None:
    slow = [Sampled(0.0, (Part([2.0] * 50, 1000),))] * 3
    ratio = total_ratio(slow, [Sampled(100.0)] * 3, seed=0)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((20.0, 20.0, 20.0))


def test_the_interval_of_an_extrapolated_total_covers_it() -> None:
    """300 simulated runs of 3 processes x 50 skewed step times, whose processes differ by 3 %: 95 % expected."""
    generator = np.random.default_rng(7)
    mean_step, runs, covered = np.exp(0.4**2 / 2), 300, 0
    for run in range(runs):
        processes = [
            Sampled(0.0, (Part(generator.normal(1.0, 0.03) * generator.lognormal(0.0, 0.4, size=50), 1000),))
            for _ in range(3)
        ]
        interval = total_interval(processes, seed=run, resamples=1000)
        covered += interval.low <= 1000 * mean_step <= interval.high
    assert 0.90 <= covered / runs <= 0.995


@pytest.mark.parametrize("padding", ["dynamic", "padded"])
def test_the_loop_times_its_steps_and_counts_those_of_a_run(spec: Callable[..., Any], padding: str) -> None:
    document = measure_loop(spec(padding=padding)).document()
    assert len(document["steps"]) == 14, "over more than one epoch of 11 steps"
    assert len(document["validation"]) == 2
    assert (document["steps_per_epoch"], document["validation_batches_per_epoch"]) == (11, 3), "the last are dropped"
    assert min(document["steps"] + document["validation"]) > 0
    assert set(document["once"]) == {"import", "load", "tokenise"}
    assert document["finite"]


def test_the_loop_pads_as_it_says(spec: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    masked: list[bool] = []
    build = build_model

    def watched(*arguments: Any) -> Any:
        model = build(*arguments)

        def watch(_: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
            shapes.append(tuple(inputs[0].shape))
            masked.append(bool((inputs[1] == 0).any()))

        model.register_forward_pre_hook(watch)
        return model

    monkeypatch.setattr("isotrain.benchmarks.end_to_end.blacksmith_loop.build_model", watched)
    measure_loop(spec(padding="padded"))
    assert set(shapes) == {(8, 32)}
    assert all(masked)
    shapes.clear()
    measure_loop(spec(padding="dynamic"))
    assert len({length for _, length in shapes}) > 1
    assert max(length for _, length in shapes) < 32


def test_the_experiments_model_trains_its_head_alone_and_reads_the_first_state() -> None:
    encoder = load_encoder("random:tiny", 0)
    model = build_model(encoder, 16, 7)
    assert {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        "classifier"
    }
    ids, mask = torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        expected = model.classifier(encoder.module()(input_ids=ids).last_hidden_state[:, 0])
        assert torch.allclose(model(ids, mask), expected, atol=1e-6)


def test_ours_is_the_packaged_configuration_with_absolute_paths(data: Path, tmp_path: Path) -> None:
    options = Options(dataset=os.path.relpath(data), model="random:tiny", kernels=("portable",), threads=1)
    arguments = training_arguments(options, tmp_path)
    assert arguments[:4] == ["train", "banking77", "--backend", "cpu"]
    assert f"dataset_id={data.resolve()}" in arguments
    assert "model_name=random:tiny" in arguments
    assert "kernel=portable" in arguments
    assert "num_epochs=5" in arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "banking77-lengths"}, "trains on texts, and banking77-lengths has none; give --dataset"),
        ({"kernels": ("auto", "portable")}, "runs one backend, kernel and dtype"),
        ({"processes": 0}, "--processes 0 is out of range"),
        ({"dataset": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_wrong_options_say_what_is_allowed(data: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    options = replace(Options(dataset=str(data), model="random:tiny", processes=1), **change)
    with pytest.raises(UserError) as caught:
        run_end_to_end(options, out=tmp_path / "r.json")
    assert message in str(caught.value)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
def test_a_real_comparison_says_what_it_extrapolated(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = (
        "--workload end_to_end --vs baselines --model random:tiny --dtype float32 --max-length 32 --quick "
        f"--dataset {data}"
    )
    # Wide enough that no cell is broken.
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments.split(), "--out", str(out)])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text(encoding="utf-8"))
    validate(result)
    own, dynamic, padded = result["sides"]
    assert own["processes"][0]["status"] == "completed"
    assert own["processes"][0]["step"] == 5 * 12
    assert (own["extrapolated"], dynamic["extrapolated"], padded["extrapolated"]) == (False, True, True)
    assert dynamic["from"] == {"steps": 50, "of_steps": 55, "validation_batches": 3, "of_validation_batches": 15}
    first = dynamic["processes"][0]
    total = sum(first["once"].values()) + 5 * (11 * np.mean(first["steps"]) + 3 * np.mean(first["validation"]))
    assert dynamic["seconds"]["median"] == pytest.approx(total)
    assert dynamic["ratio"]["median"] == pytest.approx(total / own["seconds"]["median"])
    assert own["work"]["samples"] == 5 * (90 + 30)
    assert dynamic["work"]["samples"] == pytest.approx(5 * (11 + 3) * 8)
    assert own["work"]["model_flops"] == padded["work"]["model_flops"] < dynamic["work"]["hardware_flops"]
    for side in result["sides"]:
        rate = side["figures"]["hardware_tflops"]["median"]
        assert rate == pytest.approx(side["work"]["hardware_flops"] / side["seconds"]["median"] / 1e12)
        assert 0 < side["share_of_peak"]["hardware"] == rate / result["peaks"]["matmul_tflops"]
        assert side["roofline"]["share"] > 0
        assert (side["energy"]["joules_per_sample"] is None) == side["energy"]["source"].startswith("unavailable: ")
    memory = result["memory"]
    assert memory["above_import_bytes"] == memory["peak_bytes"] - memory["import_torch_bytes"] > 0
    text = " ".join(done.stdout.split())
    assert "extrapolated" in text
    assert "50 of 55 steps, 3 of 15 validation batches" in text
    assert "above a process that only imports torch" in text
    assert "Work and limits · random weights" in text
    assert "cpu peak in float32, measured in this run" in text
    assert not (tmp_path / "runs").exists()


def test_a_run_whose_work_cant_be_counted_has_seconds_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_train(options: Options, side: Any, folder: Path) -> None:
        side.last = folder
        side.documents.append(WholeProcess.model_validate(whole_process(seconds=10.0)))

    monkeypatch.setattr(end_to_end, "_train", fake_train)
    monkeypatch.setattr(end_to_end, "_import_torch", lambda *_: 2**28)
    outcome = run_end_to_end(Options(dataset=str(data), processes=1), out=tmp_path / "r.json")
    own = outcome.result.document()["sides"][0]
    assert outcome.code == 1
    assert own["seconds"]["median"] == 10.0
    assert own["reasons"][0].startswith("its work could not be counted: ")
    assert "figures" not in own
    assert "the work was not counted" in outcome.result.notes[0]
    validate(outcome.result)


def test_json_is_all_that_stdout_gets(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_train(options: Options, side: Any, folder: Path) -> None:
        side.documents.append(WholeProcess.model_validate(whole_process(seconds=10.0)))

    monkeypatch.setattr(end_to_end, "_train", fake_train)
    monkeypatch.setattr(end_to_end, "_import_torch", lambda *_: 2**28)
    done = CliRunner().invoke(app, ["--workload", "end_to_end", "--dataset", str(data), "--json", "--quick"])
    result = json.loads(done.stdout)
    validate(result)
    assert [side["name"] for side in result["sides"]] == ["isotrain train"]


def test_an_emulated_devices_run_is_called_so_in_every_format(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_train(options: Options, side: Any, folder: Path) -> None:
        side.documents.append(WholeProcess.model_validate(whole_process(seconds=10.0)))

    monkeypatch.setattr(end_to_end, "_train", fake_train)
    monkeypatch.setattr(end_to_end, "_import_torch", lambda *_: 2**28)
    for shown_as in ("json", "csv", "markdown"):
        arguments = f"--workload end_to_end --backend tt --dataset {data} --quick --format {shown_as}"
        assert "isotrain train on tt-emulated" in CliRunner().invoke(app, arguments.split()).stdout


@pytest.mark.parametrize("after_one", [True, False])
def test_an_interruption_keeps_what_is_complete(data: Path, tmp_path: Path, after_one: bool) -> None:
    alive, out = tmp_path / "alive", tmp_path / "r.json"
    program = f"""
import sys, time
from pathlib import Path
from isotrain.benchmarks.end_to_end import run as end_to_end
from isotrain.benchmarks.harness.plan import Options
from isotrain.benchmarks.outcome.end_to_end import WholeProcess
done = []
def train(options, side, folder):
    if len(done) == {int(after_one)}:
        Path({str(alive)!r}).write_text("x")
        time.sleep(60)
    done.append(1)
    side.documents.append(WholeProcess.model_validate({whole_process(seconds=10.0)!r}))
end_to_end._train, end_to_end._import_torch = train, lambda *_: 2**28
options = Options(dataset={str(data)!r}, processes=2)
sys.exit(end_to_end.run_end_to_end(options, out=Path({str(out)!r})).code)
"""
    parent = forks.Popen(["-c", program], stderr=subprocess.PIPE)
    for _ in range(600):
        if alive.exists():
            break
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 130
    assert out.exists() == after_one
    if after_one:
        result = json.loads(out.read_text(encoding="utf-8"))
        assert result["status"] == "partial"
        validate(result)


def test_a_loop_that_dies_is_a_reason_and_ours_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_train(options: Options, side: Any, folder: Path) -> None:
        side.documents.append(WholeProcess.model_validate(whole_process(seconds=10.0)))

    monkeypatch.setattr(end_to_end, "_train", fake_train)
    monkeypatch.setattr(end_to_end, "_import_torch", lambda *_: 2**28)
    monkeypatch.setattr(end_to_end, "LOOP", (sys.executable, "-c", "raise SystemExit('the loop fell over')"))
    outcome = run_end_to_end(Options(dataset=str(data), processes=1, vs=("baselines",)), out=tmp_path / "r.json")
    assert outcome.code == 2
    own, dynamic, _ = outcome.result.document()["sides"]
    assert own["valid"]
    assert "the loop fell over" in dynamic["reasons"][0]
    validate(outcome.result)
